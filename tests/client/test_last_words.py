"""Why a program did not start: the lines that say it, not the last ones."""

from __future__ import annotations

import sys

import pytest

from trio_vmcp import Backend, open_session_factory
from trio_vmcp._client.channels.stderr import LastWords

NODE = """node:internal/modules/cjs/loader:1148
  throw err;
  ^

Error: Cannot find module '/srv/server/dist/index.js'
    at Module._resolveFilename (node:internal/modules/cjs/loader:1145:15)
    at node:internal/main/run_main_module:28:49 {
  code: 'MODULE_NOT_FOUND',
  requireStack: []
}

Node.js v20.20.2
"""
PYTHON = """Traceback (most recent call last):
  File "/srv/x.py", line 3, in <module>
    main()
    ~~~~^^
  File "/srv/x.py", line 2, in main
    raise ValueError("no API key")
ValueError: no API key
"""
GO = """panic: no API key

goroutine 1 [running]:
main.main()
	/srv/main.go:5 +0x1d
exit status 2
"""
RUST = """thread 'main' panicked at src/main.rs:2:5:
no API key
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace
"""
JAVA = """Exception in thread "main" java.lang.IllegalStateException: no API key
	at com.example.Main.run(Main.java:12)
	at com.example.Main.main(Main.java:5)
	... 5 more
"""
NPM = """npm error code E404
npm error 404 Not Found - GET https://registry.test/@x%2fy - Not found
npm error 404
npm error A complete log of this run can be found in: /home/me/.npm/_logs/x.log
"""
CHATTY = "Error: no API key\n" + "bye\n" * 10


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (NODE, "Error: Cannot find module '/srv/server/dist/index.js'"),
        (PYTHON, "ValueError: no API key"),
        (GO, "panic: no API key"),
        (RUST, "no API key"),
        (JAVA, "IllegalStateException: no API key"),
        (NPM, "404 Not Found"),
        (CHATTY, "Error: no API key"),
        (
            "usage: server [-h] --key KEY\nserver: error: the following arguments are required: --key\n",
            "error: the foll",
        ),
        ("sh: 1: uvx: not found\n", "uvx: not found"),
        ("}\n", "}"),
        ("", ""),
    ],
    ids=["node", "python", "go", "rust", "java", "npm", "chatty", "argparse", "shell", "nothing", "empty"],
)
def test_the_line_that_says_why_is_quoted(text: str, why: str) -> None:
    """Frames, source lines and parts of objects are left out; three lines at most are quoted."""
    words = LastWords({})
    for line in text.splitlines():
        words.add(line.encode())
    assert why in words.quoted()
    assert len(words.quoted()) < 700


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_a_program_that_ends_at_once_says_why(stream: str) -> None:
    """Its stderr, or what it says on stdout that is no message, is in the failure, without secrets."""
    program = f"import os, sys; print('missing: --api-key ' + os.environ['KEY'], file=sys.{stream}); sys.exit(2)"
    backend = Backend(
        id="b", transport="stdio", command=sys.executable, args=["-c", program], env={"KEY": "c4nary-s3cret"}
    )
    async with open_session_factory() as factory, factory.open_session([backend]) as session:
        (failure,) = session.failures
    assert f"; its last words on {stream}: 'missing: --api-key $KEY'" in failure.detail
