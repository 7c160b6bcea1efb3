"""The `mcpServers` JSON of other MCP clients, read as backends.

Pure: text and environment in, backends or one error line out. The file has no specification. This module reads the
forms that Claude, VS Code, Cursor, Windsurf, Cline and Gemini CLI write, and ignores keys that are not about reaching a
server. Values can be secrets, so messages show names and places, never a value of a header, of the environment, of a
command line or of a url.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

import attrs

from trio_vmcp._header_rules import is_reserved_header
from trio_vmcp.models import Backend, Transport

__all__ = ["ConfigError", "parse_config"]


@attrs.define(eq=False)
class ConfigError(ValueError):
    """A configuration file that cannot be used.

    Attributes:
        path: The place inside the JSON, such as `mcpServers.time.url`; empty: the whole file.
        detail: The fault at that place; follows it in the message.
        line, column: The position at which the text stops being JSON, from 1; 0 if all of it is JSON.
    """

    path: str
    detail: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}" if self.path else self.detail

    def in_file(self, name: str) -> str:
        """The line to print, in the form that editors turn into a link."""
        return f"{name}:{self.line}:{self.column}: {self}" if self.line else f"{name}: {self}"


class _Object(dict[str, Any]):
    """A JSON object that remembers a repeated key; `json` alone keeps the last value and says nothing."""

    repeated: str | None = None


def parse_config(text: str, environment: Mapping[str, str]) -> tuple[Backend, ...]:
    """The backends that a file enables, in its order.

    Args:
        text: JSON under `mcpServers`, `servers` or as a bare map; comments and trailing commas are tolerated.
        environment: Values for `${NAME}` in urls, header values, and commands with their args, env and cwd.

    Raises:
        ConfigError: Names the place and the fault.
    """
    path, servers = _servers(_load(text))
    names: dict[str, str] = {}  # id → the name it was made from
    backends = []
    for name, raw in servers.items():
        place = _join(path, name)
        entry = _object(raw, place)
        if _switched_off(entry, place):
            continue
        backend_id = _backend_id(name, place)
        if (other := names.setdefault(backend_id, name)) != name:
            raise ConfigError(place, f"has the id {backend_id!r}, like {_join(path, other)}; rename one of them")
        backends.append(_backend(backend_id, entry, place, environment))
    return tuple(backends)


# --- text to JSON

# Strings are matched first, so that `//` in a url does not begin a comment. A string without its closing quote extends
# to the end of the text, and `json` reports it.
_STRING: Final = r'"(?:[^"\\]++|\\.)*+(?:"|\Z)'
_COMMENT: Final = re.compile(_STRING + r"|//[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_TRAILING_COMMA: Final = re.compile(_STRING + r"|,(?=\s*[}\]])", re.DOTALL)


def _load(text: str) -> Any:
    text = text.removeprefix("\ufeff")
    try:
        plain = _TRAILING_COMMA.sub(_blank, _COMMENT.sub(_blank, text))
        return json.loads(plain, object_pairs_hook=_build_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as exc:
        raise ConfigError("", f"not JSON: {exc.msg}", exc.lineno, exc.colno) from None
    except RecursionError:
        raise ConfigError("", "not a configuration: nested too deeply") from None
    except ValueError:  # a constant, or more digits than Python converts
        raise ConfigError("", "not JSON: holds a number that JSON does not have, or an endless one") from None


def _blank(match: re.Match[str]) -> str:
    """Spaces of the same length in place of a comment or comma, so that lines and columns in errors stay right."""
    found = match[0]
    if found.startswith('"'):
        return found
    if found.startswith("/*") and not (found.endswith("*/") and len(found) >= len("/**/")):
        raise json.JSONDecodeError("the comment is not closed", match.string, match.start())
    return re.sub(r"[^\n]", " ", found)


def _build_object(pairs: list[tuple[str, Any]]) -> _Object:
    built = _Object()
    for key, value in pairs:
        if key in built:
            built.repeated = key
        built[key] = value
    return built


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


# --- places and kinds

_KINDS: Final = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}


def _join(path: str, key: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_$@/-]+", key, re.ASCII):
        return f"{path}.{key}" if path else key
    return f"{path}[{json.dumps(key)}]"  # escapes line breaks and control characters


def _kind(value: object) -> str:
    return next((word for kind, word in _KINDS.items() if isinstance(value, kind)), "a number")


def _object(value: Any, path: str) -> _Object:
    if not isinstance(value, _Object):
        raise ConfigError(path, f"is {_kind(value)}, not an object")
    if value.repeated is not None:
        raise ConfigError(_join(path, value.repeated), "is there twice")
    return value


def _string(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(path, f"is {_kind(value)}, not a string")
    return value


def _servers(document: Any) -> tuple[str, _Object]:
    top = _object(document, "")
    wrapped = [key for key in ("mcpServers", "servers") if key in top]
    if len(wrapped) > 1:
        raise ConfigError("", "holds both mcpServers and servers; keep one")
    for key in wrapped:
        return key, _object(top[key], key)
    bare = _Object((name, entry) for name, entry in top.items() if not name.startswith("$"))  # "$schema" is no server
    return "", bare


# --- one entry

_URL_KEYS: Final = ("httpUrl", "url", "serverUrl")  # in this order: Gemini CLI, which has two of them, prefers httpUrl
_TRANSPORT_SPELLINGS: Final[Mapping[str, Transport]] = {
    "http": "streamable-http",
    "httpstream": "streamable-http",
    "httpstreamable": "streamable-http",
    "httpstreaming": "streamable-http",
    "remote": "streamable-http",
    "streamable": "streamable-http",
    "streamablehttp": "streamable-http",
    "httpsse": "sse",
    "serversentevents": "sse",
    "sse": "sse",
    "command": "stdio",
    "local": "stdio",
    "stdio": "stdio",
}
_MAX_ID_LENGTH: Final = 64
# RFC 9110 §5.6.2 (name) and §5.5 (value), without obs-text (0x80-0xFF), which has no defined encoding.
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_FIELD_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?|")


def _switched_off(entry: _Object, path: str) -> bool:
    for key, off in (("disabled", True), ("enabled", False)):
        if not isinstance(entry.get(key, False), bool):
            raise ConfigError(_join(path, key), f"is {_kind(entry[key])}, not true or false")
        if entry.get(key) is off:
            return True
    return False


def _backend_id(name: str, path: str) -> str:
    """An id made from the name: accents removed, every run of other characters replaced by one hyphen."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    backend_id = re.sub(r"[^A-Za-z0-9_.-]+", "-", letters, flags=re.ASCII).lstrip("_.-")
    if backend_id != name:
        backend_id = backend_id.rstrip("-")
    if not backend_id:
        raise ConfigError(path, "has no letter or digit of ASCII in its name to make an id from; rename it")
    if len(backend_id) > _MAX_ID_LENGTH:
        raise ConfigError(path, f"makes an id of {len(backend_id)} characters, over {_MAX_ID_LENGTH}; rename it")
    return backend_id


