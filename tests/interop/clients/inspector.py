"""What the command line of MCP Inspector sees on a server: each request is a process of its own.

Usage: inspector.py HOME URL < CALLS
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def ask(home: str, url: str, method: str, *options: str) -> Any:
    program = f"{home}/node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
    command = [f"{home}/node_modules/.bin/node", program, "--cli", url, "--transport", "http", "--method", method]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout)


def pairs(option: str, values: dict[str, Any]) -> list[str]:
    given = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]
    return [part for each in given for part in (option, each)]


def answer(home: str, url: str, call: dict[str, Any]) -> Any:
    match method := call["method"]:
        case "tools/call":
            return ask(home, url, method, "--tool-name", call["name"], *pairs("--tool-arg", call["arguments"]))
        case "resources/read":
            return ask(home, url, method, "--uri", call["uri"])
        case "prompts/get":
            return ask(home, url, method, "--prompt-name", call["name"], *pairs("--prompt-args", call["arguments"]))


LISTS = {
    "tools": ("tools/list", "tools"),
    "resources": ("resources/list", "resources"),
    "resource_templates": ("resources/templates/list", "resourceTemplates"),
    "prompts": ("prompts/list", "prompts"),
}


def look_at(home: str, url: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    with ThreadPoolExecutor(2) as threads:
        listed = {kind: threads.submit(ask, home, url, method) for kind, (method, _) in LISTS.items()}
        answers = [threads.submit(answer, home, url, call) for call in calls]
        seen = {kind: listed[kind].result()[array] for kind, (_, array) in LISTS.items()}
        return {**seen, "answers": [each.result() for each in answers]}


if __name__ == "__main__":
    print(json.dumps(look_at(sys.argv[1], sys.argv[2], json.load(sys.stdin))))
