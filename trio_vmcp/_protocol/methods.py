"""Every MCP method and notification that this library knows, in one table. A new method begins here.

Sources: the schemas of MCP 2025-11-25 and 2026-07-28; for `Mcp-Name`, 2026-07-28, transports, "Standard headers"; for
questions, 2026-07-28, "Multi round-trip requests"; for what may be kept, 2026-07-28, "Caching".
"""

from __future__ import annotations

from typing import Literal, TypeAlias, TypeGuard

import attrs

from trio_vmcp.models import JSON

__all__ = [
    "ACKNOWLEDGED",
    "CANCELLED",
    "CLIENT_CAPABILITIES",
    "COMPLETE",
    "DISCOVER",
    "ELICITATION_COMPLETE",
    "GET_PROMPT",
    "INITIALIZE",
    "INITIALIZED",
    "INPUT_RESPONSES",
    "KINDS",
    "LISTEN",
    "LISTS",
    "LIST_CHANGED",
    "LIST_KEYS",
    "LOG_LEVEL",
    "LOG_LEVELS",
    "MESSAGE",
    "METHODS",
    "MOST_STALE_PAGES",
    "PING",
    "PROGRESS",
    "QUESTIONS",
    "READ_RESOURCE",
    "REQUEST_STATE",
    "RESOURCE_UPDATED",
    "ROOTS_CHANGED",
    "SET_LEVEL",
    "SUBSCRIBE",
    "SUBSCRIPTION_ID",
    "TOOLS_CALL",
    "TOOLS_LIST",
    "UNKNOWN",
    "UNSUBSCRIBE",
    "USEFUL",
    "Kind",
    "ListMethod",
    "Method",
    "changing_kinds",
    "declares",
    "is_severe",
    "may_repeat",
]

Kind: TypeAlias = Literal["tools", "resources", "prompts"]
"""A kind of list, and the capability of that name. "resources" includes resource templates."""

MOST_STALE_PAGES = 3  # of a list, in a row, that bring nothing new: a cursor that is stuck brings them for ever

KINDS: tuple[Kind, ...] = ("tools", "resources", "prompts")

# Notifications of a server.
LIST_CHANGED: dict[Kind, str] = {kind: f"notifications/{kind}/list_changed" for kind in KINDS}
RESOURCE_UPDATED = "notifications/resources/updated"
MESSAGE = "notifications/message"
PROGRESS = "notifications/progress"
CANCELLED = "notifications/cancelled"  # of both sides
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
ELICITATION_COMPLETE = "notifications/elicitation/complete"
# A stream that is held open for notifications was of use if one of these arrived by it.
USEFUL = frozenset([*LIST_CHANGED.values(), RESOURCE_UPDATED, MESSAGE, ELICITATION_COMPLETE])
# Of a client.
INITIALIZED = "notifications/initialized"
ROOTS_CHANGED = "notifications/roots/list_changed"

# Members of `notifications` in `subscriptions/listen` and in its acknowledgement.
LIST_KEYS: dict[str, str] = {kind: f"{kind}ListChanged" for kind in KINDS}

# In `_meta` of the messages of a subscription: the id of its request.
SUBSCRIPTION_ID = "io.modelcontextprotocol/subscriptionId"

# In `_meta` of each request of the modern era: what its sender can answer, and how severe log messages have to be.
CLIENT_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
LOG_LEVEL = "io.modelcontextprotocol/logLevel"
LOG_LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")  # RFC 5424 §6.2.1

# In the params of a request of the modern era that goes on after an `input_required` result.
INPUT_RESPONSES, REQUEST_STATE = "inputResponses", "requestState"

# Requests of a server, and the handler that answers each. No handler is needed for `ping`.
PING = "ping"
QUESTIONS = {"sampling/createMessage": "sampling", "elicitation/create": "elicitation", "roots/list": "roots"}