def _backend(backend_id: str, entry: _Object, path: str, environment: Mapping[str, str]) -> Backend:
    transport = _transport(entry, path)
    url_path, url = next(((_join(path, key), entry[key]) for key in _URL_KEYS if key in entry), ("", None))
    if transport == "stdio":
        return _process(backend_id, entry, path, environment)
    if not url_path:
        raise ConfigError(path, "has no url")
    url = _substitute(_string(url, url_path), url_path, environment)
    headers = _headers(entry, path, environment)
    timeout = _seconds(entry, path)
    try:
        if not url.isprintable() or " " in url:
            raise ValueError(url_path)
        return Backend(id=backend_id, url=url, transport=transport, headers=headers, request_timeout=timeout)
    except ValueError:  # about the url, the only unchecked field; its text shows the url, which may be secret
        raise ConfigError(url_path, "is not an http:// or https:// URL with a host") from None


def _process(backend_id: str, entry: _Object, path: str, environment: Mapping[str, str]) -> Backend:
    if entry.get("command") is None:
        raise ConfigError(path, "has no command")

    def text(value: Any, place: str) -> str:
        filled = _substitute(_string(value, place), place, environment)
        if "\0" in filled:
            raise ConfigError(place, "holds NUL, which no process can be given")
        return filled

    command_path, args_path, env_path = _join(path, "command"), _join(path, "args"), _join(path, "env")
    command = text(entry["command"], command_path)
    if not command:
        raise ConfigError(command_path, "is empty")
    args = [] if entry.get("args") is None else entry["args"]
    if not isinstance(args, list):
        raise ConfigError(args_path, f"is {_kind(args)}, not a list")
    env = {} if entry.get("env") is None else _object(entry["env"], env_path)
    for name in env:
        if not name or "=" in name or "\0" in name:
            raise ConfigError(_join(env_path, name), "is no name of an environment variable")
    return Backend(
        id=backend_id,
        transport="stdio",
        command=command,
        args=[text(arg, f"{args_path}[{number}]") for number, arg in enumerate(args)],
        env={name: text(value, _join(env_path, name)) for name, value in env.items()},
        cwd=text(entry["cwd"], _join(path, "cwd")) if entry.get("cwd") else None,
        request_timeout=_seconds(entry, path),
    )


