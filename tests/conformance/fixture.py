"""The MCP server behind the front whose server scenarios are run: all tools, resources and prompts that they name.

Names, URIs and most texts are the suite's: each scenario describes what a server must offer. A scenario that is refused
at the front would pass many checks without a backend, so the server records what was used.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import attrs

from trio_vmcp import JSON
from trio_vmcp.testing import CallContext, Exchange, RpcError, ScriptedBackend
from trio_vmcp.testing.rounds import Rounds

__all__ = ["SuiteBackend", "suite_backend"]

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
LOG_LEVEL = "io.modelcontextprotocol/logLevel"
MISSING_CAPABILITY = -32021
IMAGE: JSON = {"type": "image", "data": PNG, "mimeType": "image/png"}

SCHEMA_2020_12: JSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
DEFAULTS: JSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "User name", "default": "John Doe"},
        "age": {"type": "integer", "description": "User age", "default": 30},
        "score": {"type": "number", "description": "User score", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "description": "Verification status", "default": True},
    },
    "required": [],
}
_VALUES = [("value1", "First"), ("value2", "Second"), ("value3", "Third")]
_TITLED = [{"const": value, "title": title} for value, title in _VALUES]
_UNTITLED = {"type": "string", "enum": ["option1", "option2", "option3"]}
ENUMS: JSON = {
    "type": "object",
    "properties": {
        "untitledSingle": _UNTITLED,
        "titledSingle": {"type": "string", "oneOf": _TITLED},
        "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]},
        "untitledMulti": {"type": "array", "minItems": 1, "maxItems": 3, "items": _UNTITLED},
        "titledMulti": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"anyOf": _TITLED}},
    },
    "required": [],
}


def text(words: str) -> JSON:
    return {"type": "text", "text": words}


def embedded(uri: str, words: str, media_type: str = "text/plain") -> JSON:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": media_type, "text": words}}


def elicitation(message: str, name: str, kind: str = "string") -> JSON:
    schema = {"type": "object", "properties": {name: {"type": kind}}, "required": [name]}
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def sampling(words: str, most: int) -> JSON:
    messages = [{"role": "user", "content": text(words)}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": most}}


ROOTS: JSON = {"method": "roots/list", "params": {}}
# What each tool asks in its one round, by key.
ASKED: dict[str, dict[str, JSON]] = {
    "elicitation": {"user_name": elicitation("What is your name?", "name")},
    "sampling": {"capital_question": sampling("What is the capital of France?", 100)},
    "list_roots": {"client_roots": ROOTS},
    "request_state": {"confirm": elicitation("Please confirm", "ok", "boolean")},
    "tampered_state": {"confirm": elicitation("Please confirm", "ok", "boolean")},
    "multiple_inputs": {
        "user_name": elicitation("What is your name?", "name"),
        "greeting": sampling("Generate a greeting", 50),
        "client_roots": ROOTS,
    },
}
WITH_STATE = ("request_state", "tampered_state", "multiple_inputs")
ROUND = "test_input_required_result_"


class _OpenRounds(Rounds):
    """Retries are as the client sent them: the scenarios send answers to what was never asked, and others too many."""

    def resume(self, _exchange: Exchange) -> list[dict[str, Any]]:
        return []


@attrs.define(eq=False, kw_only=True)
class SuiteBackend(ScriptedBackend):
    """Answers what a `ScriptedBackend` has no means for: binary contents, and prompts of several kinds of content."""

    def __attrs_post_init__(self) -> None:
        self._rounds = _OpenRounds()

    @property
    def used(self) -> Counter[str]:
        """How often each method was asked for, with the name, URI or level."""
        asked = [exchange for exchange in self.exchanges if exchange.request_id is not None]
        return Counter(f"{each.method} {_named(each)}".strip() for each in asked)

    async def call(self, context: CallContext) -> JSON:
        params = context.params
        match context.method, _named(context.exchange):
            case "resources/read", "test://static-binary" as uri:
                return {"contents": [{"uri": uri, "mimeType": "image/png", "blob": PNG}]}
            case "resources/read", str(uri) if uri.startswith("test://template/"):
                found = json.dumps({"id": uri.split("/")[3], "templateTest": True})
                return {"contents": [{"uri": uri, "mimeType": "application/json", "text": found}]}
            case "prompts/get", "test_prompt_with_embedded_resource":
                content = [embedded(params["arguments"]["resourceUri"], "Embedded resource content for testing.")]
                return _messages(*content, text("Please process the embedded resource above."))
            case "prompts/get", "test_prompt_with_image":
                return _messages(IMAGE, text("Please analyze the image above."))
            case "prompts/get", "test_input_required_result_prompt":
                answer = (params.get("inputResponses") or {}).get("user_context")
                if answer is None:
                    return asking({"user_context": elicitation("What context should the prompt use?", "context")})
                return _messages(text(f"Prompt with context: {answer['content']['context']}"))
        return await super().call(context)

    def toggle(self, entries: list[JSON], entry: JSON, kind: str) -> None:
        """Change a list, and tell of the change."""
        if entry in entries:
            entries.remove(entry)
        else:
            entries.append(entry)
        self.notify(f"notifications/{kind}/list_changed")


def _named(exchange: Exchange) -> str:
    params = exchange.params
    return str(params.get("uri") or params.get("name") or params.get("level") or "")


def _messages(*contents: JSON) -> JSON:
    return {"messages": [{"role": "user", "content": content} for content in contents]}


def asking(requests: dict[str, JSON], state: str | None = None) -> JSON:
    question: JSON = {"resultType": "input_required", "inputRequests": requests}
    return question if state is None else question | {"requestState": state}


def suite_backend() -> SuiteBackend:
    """A new server of both eras."""
    backend = SuiteBackend(era="both", answers="sse", listens=True, resumable=True, retry_ms=10)
    backend.capabilities = {
        "tools": {"listChanged": True},
        "resources": {"listChanged": True, "subscribe": True},
        "prompts": {"listChanged": True},
        "logging": {},
        "completions": {},
    }
    _add_contents(backend)
    _add_streams(backend)
    _add_questions(backend)
    _add_rounds(backend)
    _add_changes(backend)
    _add_resources_and_prompts(backend)
    return backend


def _add_contents(backend: SuiteBackend) -> None:
    mixed = embedded("test://mixed-content-resource", json.dumps({"test": "data", "value": 123}), "application/json")
    for name, content in {
        "test_simple_text": [text("This is a simple text response for testing.")],
        "test_image_content": [IMAGE],
        "test_audio_content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}],
        "test_embedded_resource": [embedded("test://embedded-resource", "This is an embedded resource content.")],
        "test_multiple_content_types": [text("Multiple content types test:"), IMAGE, mixed],
    }.items():

        async def answer(_arguments: JSON, _context: CallContext, content: list[JSON] = content) -> list[JSON]:
            return content

        backend.add_tool(name, answer, description=f"Answers with the content of {name}")

    async def fail(_arguments: JSON, _context: CallContext) -> str:
        raise RuntimeError("This tool intentionally returns an error for testing")

    backend.add_tool("test_error_handling", fail, description="Fails")
    backend.add_tool("json_schema_2020_12_tool", description="JSON Schema 2020-12", inputSchema=SCHEMA_2020_12)
    region = {"type": "string", "x-mcp-header": "Region"}
    schema = {"type": "object", "properties": {"region": region}, "required": ["region"]}
    backend.add_tool("test_mirrored_argument", description="Repeats its argument in a header", inputSchema=schema)


def _add_streams(backend: SuiteBackend) -> None:
    async def log(_arguments: JSON, context: CallContext) -> str:
        for step in ("started", "processing data", "completed"):
            await context.notify("notifications/message", {"level": "info", "data": f"Tool execution {step}"})
        return "Tool with logging executed successfully"

    async def log_if_wanted(_arguments: JSON, context: CallContext) -> str:
        if LOG_LEVEL in context.meta:
            await context.notify("notifications/message", {"level": "info", "data": "wanted"})
        return "Logging evaluated"

    async def report(_arguments: JSON, context: CallContext) -> str:
        for step in (0, 50, 100):
            await context.progress(step, 100, f"Completed step {step} of 100")
        return "done"

    async def detach(_arguments: JSON, context: CallContext) -> str:
        if not context.is_modern:
            await context.detach()
        return "Reconnection test completed successfully."

    backend.add_tool("test_tool_with_logging", log, description="Logs")
    backend.add_tool("test_logging_tool", log_if_wanted, description="Logs if its caller asks for that")
    backend.add_tool("test_tool_with_progress", report, description="Reports progress")
    backend.add_tool("test_streaming_elicitation", report, description="Reports progress")
    backend.add_tool("test_reconnection", detach, description="Ends its stream before its answer")


def _add_questions(backend: SuiteBackend) -> None:
    async def sample(arguments: JSON, context: CallContext) -> str:
        answer = await context.sample(arguments["prompt"])
        return f"LLM response: {answer['content']['text']}"

    async def elicit(arguments: JSON, context: CallContext) -> str:
        schema = {"type": "object", "properties": {"response": {"type": "string"}}, "required": ["response"]}
        return _told(await context.elicit(arguments["message"], schema))

    async def elicit_defaults(_arguments: JSON, context: CallContext) -> str:
        return _told(await context.elicit("Please review the defaults", DEFAULTS))

    async def elicit_enums(_arguments: JSON, context: CallContext) -> str:
        return _told(await context.elicit("Please select options", ENUMS))

    async def need_sampling(_arguments: JSON, context: CallContext) -> str:
        if "sampling" not in context.meta.get(CAPABILITIES, {}):
            data: JSON = {"requiredCapabilities": {"sampling": {}}}
            raise RpcError(MISSING_CAPABILITY, "sampling is needed", data, status=400)
        return "Success"

    backend.add_tool("test_sampling", sample, description="Asks the model of its client")
    backend.add_tool("test_elicitation", elicit, description="Asks the user of its client")
    backend.add_tool("test_elicitation_sep1034_defaults", elicit_defaults, description="Asks with defaults")
    backend.add_tool("test_elicitation_sep1330_enums", elicit_enums, description="Asks with enums")
    backend.add_tool("test_missing_capability", need_sampling, description="Needs sampling")


def _told(answer: JSON) -> str:
    return f"Elicitation completed: action={answer['action']}, content={json.dumps(answer.get('content', {}))}"


def _add_rounds(backend: SuiteBackend) -> None:
    for kind, requests in ASKED.items():

        async def ask(_arguments: JSON, context: CallContext, kind: str = kind, requests: Any = requests) -> Any:
            given = context.params.get("inputResponses") or {}
            state = f"{kind}: \u00e9" if kind in WITH_STATE else None
            if not (requests.keys() <= given.keys() and state == context.params.get("requestState")):
                return asking(requests, state)
            return f"state-ok: {json.dumps([given[key] for key in requests])}"

        backend.add_tool(ROUND + kind, ask, description="Asks in a round")

    async def ask_twice(_arguments: JSON, context: CallContext) -> Any:
        given, state = context.params.get("inputResponses") or {}, context.params.get("requestState")
        if state is None or ("step1" not in given and "step2" not in given):
            return asking({"step1": elicitation("Step 1: What is your name?", "name")}, "first")
        if state == "first":
            return asking({"step2": elicitation("Step 2: What is your favorite color?", "color")}, "second")
        return f"Multi-round complete, {given['step2']['content']['color']}"

    async def ask_what_is_declared(_arguments: JSON, context: CallContext) -> Any:
        possible = {
            "elicitation": elicitation("Elicitation input", "value"),
            "sampling": sampling("Sample request", 50),
        }
        return asking({key: each for key, each in possible.items() if key in context.meta[CAPABILITIES]}, "declared")

    backend.add_tool(f"{ROUND}multi_round", ask_twice, description="Asks in two rounds")
    backend.add_tool(f"{ROUND}capabilities", ask_what_is_declared, description="Asks what its client declares")


def _add_changes(backend: SuiteBackend) -> None:
    more_tool = {"name": "test_more", "description": "Comes and goes", "inputSchema": {"type": "object"}}
    more_prompt = {"name": "test_more", "description": "Comes and goes"}

    async def change_tools(_arguments: JSON, _context: CallContext) -> str:
        backend.toggle(backend.tools, more_tool, "tools")
        return "changed"

    async def change_prompts(_arguments: JSON, _context: CallContext) -> str:
        backend.toggle(backend.prompts, more_prompt, "prompts")
        return "changed"

    backend.add_tool("test_trigger_tool_change", change_tools, description="Changes the list of tools")
    backend.add_tool("test_trigger_prompt_change", change_prompts, description="Changes the list of prompts")


def _add_resources_and_prompts(backend: SuiteBackend) -> None:
    backend.add_resource("test://static-text", "This is the content of the static text resource.")
    backend.add_resource("test://static-binary", mimeType="image/png")
    backend.add_resource("test://watched-resource", "Watched resource content")
    backend.add_resource_template("test://template/{id}/data", mimeType="application/json")
    arguments = [{"name": name, "required": True} for name in ("arg1", "arg2")]
    backend.add_prompt("test_simple_prompt", "This is a simple prompt for testing.", description="Simple")
    words = "Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"
    backend.add_prompt("test_prompt_with_arguments", words, description="Arguments", arguments=arguments)
    uri = [{"name": "resourceUri", "required": True}]
    backend.add_prompt("test_prompt_with_embedded_resource", description="Embeds a resource", arguments=uri)
    backend.add_prompt("test_prompt_with_image", description="Has an image")
    backend.add_prompt("test_input_required_result_prompt", description="Asks in a round")
    backend.completions = {"arg1": ["paris", "park", "party"]}
