"""What a client's request means to the session, in both eras: the calls, the lists and the completions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from trio_vmcp._protocol.methods import COMPLETE, GET_PROMPT, LIST_KEYS, READ_RESOURCE, TOOLS_CALL, ListMethod
from trio_vmcp.connector import OnProgress
from trio_vmcp.models import JSON
from trio_vmcp.serve._errors import INVALID_PARAMS, METHOD_NOT_FOUND, Refusal
from trio_vmcp.serve._lists import LIST_METHODS, list_page
from trio_vmcp.session import Session

__all__ = ["CALLS", "CAPABILITIES", "MARK", "Call", "perform"]

CALLS = frozenset([TOOLS_CALL, READ_RESOURCE, GET_PROMPT])

# Whatever is connected now, other backends may join later.
CAPABILITIES: JSON = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"listChanged": True, "subscribe": True},
    "logging": {},
    "completions": {},
}
assert {*LIST_KEYS} < {*CAPABILITIES}

# A key of `meta` that says which request of a client a call is for. Keys of MCP's own are not sent to backends.
MARK = "io.modelcontextprotocol/trio-vmcp-exchange"

_NO_OPTIONS: Mapping[str, Any] = {}


class Call(NamedTuple):
    """What a call of a session gets beside name and arguments. A tuple: one is made for every request.

    Attributes:
        mark: Names the request, for the questions and log messages that belong to it.
        on_progress: None: the client did not ask for progress.
        options: Further keywords of `Session.call_tool`, of the stateless era.
    """

    mark: str
    on_progress: OnProgress | None
    options: Mapping[str, Any] = _NO_OPTIONS

    def __repr__(self) -> str:
        return f"Call({self.mark!r})"  # options may be secret

    def keywords(self, params: JSON) -> dict[str, Any]:
        meta = params.get("_meta")
        return {
            "meta": {**(meta if isinstance(meta, dict) else {}), MARK: self.mark},
            "on_progress": self.on_progress,
            **self.options,
        }


def perform(session: Session, method: str, params: JSON, call: Call) -> Awaitable[JSON]:
    """Make the request of a client; the result is as the backend gave it.

    Raises:
        Refusal: The method is unknown, or its params are not as MCP has them.
        VmcpError, ValueError, TypeError: As the methods of `Session`.
    """
    performer = _PERFORMERS.get(method)
    if performer is None:
        raise Refusal(METHOD_NOT_FOUND, f"no method {method[:128]!r} is offered here", status=404)
    return performer(session, params, call)


async def _list(method: ListMethod, session: Session, params: JSON, call: Call) -> JSON:
    return list_page(session, method, params)


async def _call_tool(session: Session, params: JSON, call: Call) -> JSON:
    arguments = _object(params, "arguments")
    return (await session.call_tool(_text(params, "name"), arguments, **call.keywords(params))).raw


async def _get_prompt(session: Session, params: JSON, call: Call) -> JSON:
    arguments = _object(params, "arguments")
    return (await session.get_prompt(_text(params, "name"), arguments, **call.keywords(params))).raw


async def _read_resource(session: Session, params: JSON, call: Call) -> JSON:
    return (await session.read_resource(_text(params, "uri"), **call.keywords(params))).raw


async def _complete(session: Session, params: JSON, call: Call) -> JSON:
    ref, argument, context = (_object(params, key) for key in ("ref", "argument", "context"))
    if ref is None or argument is None:
        raise Refusal(INVALID_PARAMS, "completion/complete needs the objects 'ref' and 'argument'")
    meta = call.keywords(params)["meta"]
    return (await session.complete(ref, argument, context=context, meta=meta)).raw


_Performer: TypeAlias = Callable[[Session, JSON, Call], Awaitable[JSON]]
_PERFORMERS: dict[str, _Performer] = {
    **{name: partial(_list, method) for name, method in LIST_METHODS.items()},
    TOOLS_CALL: _call_tool,
    GET_PROMPT: _get_prompt,
    READ_RESOURCE: _read_resource,
    COMPLETE: _complete,
}


def _text(params: JSON, key: str) -> str:
    value = params.get(key)
    if not isinstance(value, str):
        raise Refusal(INVALID_PARAMS, f"{key!r} is not a string")
    return value


def _object(params: JSON, key: str) -> JSON | None:
    value = params.get(key)
    if value is not None and not isinstance(value, dict):
        raise Refusal(INVALID_PARAMS, f"{key!r} is not an object")
    return value