def _transport(entry: _Object, path: str) -> Transport:
    for key in ("type", "transport"):
        if entry.get(key) is not None:
            place = _join(path, key)
            written = _string(entry[key], place)
            known = _TRANSPORT_SPELLINGS.get(re.sub(r"[^a-z]", "", written.lower()))
            if known is None:
                detail = f"is {written[:40]!r}, which is no known transport; use streamable-http, sse or stdio"
                raise ConfigError(place, detail)
            return known
    has_url = any(key in entry for key in _URL_KEYS)
    return "stdio" if "command" in entry and not has_url else "streamable-http"


def _headers(entry: _Object, path: str, environment: Mapping[str, str]) -> dict[str, str]:
    if entry.get("headers") is None:
        return {}
    path = _join(path, "headers")
    headers = {}
    for name, raw in _object(entry["headers"], path).items():
        place = _join(path, name)
        if not _FIELD_NAME.fullmatch(name):
            raise ConfigError(place, "is no HTTP header name")
        if is_reserved_header(name):  # many files set Content-Type and Accept, which this library sets itself
            continue
        value = _substitute(_string(raw, place), place, environment).strip(" \t")
        if not _FIELD_VALUE.fullmatch(value):
            raise ConfigError(place, "holds a line break, a control character or one outside ASCII")
        headers[name] = value
    return headers


def _seconds(entry: _Object, path: str) -> float | None:
    """`timeout` in seconds; the files have it in milliseconds."""
    milliseconds = entry.get("timeout")
    if milliseconds is None:
        return None
    place = _join(path, "timeout")
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        raise ConfigError(place, f"is {_kind(milliseconds)}, not a number of ms")
    if not 0 < milliseconds < 1e12:  # 1e999, too, which `json` reads as infinity
        raise ConfigError(place, "is not a number of ms above 0")
    return milliseconds / 1000


# --- variables

_VARIABLE: Final = re.compile(r"\$\{([^}]*)(\}?)")
_VARIABLE_BODY: Final = re.compile(r"(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.ASCII | re.DOTALL)


def _substitute(text: str, path: str, environment: Mapping[str, str]) -> str:
    """Fill in `${NAME}`, `${env:NAME}` and `${NAME:-default}`; the default also replaces an empty value."""

    def fill(match: re.Match[str]) -> str:
        body = _VARIABLE_BODY.fullmatch(match[1]) if match[2] else None
        if body is None:  # the message does not show it: the text between the braces may be part of a secret
            raise ConfigError(path, "holds a ${...} that is none of ${NAME}, ${env:NAME} and ${NAME:-default}")
        name, default = body.groups()
        value = environment.get(name)
        if default is not None:
            return value or default
        if value is None:
            raise ConfigError(path, f"needs the environment variable {name}, which is not set")
        return value

    return _VARIABLE.sub(fill, text)
