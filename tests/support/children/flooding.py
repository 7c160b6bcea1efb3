"""A stdio server that answers the handshake and then writes one text without end.

Its arguments are a file, in which it counts the bytes that the pipe has taken, and the text.
"""

from __future__ import annotations

import json
import os
import sys

written_to, text = sys.argv[1], sys.argv[2].encode().decode("unicode_escape").encode()
for line in sys.stdin:
    asked = json.loads(line)
    if asked["method"] == "initialize":
        server = {"name": "flooding", "version": "1"}
        result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": server}
        os.write(1, json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}).encode() + b"\n")
    elif asked["method"] == "notifications/initialized":
        break

block = text * (32 * 1024 // len(text) + 1)
counter = os.open(written_to, os.O_WRONLY)
written = 0
while True:
    written += os.write(1, block)
    os.pwrite(counter, b"%d" % written, 0)
