"""The `mcpServers` JSON of other MCP clients, read as backends.

Pure: text and environment in, backends or one error line out. The file has no specification. This module reads the
forms that Claude, VS Code, Cursor, Windsurf, Cline, Gemini CLI, Zed and opencode write, and names keys that it does
not understand. Values can be secrets, so messages show names and places, never a value of a header, of the environment,
of a command line or of a url.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

import attrs

from trio_vmcp._header_rules import is_reserved_header
from trio_vmcp._tool_patterns import pattern_problem
from trio_vmcp.models import Backend, Era, ToolOverride, Transport

__all__ = ["ConfigError", "ConfigFile", "parse_config", "read_config"]


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


@attrs.define(eq=False)
class Unexpanded(ConfigError):
    """A variable of one entry has no value here: the entry cannot be used, and the others can.

    Attributes:
        backend_id: The id that the entry would have.
    """

    backend_id: str = ""


@attrs.frozen
class ConfigFile:
    """What a file enables.

    Attributes:
        backends: In the file's order.
        problems: Entries that cannot be used here, because of a variable.
        warnings: Keys that are not understood, each in one line.
    """

    backends: tuple[Backend, ...]
    problems: tuple[Unexpanded, ...] = ()
    warnings: tuple[str, ...] = ()


def read_config(text: str, environment: Mapping[str, str]) -> ConfigFile:
    """The backends that a file enables.

    Args:
        text: JSON under `mcpServers`, `servers`, Zed's `context_servers`, `mcp` (VS Code's settings, opencode) or as a
            bare map; comments and trailing commas are tolerated.
        environment: Values for `${NAME}` in urls, header values, and commands with their args, env and cwd.

    Raises:
        ConfigError: The file is malformed; names the place and the fault.
    """
    path, servers = _servers(_load(text))
    names: dict[str, str] = {}  # id → the name it was made from
    backends: list[Backend] = []
    problems: list[Unexpanded] = []
    warnings: list[str] = []
    for name, raw in servers.items():
        place = _join(path, name)
        entry = _object(raw, place)
        if _switched_off(entry, place):
            continue
        backend_id = _backend_id(name, place)
        if (other := names.setdefault(backend_id, name)) != name:
            raise ConfigError(place, f"has the id {backend_id!r}, like {_join(path, other)}; rename one of them")
        entry = _plain_form(entry, place)
        unknown = [key for key in entry if key not in _KNOWN_KEYS and not key.startswith(("_", "$", "//"))]
        unknown_places = [_join(place, key) for key in unknown] + _unknown_of_tools(entry, place)
        warnings += [f"{each}: is not understood, and has no effect" for each in unknown_places]
        if "command" in entry and any(key in entry for key in _URL_KEYS):
            unused = "url" if _transport(entry, place) == "stdio" else "command"
            warnings.append(f"{_join(place, unused)}: has no effect, since the entry has a url and a command")
        try:
            backends.append(_backend(backend_id, entry, place, environment))
        except Unexpanded as problem:
            problems.append(attrs.evolve(problem, backend_id=backend_id))
    return ConfigFile(tuple(backends), tuple(problems), tuple(warnings))


def parse_config(text: str, environment: Mapping[str, str]) -> tuple[Backend, ...]:
    """`read_config` of a file of which every entry is wanted.

    Raises:
        ConfigError: Names the place and the fault, also of an entry that cannot be used here.
    """
    config = read_config(text, environment)
    if config.problems:
        raise config.problems[0]
    return config.backends


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


_WRAPPERS: Final = ("mcpServers", "servers", "context_servers", "amp.mcpServers", "mcp")


def _servers(document: Any) -> tuple[str, _Object]:
    top = _object(document, "")
    wrapped = [key for key in _WRAPPERS if key in top]
    if len(wrapped) > 1:
        raise ConfigError("", f"holds both {wrapped[0]} and {wrapped[1]}; keep one")
    for key in wrapped:
        servers = _object(top[key], key)
        if key == "mcp" and isinstance(servers.get("servers"), dict):  # VS Code's settings.json
            return "mcp.servers", _object(servers["servers"], "mcp.servers")
        return key, servers
    bare = _Object((name, entry) for name, entry in top.items() if not name.startswith("$"))  # "$schema" is no server
    return "", bare


def _plain_form(entry: _Object, path: str) -> _Object:
    """An entry of Zed's or opencode's form in that of the others."""
    plain = _Object(entry)
    command = entry.get("command")
    if isinstance(command, dict) and "path" in command:  # Zed: {"command": {"path": …, "args": …, "env": …}}
        plain |= {key: command[key] for key in ("args", "env") if key in command} | {"command": command["path"]}
    if isinstance(command, list) and command and entry.get("type") == "local":  # opencode: program and args in one list
        args = entry.get("args")
        plain |= {"command": command[0], "args": [*command[1:], *(args if isinstance(args, list) else ())]}
    if "environment" in entry and "env" not in entry:
        plain["env"] = plain.pop("environment")
    return plain


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
_DENIED_KEYS: Final = ("disabledTools", "excludeTools", "disabled_tools")
_ALLOWED_KEYS: Final = ("enabledTools", "includeTools", "enabled_tools")
# What FastMCP's entries say of single tools, under `tools`. Copilot has a list of names there.
_TOOLS_KEY: Final = "tools"
_TOOL_KEYS: Final = ("name", "title", "description", "annotations", "enabled")
# Variables that a program inherits: this library's name, and those of Codex and Goose.
_INHERIT_KEYS: Final = ("inherit_env", "inheritEnv", "env_vars", "env_keys")
_SECONDS_KEYS: Final = frozenset({"autoApprove", "alwaysAllow"})  # in entries of Cline, Roo Code and Kilo Code
# The time to start, and its unit: in Codex's keys (two of them), in LibreChat's and in Continue's.
_START_KEYS: Final = {
    "startup_timeout_sec": "s",
    "startup_timeout_ms": "ms",
    "initTimeout": "ms",
    "connectionTimeout": "ms",
}
_ERAS: Final[Mapping[str, Era]] = {"auto": "auto", "legacy": "legacy", "modern": "modern"}
# Understood, or of no concern to what a server may do: names, approvals, pictures.
_KNOWN_KEYS: Final = frozenset(
    [
        *_URL_KEYS,
        *("type", "transport", "headers", "command", "args", "env", "cwd", "timeout", "disabled", "enabled", "era"),
        *_DENIED_KEYS,
        *_ALLOWED_KEYS,
        _TOOLS_KEY,
        *_INHERIT_KEYS,
        *_SECONDS_KEYS,
        *_START_KEYS,
        *("name", "description", "comment", "note", "title", "icon", "version", "gallery", "source", "trust", "dev"),
    ]
)
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
        keys = ", ".join(repr(key[:40]) for key in list(entry)[:8])
        raise ConfigError(
            path, f"has no url and no command; its keys are {keys}" if keys else "has no url and no command"
        )
    url = _substitute(_string(url, url_path), url_path, environment)
    headers = _headers(entry, path, environment)
    options = _options(entry, path)
    try:
        if not url.isprintable() or " " in url:
            raise ValueError(url_path)
        return Backend(
            id=backend_id,
            url=url,
            transport=transport,
            headers=headers,
            **options,
        )
    except ConfigError:
        raise
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
        inherit_env=_inherited(entry, path),
        cwd=text(entry["cwd"], _join(path, "cwd")) if entry.get("cwd") else None,
        **_options(entry, path),
    )


def _inherited(entry: _Object, path: str) -> list[str]:
    found: list[str] = []
    for key in _INHERIT_KEYS:
        place = _join(path, key)
        if not isinstance(entry.get(key) or [], list):
            raise ConfigError(place, f"is {_kind(entry[key])}, not a list")
        for number, name in enumerate(entry.get(key) or []):
            if not _string(name, f"{place}[{number}]") or "=" in name or "\0" in name:
                raise ConfigError(f"{place}[{number}]", "is no name of an environment variable")
            found.append(name)
    return found


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


def _options(entry: _Object, path: str) -> dict[str, Any]:
    """The timeouts, the tools that are switched on or off or described anew, and the era."""
    overrides, switched_off = _overrides(entry, path)
    options: dict[str, Any] = {
        "allow_tools": _tools(entry, path, _ALLOWED_KEYS),
        "deny_tools": [*(_tools(entry, path, _DENIED_KEYS) or ()), *switched_off],
        "overrides": overrides,
    }
    options |= _timeouts(entry, path)
    if entry.get("era") is not None:
        era = _ERAS.get(_string(entry["era"], _join(path, "era")))
        if era is None:
            raise ConfigError(_join(path, "era"), "is none of auto, legacy and modern")
        options["era"] = era
    return options


def _tools(entry: _Object, path: str, keys: tuple[str, ...]) -> list[str] | None:
    """The names and patterns under any of these keys; None: there is no such key."""
    found: list[str] | None = None
    if keys is _ALLOWED_KEYS and isinstance(entry.get(_TOOLS_KEY), list):
        keys = (*keys, _TOOLS_KEY)
    for key in keys:
        if entry.get(key) is None:
            continue
        place = _join(path, key)
        if not isinstance(entry[key], list):
            raise ConfigError(place, f"is {_kind(entry[key])}, not a list")
        found = [] if found is None else found
        for number, name in enumerate(entry[key]):
            problem = pattern_problem(_string(name, f"{place}[{number}]"))
            if problem is not None:
                raise ConfigError(f"{place}[{number}]", problem)
            found.append(name)
    return found


def _overrides(entry: _Object, path: str) -> tuple[dict[str, ToolOverride], list[str]]:
    """What `tools` says of single tools, and the names of those that it switches off."""
    said, place = entry.get(_TOOLS_KEY), _join(path, _TOOLS_KEY)
    overrides: dict[str, ToolOverride] = {}
    switched_off: list[str] = []
    if said is None or isinstance(said, list):
        return overrides, switched_off
    own_names: dict[str, str] = {}  # the name that comes of an entry → the own name
    for own, raw in _object(said, place).items():
        at = _join(place, own)
        if not own:
            raise ConfigError(at, "is no name of a tool")
        tool = _object(raw, at)
        if not _is_enabled(tool, at):
            switched_off.append(re.sub(r"[*?[]|^@", r"[\g<0>]", own))  # this name, and no pattern
        overrides[own] = override = ToolOverride(**{key: tool.get(key) for key in _TOOL_KEYS if key != "enabled"})
        if (problem := override.problem) is not None:
            raise ConfigError(f"{at}.{problem[0]}", problem[1])
        name = override.name or own
        if (other := own_names.setdefault(name, own)) != own:
            raise ConfigError(at, f"gets the name {name!r}, like {_join(place, other)}; rename one of them")
    return overrides, switched_off


def _is_enabled(tool: _Object, path: str) -> bool:
    enabled = tool.get("enabled")
    if not isinstance(enabled, bool | None):
        raise ConfigError(_join(path, "enabled"), f"is {_kind(enabled)}, not true or false")
    return enabled is not False


def _unknown_of_tools(entry: _Object, path: str) -> list[str]:
    tools = entry.get(_TOOLS_KEY)
    if not isinstance(tools, dict):
        return []
    place = _join(path, _TOOLS_KEY)
    known = (*_TOOL_KEYS, "comment")
    return [
        _join(_join(place, own), key)
        for own, tool in tools.items()
        for key in (tool if isinstance(tool, dict) else ())
        if key not in known and not key.startswith(("_", "$", "//"))
    ]


def _timeouts(entry: _Object, path: str) -> dict[str, float | None]:
    """`timeout` is that of a call; newer files of opencode have an object there, with one for the start as well."""
    place = _join(path, "timeout")
    both = entry.get("timeout")
    if isinstance(both, _Object):
        both = _object(both, place)
        request, startup = (_duration(both.get(key), _join(place, key)) for key in ("request", "startup"))
        return {"request_timeout": request, "init_timeout": startup}
    request = _duration(both, place, may_be_seconds=True, is_of_cline=not _SECONDS_KEYS.isdisjoint(entry))
    startups = (_duration(entry.get(key), _join(path, key), unit) for key, unit in _START_KEYS.items())
    return {"request_timeout": request, "init_timeout": next((each for each in startups if each is not None), None)}


def _duration(
    value: Any, place: str, unit: str = "ms", *, may_be_seconds: bool = False, is_of_cline: bool = False
) -> float | None:
    """In seconds. Most files have `timeout` in milliseconds; those of Cline, Roo Code and Kilo Code have seconds, an
    hour at most. Under 1000 it is seconds anyway: no call is given less than one.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(place, f"is {_kind(value)}, not a number of {unit}")
    if not 0 < value < 1e12:  # 1e999, too, which `json` reads as infinity
        raise ConfigError(place, f"is not a number of {unit} above 0")
    is_seconds = unit == "s" or (may_be_seconds and (value < 1000 or (value <= 3600 and is_of_cline)))
    return value if is_seconds else value / 1000


