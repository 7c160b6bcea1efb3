"""A stdio server in one file without imports that cost: a test starts hundreds of them. What it does wrong: argv.

It speaks the handshake era by default. Tools: "echo" answers its arguments; "die" ends the process with status 7;
"crash" kills it; "hang" never answers; "slow" answers after the next request; "pid" answers the process's number; "env"
answers its environment.
"""

import json
import os
import signal
import sys
import time

flags = set(sys.argv[1:])
out = sys.stdout.buffer
parked = []


def send(message):
    out.write(json.dumps(message).encode() + b"\n")
    out.flush()


def answer(request, **result):
    send({"jsonrpc": "2.0", "id": request["id"], "result": result})


def say(text):
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def text(value):
    return {"content": [{"type": "text", "text": value}]}


def hold_pipes():
    """A grandchild that has our pipes, and no wish to leave."""
    if os.fork() == 0:
        if "detached" in flags:
            os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if "detached" in flags:
            time.sleep(3)
            os._exit(0)
        while True:
            time.sleep(60)


def call(request):
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
    elif name == "seen":
        answer(request, **text(json.dumps(seen)))
    else:
        answer(request, **text(json.dumps(arguments, sort_keys=True)))


seen = []
if "stubborn" in flags:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "fork" in flags:
    hold_pipes()
if "banner" in flags:
    print("Welcome to the server of secrets", flush=True)
if "flood" in flags:
    for _ in range(20_000):
        sys.stderr.write("x" * 100 + "\n")
    sys.stderr.write("y" * 1_000_000)
    sys.stderr.flush()
if "dead" in flags:
    say("cannot find the config")
    sys.exit(3)

while True:
    line = sys.stdin.buffer.readline()
    if not line:
        if "stubborn" in flags or "deaf" in flags:
            while True:
                time.sleep(60)
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
        answer(message, supportedVersions=["2026-07-28"], capabilities={"tools": {}}, resultType="complete")
    elif method == "server/discover" and "fragile" in flags:
        say("unexpected method before initialize")
        sys.exit(1)
    elif method == "server/discover" and "mute" in flags:
        continue
    elif method == "initialize" and "modern" not in flags:
        version = message["params"]["protocolVersion"]
        answer(message, protocolVersion=version, capabilities={"tools": {}}, serverInfo={"name": "p", "version": "1"})
    elif method == "tools/list":
        names = "echo die crash close hang slow steps endless large pid env seen".split()
        answer(message, tools=[{"name": name, "inputSchema": {"type": "object"}} for name in names])
    elif method == "tools/call":
        call(message)
    else:
        send({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "no " + method}})
