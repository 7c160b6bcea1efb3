"""The modern era (2026-07-28): no handshake, no session; each request says who asks, and closing its response cancels
it.
"""

from __future__ import annotations

import logging

import attrs

from trio_vmcp._outbound import begin_request, note_written, preparing
from trio_vmcp.client._client import CLIENT_INFO, StreamableClient, declared_capabilities
from trio_vmcp.client._era import HEADER_MISMATCH, MODERN_VERSION
from trio_vmcp.client._headers import BadParamHeader, ParamHeaders, encode_header_value, param_headers
from trio_vmcp.client._http import Headers
from trio_vmcp.client._jsonrpc import Request, Result, encode_request
from trio_vmcp.client._rounds import finish_rounds, is_complete
from trio_vmcp.client._streamable import Answer, Interrupted, OnOther, ignore_other, refusal
from trio_vmcp.errors import BackendUnavailable
from trio_vmcp.identity import Identity
from trio_vmcp.models import JSON

__all__ = ["ModernClient"]

logger = logging.getLogger("trio_vmcp.client")

# Of log messages, where somebody takes them; without it "the server MUST NOT send" any.
LOG_LEVEL = "info"
# Which member of `params` a gateway on the way may route by (2026-07-28, transports: standard headers).
_NAMED_BY = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}


@attrs.define(eq=False, kw_only=True)
class ModernClient(StreamableClient):
    """One backend of the modern era."""

    _max_pages: int = attrs.field(alias="max_pages")
    _max_tools: int = attrs.field(alias="max_tools")
    _reserved: JSON = attrs.field(init=False, repr=False)  # what every request says of its sender, in `_meta`
    # Of the tools in the last listing that mirror arguments in headers.
    _param_headers: dict[str, ParamHeaders] = attrs.field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._reserved = {
            "io.modelcontextprotocol/protocolVersion": MODERN_VERSION,
            "io.modelcontextprotocol/clientCapabilities": self._requests.capabilities,
            "io.modelcontextprotocol/clientInfo": CLIENT_INFO,
        }
        if self._requests.handling.has_log:
            self._reserved["io.modelcontextprotocol/logLevel"] = LOG_LEVEL

    async def discover(self, identity: Identity | None) -> Answer:
        """`server/discover`, whatever the answer; `adopt` takes a good one."""
        begin_request("server/discover")
        return await self._send(next(self._ids), "server/discover", {}, identity, ignore_other)

    def adopt(self, result: JSON) -> None:
        """Take over what the server declared.

        Raises:
            BackendProtocolError, MessageTooLarge: Its capabilities cannot be kept.
        """
        capabilities = declared_capabilities(self._http.backend_id, "server/discover", result)
        self.record = attrs.evolve(self.record, server_capabilities=capabilities)

    async def aclose(self, *, terminate: bool) -> None:
        self._requests.close()
        await self._http.link.aclose()

    async def _exchange(
        self, message_id: int, method: str, params: JSON, identity: Identity | None, on_other: OnOther
    ) -> JSON:
        result = await self._ask(message_id, method, params, identity, on_other)
        if not is_complete(self._http.backend_id, method, result):

            async def ask_again(more: JSON) -> JSON:
                return await self._ask(next(self._ids), method, more, identity, on_other)

            result = await finish_rounds(result, method, params, ask_again, self._requests.handling, identity)
        return self._with_usable_tools(result) if method == "tools/list" else result

    async def _ask(
        self, message_id: int, method: str, params: JSON, identity: Identity | None, on_other: OnOther
    ) -> JSON:
        """One request, and its result as it came."""
        answer = await self._send(message_id, method, params, identity, on_other)
        if method == "tools/call" and getattr(answer.outcome, "code", None) == HEADER_MISMATCH:
            # Our copy of the schema is old. "Refetch and retry once": the error proves that the call did not run.
            with preparing(method):
                await self._list_tools_again(identity)
            answer = await self._send(next(self._ids), method, params, identity, on_other)
        outcome = answer.outcome
        if isinstance(outcome, Interrupted):
            raise BackendUnavailable(
                self._http.backend_id, f"closed the stream before it answered {method!r}", may_have_executed=True
            )
        if not isinstance(outcome, Result):
            note_written(False)
            raise refusal(self._http.backend_id, method, outcome)
        return outcome.result

    async def _send(
        self, message_id: int, method: str, params: JSON, identity: Identity | None, on_other: OnOther
    ) -> Answer:
        data = encode_request(message_id, method, params | {"_meta": params.get("_meta", {}) | self._reserved})
        headers = [
            (b"MCP-Protocol-Version", MODERN_VERSION.encode()),
            (b"Mcp-Method", method.encode()),
            *self._mirrored(method, params),  # after the encoding, which refuses what is no text
        ]
        return await self._http.ask(message_id, data, headers, identity=identity, on_other=on_other)

    def _mirrored(self, method: str, params: JSON) -> Headers:
        headers: Headers = []
        if method in _NAMED_BY:
            name = params[_NAMED_BY[method]]
            headers.append((b"Mcp-Name", encode_header_value(name).encode()))
            if method == "tools/call" and name in self._param_headers:
                encoded = self._param_headers[name].encode(params.get("arguments", {}))
                headers += [(header.encode(), value.encode()) for header, value in encoded]
        return headers

    def _with_usable_tools(self, page: JSON) -> JSON:
        """Without the tools whose `x-mcp-header` annotation is invalid: clients MUST NOT call those; the others
        stay.
        """
        tools = page.get("tools")
        if not isinstance(tools, list):
            return page
        bad: list[str] = []
        usable = [tool for tool in tools if self._learn(tool, bad)]
        if bad:
            more = f", and {len(bad) - 1} more" if bad[1:] else ""
            logger.warning("backend %r: dropped tool %s%s", self._http.backend_id, bad[0], more)
        return page | {"tools": usable}

    def _learn(self, tool: object, bad: list[str]) -> bool:
        """Note the headers of one tool. False, and an entry in `bad`: it has to be dropped."""
        schema = tool.get("inputSchema") if isinstance(tool, dict) else None
        name = tool.get("name") if isinstance(tool, dict) else None
        if not isinstance(schema, dict) or not isinstance(name, str):
            return True  # whatever else is wrong with it is for the listing to say
        try:
            mirrored = param_headers(schema)
        except BadParamHeader as exc:
            bad.append(f"{name[:128]!r}: its input schema {exc}")
            return False
        # Limited here, too: unlike a listing, the lists that are fetched again are counted by nobody.
        if mirrored.paths and (name in self._param_headers or len(self._param_headers) < self._max_tools):
            self._param_headers[name] = mirrored
        else:
            self._param_headers.pop(name, None)
        return True

    async def _list_tools_again(self, identity: Identity | None) -> None:
        cursor: object = None
        pages = 0
        while pages < self._max_pages:
            pages += 1
            params = {} if cursor is None else {"cursor": cursor}
            page = await self._exchange(next(self._ids), "tools/list", params, identity, ignore_other)
            cursor = page.get("nextCursor")
            if cursor is None:
                return

    def _give_up(self, message_id: int, identity: Identity | None, reason: str) -> None:
        """Nothing to send: the response stream was closed, and "closing the stream is the cancellation"."""

    def _on_request(self, message: Request, identity: Identity | None) -> None:
        # "Servers MUST NOT send requests" on a response stream of this era.
        logger.warning("backend %r: ignored a request on a response stream", self._http.backend_id)
