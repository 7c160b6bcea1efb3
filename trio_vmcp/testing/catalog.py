"""Tools, resources and prompts of a scripted backend, and the methods that list and use them. No HTTP, no sessions."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from trio_vmcp.models import JSON
from trio_vmcp.testing.context import CallContext, InputRequired
from trio_vmcp.testing.rpc import INVALID_PARAMS, METHOD_NOT_FOUND, RESOURCE_NOT_FOUND, RpcError

__all__ = ["Catalog", "ToolHandler", "echo"]

ToolHandler: TypeAlias = Callable[[JSON, CallContext], Awaitable[Any]]
"""`async (arguments, context) -> text, content blocks or result`; see `Catalog.add_tool`."""

CURSOR = "after "  # opaque to clients, so any text does


async def echo(arguments: JSON, context: CallContext) -> str:
    """The default tool: its arguments as JSON text."""
    return json.dumps(arguments, sort_keys=True)


def _text_block(text: str) -> JSON:
    return {"type": "text", "text": text}


def _tool_result(value: Any) -> JSON:
    if isinstance(value, str):
        return {"content": [_text_block(value)]}
    return {"content": value} if isinstance(value, list) else dict(value)


def _require_tool_handler(name: str, handler: ToolHandler) -> None:
    form = "async (arguments, context) -> text, blocks or result"
    try:
        inspect.signature(handler).bind(None, None)
    except TypeError as error:
        raise TypeError(f"the handler of tool {name!r} is not {form}: {error}") from None
    if inspect.isfunction(handler) and handler.__name__ != "<lambda>" and not inspect.iscoroutinefunction(handler):
        raise TypeError(f"the handler of tool {name!r} is not {form}: it is not async")


def _template_pattern(template: str) -> re.Pattern[str]:
    """Simple expansion only (RFC 6570 §3.2.2): `{name}` stands for any text without a slash."""
    parts = re.split(r"\{[^}]*\}", template)
    return re.compile("[^/]+".join(map(re.escape, parts)))


def _own(entries: Iterable[JSON]) -> list[JSON]:
    """A copy, since `add_…` extends the list and a test may pass a constant."""
    return list(entries)


@attrs.define(eq=False, kw_only=True)
class Catalog:
    """Tools, resources and prompts, as the JSON objects that MCP lists.

    Attributes:
        handlers: By tool name; a tool without one echoes its arguments.
        texts: What resources (by URI) and resource templates (by template) hold.
        prompt_texts: What prompts say; `{name}` stands for an argument.
        completions: Possible values by argument name; the ones with the given prefix are answered.
        page_size: Entries of one page of a list; None: all of them.
        capabilities: Declared instead of the capabilities that follow from the lists above.
        executed: How often each tool began to run; all rounds of one call count once.
        handler_errors: Exceptions of tools, other than RpcError. The client gets them as `isError` results.
    """

    tools: list[JSON] = attrs.field(factory=list, converter=_own)
    resources: list[JSON] = attrs.field(factory=list, converter=_own)
    resource_templates: list[JSON] = attrs.field(factory=list, converter=_own)
    prompts: list[JSON] = attrs.field(factory=list, converter=_own)
    handlers: dict[str, ToolHandler] = attrs.field(factory=dict)
    texts: dict[str, str] = attrs.field(factory=dict)
    prompt_texts: dict[str, str] = attrs.field(factory=dict)
    completions: Mapping[str, Sequence[str]] = attrs.field(factory=dict)
    page_size: int | None = None
    capabilities: JSON | None = None
    executed: Counter[str] = attrs.field(factory=Counter, init=False)
    handler_errors: list[Exception] = attrs.field(factory=list, init=False)

    def add_tool(self, name: str, handler: ToolHandler = echo, **definition: Any) -> None:
        """List a tool.

        Args:
            handler: `async (arguments, context) -> text, blocks or result`: the arguments of the call as a JSON object,
                and a `CallContext`, by which the handler reports progress, logs and asks the client. Returns a text, a
                list of content blocks, or a whole result. `RpcError` becomes the answer, any other error an `isError`
                result.
            definition: The rest of the tool's JSON: `description=`, `inputSchema=`, `annotations=` …

        Raises:
            TypeError: `handler` is a function that is not async, or does not take two arguments.
        """
        _require_tool_handler(name, handler)
        self.tools.append({"name": name, "inputSchema": {"type": "object"}, **definition})
        self.handlers[name] = handler

    def add_resource(self, uri: str, text: str = "", **definition: Any) -> None:
        """List a resource that holds `text`."""
        self.resources.append({"uri": uri, "name": uri, **definition})
        self.texts[uri] = text

    def add_resource_template(self, template: str, text: str = "", **definition: Any) -> None:
        """List a family of resources, all of which hold `text`."""
        self.resource_templates.append({"uriTemplate": template, "name": template, **definition})
        self.texts[template] = text

    def add_prompt(self, name: str, text: str = "", **definition: Any) -> None:
        """List a prompt of one message; `{name}` in `text` stands for an argument."""
        self.prompts.append({"name": name, **definition})
        self.prompt_texts[name] = text

    def declared_capabilities(self) -> JSON:
        if self.capabilities is not None:
            return self.capabilities
        has = {
            "tools": self.tools,
            "resources": self.resources or self.resource_templates,
            "prompts": self.prompts,
            "completions": self.completions,
        }
        return {name: {} for name, entries in has.items() if entries}

    async def call(self, context: CallContext) -> JSON:
        """The result of one request.

        Raises:
            RpcError: The request is answered with it.
        """
        params = context.params
        match context.method:
            case "tools/list" if self._declares("tools"):
                return self._page("tools", self.tools, params)
            case "tools/call" if self._declares("tools"):
                return await self._call_tool(params, context)
            case "resources/list" if self._declares("resources"):
                return self._page("resources", self.resources, params)
            case "resources/templates/list" if self._declares("resources"):
                return self._page("resourceTemplates", self.resource_templates, params)
            case "resources/read" if self._declares("resources"):
                return self._read(params, context)
            case "prompts/list" if self._declares("prompts"):
                return self._page("prompts", self.prompts, params)
            case "prompts/get" if self._declares("prompts"):
                return self._get_prompt(params)
            case "completion/complete" if self._declares("completions"):
                return self._complete(params)
            case method:
                status = 404 if context.is_modern else 200
                raise RpcError(METHOD_NOT_FOUND, f"method not found: {method}", status=status)

    def _declares(self, capability: str) -> bool:
        return capability in self.declared_capabilities()

    def _page(self, key: str, entries: list[JSON], params: JSON) -> JSON:
        cursor = params.get("cursor")
        start = 0
        if cursor is not None:
            index = str(cursor).removeprefix(CURSOR)
            if not index.isdecimal() or int(index) >= len(entries):
                raise RpcError(INVALID_PARAMS, f"invalid cursor: {cursor!r}")
            start = int(index)
        end = start + (self.page_size or len(entries))
        page: JSON = {key: entries[start:end]}
        if end < len(entries):
            page["nextCursor"] = f"{CURSOR}{end}"
        return page

    async def _call_tool(self, params: JSON, context: CallContext) -> JSON:
        name = params.get("name")
        if not any(tool["name"] == name for tool in self.tools):
            raise RpcError(INVALID_PARAMS, f"unknown tool: {name!r}")
        if not context.answered:  # else a later round of a call that is counted already
            self.executed[str(name)] += 1
        try:
            return _tool_result(await self.handlers.get(str(name), echo)(params.get("arguments") or {}, context))
        except (RpcError, InputRequired):
            raise
        except Exception as exc:  # noqa: BLE001  # as in the official SDKs, a tool that fails is a result
            self.handler_errors.append(exc)
            return {"content": [_text_block(f"{type(exc).__name__}: {exc}")], "isError": True}

    def _read(self, params: JSON, context: CallContext) -> JSON:
        uri = str(params.get("uri"))
        if any(resource["uri"] == uri for resource in self.resources):
            source = uri
        else:
            templates = (template["uriTemplate"] for template in self.resource_templates)
            found = next((template for template in templates if _template_pattern(template).fullmatch(uri)), None)
            if found is None:
                code = INVALID_PARAMS if context.is_modern else RESOURCE_NOT_FOUND
                raise RpcError(code, f"resource not found: {uri!r}", {"uri": uri})
            source = found
        return {"contents": [{"uri": uri, "mimeType": "text/plain", "text": self.texts.get(source, "")}]}

    def _get_prompt(self, params: JSON) -> JSON:
        name = params.get("name")
        if not any(prompt["name"] == name for prompt in self.prompts):
            raise RpcError(INVALID_PARAMS, f"unknown prompt: {name!r}")
        text = self.prompt_texts.get(str(name), "")
        for argument, value in (params.get("arguments") or {}).items():
            text = text.replace("{" + argument + "}", str(value))
        return {"messages": [{"role": "user", "content": _text_block(text)}]}

    def _complete(self, params: JSON) -> JSON:
        argument = params.get("argument") or {}
        candidates = self.completions.get(str(argument.get("name")), ())
        values = [value for value in candidates if value.startswith(str(argument.get("value", "")))]
        return {"completion": {"values": values, "total": len(values), "hasMore": False}}