@attrs.frozen(kw_only=True, eq=False)
class Method:
    """A request that a client sends.

    Attributes:
        name: The JSON-RPC method.
        needs: The server capability without which this must not be sent, as a path; empty: none, since the library
            sends
            this method only for entries that the server has listed.
        named_by: The member of `params` that is repeated in the header `Mcp-Name`; None: there is no such header.
        may_ask_back: The server may ask its client something before it answers: in the handshake era with requests of
            its own, in the modern era with an `input_required` result.
        array: The member of the result that holds an array; empty: there is none.
        object: The member of the result that holds an object; empty: there is none.
        may_be_kept: The result may be cached (`ttlMs`, `cacheScope`).
        outdated_by: The notification after which a kept result is not fresh any more.
        may_repeat: Twice does no more than once, so a request that may be lost is sent again. A tool may do anything,
            and its annotations are only hints (2025-11-25, server/tools).
    """

    name: str
    needs: tuple[str, ...] = ()
    named_by: str | None = None
    may_ask_back: bool = False
    array: str = ""
    object: str = ""
    may_be_kept: bool = False
    outdated_by: str | None = None
    may_repeat: bool = True


@attrs.frozen(kw_only=True, eq=False)
class ListMethod(Method):
    """A request for one page of a list.

    Attributes:
        kind: The kind of list; the server capability of this name is needed.
        key: The member of an entry that names the entry.
        is_optional: A server that declares the capability need not have this method.
        kept_as: The attribute of a listing that holds the entries.
    """

    kind: Kind
    key: str
    is_optional: bool = True
    kept_as: str


def _list(name: str, kind: Kind, array: str, key: str) -> ListMethod:
    return ListMethod(
        name=name,
        kind=kind,
        array=array,
        key=key,
        is_optional=kind != "tools",
        may_be_kept=True,
        outdated_by=LIST_CHANGED[kind],
        kept_as="resource_templates" if array == "resourceTemplates" else array,
    )


INITIALIZE, DISCOVER, LISTEN = "initialize", "server/discover", "subscriptions/listen"
TOOLS_CALL, GET_PROMPT, READ_RESOURCE = "tools/call", "prompts/get", "resources/read"
TOOLS_LIST = "tools/list"
SUBSCRIBE, UNSUBSCRIBE = "resources/subscribe", "resources/unsubscribe"
COMPLETE = "completion/complete"
SET_LEVEL = "logging/setLevel"  # of the handshake era

LISTS: tuple[ListMethod, ...] = (
    _list(TOOLS_LIST, "tools", "tools", "name"),
    _list("resources/list", "resources", "resources", "uri"),
    _list("resources/templates/list", "resources", "resourceTemplates", "uriTemplate"),
    _list("prompts/list", "prompts", "prompts", "name"),
)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(name=INITIALIZE),
        Method(name=DISCOVER, may_be_kept=True),
        Method(name=LISTEN),
        *LISTS,
        Method(name=TOOLS_CALL, named_by="name", may_ask_back=True, array="content", may_repeat=False),
        Method(name=GET_PROMPT, named_by="name", may_ask_back=True, array="messages"),
        Method(
            name=READ_RESOURCE,
            named_by="uri",
            may_ask_back=True,
            array="contents",
            may_be_kept=True,
            outdated_by=RESOURCE_UPDATED,
        ),
        Method(name=SUBSCRIBE, needs=("resources", "subscribe")),
        Method(name=UNSUBSCRIBE, needs=("resources", "subscribe")),
        Method(name=COMPLETE, needs=("completions",), object="completion"),
        Method(name=SET_LEVEL, needs=("logging",)),
    )
}
UNKNOWN = Method(name="", may_repeat=False)  # a method that is not in the table is sent as it is


def may_repeat(method: str) -> bool:
    """Whether a request of this method may be sent again although it may have been applied."""
    return METHODS.get(method, UNKNOWN).may_repeat


def is_severe(level: object, least: str) -> bool:
    """Whether a log message is of this severity or a higher one; a level that is unknown counts as one."""
    return level not in LOG_LEVELS or LOG_LEVELS.index(str(level)) >= LOG_LEVELS.index(least)


def declares(capabilities: JSON, path: tuple[str, ...]) -> bool:
    """Whether a server declares a capability, or a flag in one: ("tools",), ("resources", "subscribe")."""
    first, *flags = path
    declared = capabilities.get(first)
    if not flags:
        return declared is not None
    return _is_object(declared) and all(declared.get(flag) is True for flag in flags)


def changing_kinds(capabilities: JSON) -> tuple[Kind, ...]:
    """The kinds of lists that a server declares `listChanged` for."""
    return tuple(kind for kind in KINDS if declares(capabilities, (kind, "listChanged")))


def _is_object(value: object) -> TypeGuard[JSON]:
    return isinstance(value, dict)