# --- variables

_VARIABLE: Final = re.compile(r"\$\{([^}]*)(\}?)|\{(env|file):([^{}]*)\}")  # `{env:NAME}` is opencode's
_VARIABLE_BODY: Final = re.compile(r"(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.ASCII | re.DOTALL)
_BARE: Final = re.compile(r"\$([A-Z_][A-Z0-9_]*)", re.ASCII)  # Gemini CLI's
_INPUT: Final = re.compile(r"input:([A-Za-z0-9_.-]{1,64})", re.ASCII)
_OF_EDITORS: Final = re.compile(
    r"workspaceFolder(?:Basename)?|workspaceRoot|userHome|cwd|pathSeparator|/|extensionPath|file[A-Z]?[A-Za-z]*|"
    r"(?:command|config|workspaceFolder):[A-Za-z0-9_.-]{1,64}",
    re.ASCII,
)


def _substitute(text: str, path: str, environment: Mapping[str, str]) -> str:
    """Fill in `${NAME}`, `${env:NAME}` and `${NAME:-default}`; the default also replaces an empty value. A text that is
    `$NAME` alone is filled in, too: inside of a text, a dollar may be part of a password.

    Raises:
        Unexpanded: A variable has no value here.
    """

    def fill(match: re.Match[str]) -> str:
        if match[3] == "file":
            raise Unexpanded(path, "holds {file:...}, which is not read; use an environment variable")
        inside = match[1] if match[3] is None else match[4]
        body = _VARIABLE_BODY.fullmatch(inside) if match[2] or match[3] else None
        if match[2] and (asked := _INPUT.fullmatch(inside)):
            raise Unexpanded(path, f"holds ${{input:{asked[1]}}}, which an editor asks its user for; use ${{env:NAME}}")
        if match[2] and _OF_EDITORS.fullmatch(inside) and inside not in environment:
            raise Unexpanded(path, f"holds ${{{inside}}}, which only an editor knows; write what it stands for")
        if body is None:  # the message does not show it: the text between the braces may be part of a secret
            raise Unexpanded(path, "holds a ${...} that is none of ${NAME}, ${env:NAME} and ${NAME:-default}")
        name, default = body.groups()
        value = environment.get(name)
        if default is not None:
            return value or default
        if value is None:
            raise Unexpanded(path, f"needs the environment variable {name}, which is not set")
        return value

    if bare := _BARE.fullmatch(text):
        text = f"${{{bare[1]}}}"
    return _VARIABLE.sub(fill, text)
