"""A stdio server without slow imports, since tests start many. Its arguments say how it misbehaves.

- modern: speaks only that era, not the handshake's. fragile: exits at a request before `initialize`. mute: does not
  answer that request. silent: answers nothing. unlisted: exits when it is asked for its tools. late: takes its time to
  start. telling: when its tools change, it notifies the clients that have subscribed.
- dead: exits at once, with a line on stderr. banner: starts with text on stdout. flood: starts with 3 MB on stderr.
- stubborn: stays when its stdin ends and at SIGTERM. deaf: stays when its stdin ends.
- fork: has a grandchild that holds its pipes and ignores SIGTERM. detached: that grandchild is in a session of its own.

Its tools are the branches of `call`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes as long to import as all of the rest
    from typing import Any

    Message = dict[str, Any]

flags = set(sys.argv[1:])
out = sys.stdout.buffer
parked: list[Message] = []
listeners: list[int] = []
grown: list[str] = []
seen: list[object] = []


def send(message: Message) -> None:
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


def answer(request: Message, **result: Any) -> None:
    send({"jsonrpc": "2.0", "id": request["id"], "result": result})


def tell(method: str, listener: int, **params: Any) -> None:
    tag = {"io.modelcontextprotocol/subscriptionId": listener}
    send({"jsonrpc": "2.0", "method": method, "params": {**params, "_meta": tag}})


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def text(value: str) -> Message:
    return {"content": [{"type": "text", "text": value}]}


def wait_for_ever() -> None:
    while True:
        signal.pause()


def hold_pipes() -> None:
    """A grandchild that holds our pipes and ignores SIGTERM."""
    if os.fork() == 0:
        if "detached" in flags:
            os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if "detached" in flags:
            signal.alarm(3)  # in case the test does not end it
        wait_for_ever()


def call(request: Message) -> None:
    name = request["params"]["name"]
    arguments = request["params"].get("arguments", {})
    if name == "die":
        say("about to die")
        say("of " + os.environ.get("SECRET", "nothing"))
        os._exit(7)
    elif name == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "close":
        os.close(1)
    elif name == "hang":
        pass
    elif name == "slow":
        parked.append(request)
    elif name == "steps":
        token = request["params"]["_meta"]["progressToken"]
        for step in (1, 2, 3):
            params = {"progressToken": token, "progress": step}
            send({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
        answer(request, **text("done"))
    elif name == "endless":
        out.write(b'{"jsonrpc":"2.0","id":')
        while True:
            out.write(b"1" * 65536)
            out.flush()
    elif name == "large":
        answer(request, **text("x" * arguments["size"]))
    elif name == "pid":
        answer(request, **text(str(os.getpid())))
    elif name == "env":
        answer(request, **text(json.dumps(dict(os.environ))))
    elif name == "ask":
        send({"jsonrpc": "2.0", "id": 0, "method": "roots/list"})
        reply = json.loads(sys.stdin.buffer.readline())
        answer(request, **text(json.dumps(reply.get("result", reply.get("error")))))
    elif name == "grow":
        grown.append(arguments["name"])
        for listener in listeners:
            tell("notifications/tools/list_changed", listener)
        answer(request, **text("grown"))
    elif name == "seen":
        answer(request, **text(json.dumps(seen)))
    else:
        answer(request, **text(json.dumps(arguments, sort_keys=True)))


if "late" in flags:
    select.select([], [], [], 0.25)
if "stubborn" in flags:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "fork" in flags:
    hold_pipes()
if "banner" in flags:
    out.write(b"Welcome to the server of secrets\n")
if "flood" in flags:
    for _ in range(20_000):
        sys.stderr.write("x" * 100 + "\n")
    sys.stderr.write("y" * 1_000_000 + "\n")
    sys.stderr.flush()
if "dead" in flags:
    say("cannot find the config")
    sys.exit(3)

while True:
    line = sys.stdin.buffer.readline()
    if not line:
        if "stubborn" in flags or "deaf" in flags:
            wait_for_ever()
        break
    message = json.loads(line)
    method = message.get("method")
    seen.append(method if method != "notifications/cancelled" else [method, message["params"]["requestId"]])
    if "id" not in message or method is None:
        continue
    if "silent" in flags:
        continue
    for other in parked:
        answer(other, **text("late"))
    parked.clear()
    if method == "server/discover" and "modern" in flags:
        tools = {"listChanged": True} if "telling" in flags else {}
        answer(message, supportedVersions=["2026-07-28"], capabilities={"tools": tools}, resultType="complete")
    elif method == "subscriptions/listen" and "telling" in flags:
        listeners.append(message["id"])
        wanted = message["params"]["notifications"]
        tell("notifications/subscriptions/acknowledged", message["id"], notifications=wanted)
    elif method == "server/discover" and "fragile" in flags:
        say("unexpected method before initialize")
        sys.exit(1)
    elif method == "server/discover" and "mute" in flags:
        continue
    elif method == "initialize" and "modern" not in flags:
        version = message["params"]["protocolVersion"]
        answer(message, protocolVersion=version, capabilities={"tools": {}}, serverInfo={"name": "p", "version": "1"})
    elif method == "tools/list":
        if "unlisted" in flags:
            sys.exit(4)
        names = [
            "echo",
            "die",
            "crash",
            "close",
            "hang",
            "slow",
            "steps",
            "endless",
            "large",
            "pid",
            "env",
            "ask",
            "seen",
            "grow",
            *grown,
        ]
        answer(message, tools=[{"name": name, "inputSchema": {"type": "object"}} for name in names])
    elif method == "tools/call":
        call(message)
    else:
        send({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "no " + method}})
