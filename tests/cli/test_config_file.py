"""`mcpServers` files as other clients have them, and one line about a file that cannot be used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_vmcp._cli.config_file import ConfigError, parse_config, read_config
from trio_vmcp.models import Backend, ToolOverride

URL = "https://mcp.test/mcp"
CANARY = "c4nary-s3cret"


def parse_one(entry: dict[str, Any], **environment: str) -> Backend:
    (backend,) = parse_config(json.dumps({"mcpServers": {"time": entry}}), environment)
    return backend


def refusal(text: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, environment)
    return caught.value.in_file("mcp.json")


@pytest.mark.parametrize(
    "document",
    [
        {"mcpServers": {"time": {"url": URL}}},
        {"servers": {"time": {"url": URL}}, "inputs": []},
        {"time": {"url": URL}},
        {"$schema": "https://example.test/schema.json", "time": {"url": URL}},
    ],
)
def test_servers_are_found_under_either_key_and_bare(document: Any) -> None:
    """A file that is written for another client is read as it is."""
    assert (Backend(id="time", url=URL),) == parse_config(json.dumps(document), {})


@pytest.mark.parametrize("key", ["url", "serverUrl", "httpUrl"])
def test_every_url_key_is_known(key: str) -> None:
    """An entry with any of the three keys and no type is streamable HTTP."""
    assert Backend(id="time", url=URL, transport="streamable-http") == parse_one({key: URL})


@pytest.mark.parametrize("key", ["type", "transport"])
@pytest.mark.parametrize(
    ("spelling", "transport"),
    [
        ("http", "streamable-http"),
        ("streamable-http", "streamable-http"),
        ("streamableHttp", "streamable-http"),
        ("streamable_http", "streamable-http"),
        ("Streamable HTTP", "streamable-http"),
        ("http-stream", "streamable-http"),
        ("remote", "streamable-http"),
        ("sse", "sse"),
        ("SSE", "sse"),
        ("http+sse", "sse"),
    ],
)
def test_transports_have_many_spellings(key: str, spelling: str, transport: str) -> None:
    """Case and punctuation make no difference."""
    assert transport == parse_one({key: spelling, "url": URL}).transport


def test_a_timeout_is_in_milliseconds() -> None:
    """2500 in the file is 2.5 s."""
    assert 2.5 == parse_one({"url": URL, "timeout": 2500}).request_timeout


@pytest.mark.parametrize("switch", [{"disabled": True}, {"enabled": False}])
def test_a_disabled_server_is_left_out_whatever_else_it_says(switch: dict[str, bool]) -> None:
    """A disabled server need not be usable: it may be of a kind that is not supported, or lack a variable."""
    servers = {"a": {"command": "npx", **switch}, "b": {"url": "${NOWHERE}", **switch}, "c": {"url": URL}}
    assert ["c"] == [backend.id for backend in parse_config(json.dumps(servers), {})]


def test_an_enabled_server_may_say_so() -> None:
    """`disabled: false` and `enabled: true` are accepted."""
    assert "time" == parse_one({"url": URL, "disabled": False, "enabled": True}).id


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Bearer ${TOKEN}", "Bearer abc"),
        ("${env:TOKEN}${TOKEN}", "abcabc"),
        ("${TOKEN:-other}", "abc"),
        ("${NOWHERE:-other}", "other"),
        ("${EMPTY:-other}", "other"),
        ("${EMPTY}x", "x"),
        ("${env:NOWHERE:-}x", "x"),
        ("${NESTED}", "${TOKEN}"),
        ("$TOKEN {TOKEN}", "$TOKEN {TOKEN}"),
    ],
)
def test_variables_are_filled_in_once(written: str, meant: str) -> None:
    """As in a shell: the value of a variable is not expanded again."""
    backend = parse_one({"url": URL, "headers": {"X": written}}, TOKEN="abc", EMPTY="", NESTED="${TOKEN}")
    assert {"X": meant} == dict(backend.headers)


def test_variables_work_in_urls() -> None:
    """Host and path may come from the environment."""
    assert URL == parse_one({"url": "https://${HOST}/mcp"}, HOST="mcp.test").url


def test_comments_and_trailing_commas_are_tolerated() -> None:
    """Both kinds of comment, but not inside of strings."""
    text = """\ufeff{ // the servers
        /* all
           of them */ "mcpServers": {
            "time": {"url": "https://mcp.test/mcp", "headers": {"X": "a//b /* c */ ,} \\" // d",},}, // the end
        },
    }"""
    (backend,) = parse_config(text, {})
    assert (URL, 'a//b /* c */ ,} " // d') == (backend.url, backend.headers["X"])


def test_names_become_ids() -> None:
    """Accents are removed, and any other run of characters that an id cannot hold becomes one hyphen; a valid
    id stays.
    """
    names = ["time.v2_x-", "GitHub (work)", "@scope/pkg", "Büro", "_hidden", "a  b"]
    backends = parse_config(json.dumps({name: {"url": URL} for name in names}), {})
    assert ["time.v2_x-", "GitHub-work", "scope-pkg", "Buro", "hidden", "a-b"] == [backend.id for backend in backends]


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ([], "mcp.json: is a list, not an object"),
        ({"mcpServers": 1}, "mcp.json: mcpServers: is a number, not an object"),
        ({"mcpServers": {}, "servers": {}}, "mcp.json: holds both mcpServers and servers; keep one"),
        ({"servers": {"a b": None}}, 'mcp.json: servers["a b"]: is null, not an object'),
        ({"a\nb": "x"}, 'mcp.json: ["a\\nb"]: is a string, not an object'),
        ({"a": {}}, "mcp.json: a: has no url and no command"),
        ({"a": {"comand": "npx"}}, "mcp.json: a: has no url and no command; its keys are 'comand'"),
        ({"a": {"url": 3}}, "mcp.json: a.url: is a number, not a string"),
        ({"a": {"url": "ftp://x/"}}, "mcp.json: a.url: is not an http:// or https:// URL with a host"),
        ({"a": {"httpUrl": "http://x/\n"}}, "mcp.json: a.httpUrl: is not an http:// or https:// URL with a host"),
        ({"a": {"url": "http://[x/"}}, "mcp.json: a.url: is not an http:// or https:// URL with a host"),
        ({"a": {"url": URL, "disabled": "no"}}, "mcp.json: a.disabled: is a string, not true or false"),
        ({"a": {"url": URL, "timeout": True}}, "mcp.json: a.timeout: is true or false, not a number of ms"),
        ({"a": {"url": URL, "timeout": 0}}, "mcp.json: a.timeout: is not a number of ms above 0"),
        ({"a": {"url": URL, "headers": []}}, "mcp.json: a.headers: is a list, not an object"),
        ({"a": {"url": URL, "headers": {"X": 1}}}, "mcp.json: a.headers.X: is a number, not a string"),
        ({"a": {"url": URL, "headers": {"X Y": ""}}}, 'mcp.json: a.headers["X Y"]: is no HTTP header name'),
        ({"a": {"url": "${NOPE}"}}, "mcp.json: a.url: needs the environment variable NOPE, which is not set"),
        (
            {"\u6642": {"url": URL}},
            'mcp.json: ["\\u6642"]: has no letter or digit of ASCII in its name to make an id from; rename it',
        ),
        ({"x" * 65: {"url": URL}}, f"mcp.json: {'x' * 65}: makes an id of 65 characters, over 64; rename it"),
        (
            {"a b": {"url": URL}, "a/b": {"url": URL}},
            "mcp.json: a/b: has the id 'a-b', like [\"a b\"]; rename one of them",
        ),
        (
            {"a": {"url": URL, "type": "carrier pigeon"}},
            "mcp.json: a.type: is 'carrier pigeon', which is no known transport; use streamable-http, sse or stdio",
        ),
    ],
)
def test_a_bad_file_gets_one_line_that_names_the_path(document: Any, line: str) -> None:
    """The line names the file, the place in it and the reason."""
    assert line == refusal(json.dumps(document))


def test_a_command_is_a_process() -> None:
    """With args, environment and directory; variables are expanded in all of them."""
    entry = {
        "command": "${BIN}/npx",
        "args": ["-y", "server", "--token=${TOKEN}", ""],
        "env": {"API_KEY": "${TOKEN}", "MODE": "fast"},
        "cwd": "${HOME:-/}",
        "timeout": 1500,
    }
    backend = Backend(
        id="time",
        transport="stdio",
        command="/opt/npx",
        args=["-y", "server", "--token=t0ken", ""],
        env={"API_KEY": "t0ken", "MODE": "fast"},
        cwd="/",
        request_timeout=1.5,
    )
    assert backend == parse_one(entry, BIN="/opt", TOKEN="t0ken")


@pytest.mark.parametrize("entry", [{}, {"type": "stdio"}, {"type": "local"}])
def test_a_command_alone_is_enough(entry: Any) -> None:
    """Null counts as absent."""
    expected, entry = Backend(id="time", transport="stdio", command="x"), {**entry, "command": "x"}
    assert expected == parse_one(entry) == parse_one({**entry, "args": None, "env": None, "cwd": None})


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"type": "stdio"}, "a: has no command"),
        ({"type": "local", "url": URL}, "a: has no command"),
        ({"command": ""}, "a.command: is empty"),
        ({"command": "${NOPE:-}"}, "a.command: is empty"),
        ({"command": ["x"]}, "a.command: is a list, not a string"),
        ({"command": "x", "args": "-y"}, "a.args: is a string, not a list"),
        ({"command": "x", "args": ["-y", 1]}, "a.args[1]: is a number, not a string"),
        ({"command": "x", "args": ["a\0b"]}, "a.args[0]: holds NUL, which no process can be given"),
        ({"command": "x", "env": ["A=b"]}, "a.env: is a list, not an object"),
        ({"command": "x", "env": {"A": 1}}, "a.env.A: is a number, not a string"),
        ({"command": "x", "env": {"A=B": ""}}, 'a.env["A=B"]: is no name of an environment variable'),
        ({"command": "x", "inherit_env": "A"}, "a.inherit_env: is a string, not a list"),
        ({"command": "x", "env_vars": ["A", 1]}, "a.env_vars[1]: is a number, not a string"),
        ({"command": "x", "inheritEnv": ["A=B"]}, "a.inheritEnv[0]: is no name of an environment variable"),
        ({"command": "x", "inherit_env": [""]}, "a.inherit_env[0]: is no name of an environment variable"),
        ({"command": "x", "cwd": 1}, "a.cwd: is a number, not a string"),
        ({"command": "${NOPE}"}, "a.command: needs the environment variable NOPE, which is not set"),
        ({"command": "x", "args": ["${NOPE}"]}, "a.args[0]: needs the environment variable NOPE, which is not set"),
        ({"command": "x", "timeout": 0}, "a.timeout: is not a number of ms above 0"),
    ],
)
def test_a_process_that_cannot_be_is_named(entry: Any, line: str) -> None:
    """The line names place and reason, without the value."""
    assert f"mcp.json: {line}" == refusal(json.dumps({"a": entry}))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "mcp.json:1:1: not JSON: Expecting value"),
        ('{\n /* two\n lines */ "a": 1 // x\n "b"}', "mcp.json:4:2: not JSON: Expecting ',' delimiter"),
        ('{"a": "http://x }', "mcp.json:1:7: not JSON: Unterminated string starting at"),
        ("{\n  /* endless", "mcp.json:2:3: not JSON: the comment is not closed"),
        ("{} /*/", "mcp.json:1:4: not JSON: the comment is not closed"),
        ('{"a": NaN}', "mcp.json: not JSON: holds a number that JSON does not have, or an endless one"),
        ("[" * 100_000, "mcp.json: not a configuration: nested too deeply"),
        ('{"a": {}, "a": {}}', "mcp.json: a: is there twice"),
        ('{"a": {"url": "http://x", "url": "http://y"}}', "mcp.json: a.url: is there twice"),
        ('{"a": {"url": "http://x", "timeout": 1e999}}', "mcp.json: a.timeout: is not a number of ms above 0"),
    ],
)
def test_text_that_is_no_configuration_gets_line_and_column(text: str, line: str) -> None:
    """Comments do not shift the line and column that the error names, and a key that stands twice is an error."""
    assert line == refusal(text)


@pytest.mark.parametrize("value", ["${", "${TOKEN", "${}", "${a b}", "${input:a b}", "${A${B}}"])
def test_a_malformed_variable_is_refused_and_not_shown(value: str) -> None:
    """Half a variable would otherwise be sent as a credential."""
    line = refusal(json.dumps({"a": {"url": URL, "headers": {"X": CANARY + value}}}))
    assert "mcp.json: a.headers.X: holds a ${...} that is none of ${NAME}, ${env:NAME} and ${NAME:-default}" == line


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
values = json_values | st.sampled_from([URL, "${A}", "${A:-b}", "http://u:p@h?x=1", "http", "sse", 1e999, 10**400])
keys = st.sampled_from(["url", "httpUrl", "type", "headers", "timeout", "disabled", "command", "extra"])
entries = st.dictionaries(keys, values, max_size=4)
documents = json_values | st.builds(
    lambda key, servers: {key: servers} if key else servers,
    st.sampled_from(["mcpServers", "servers", ""]),
    st.dictionaries(st.text(max_size=5), entries | json_values, max_size=3),
)


@given(documents.map(json.dumps) | st.text())
@example('"\\ud800"')
@example('{"\\ud800": 1}')
def test_any_text_is_backends_or_one_line(text: str) -> None:
    """Any text gives backends or ConfigError, in one line that every output can encode."""
    try:
        backends = parse_config(text, {"A": "a"})
    except ConfigError as error:
        line = error.in_file("mcp.json")
        assert [line] == line.splitlines()
        line.encode()
    else:
        assert len(backends) == len({backend.id for backend in backends})


@given(
    place=st.sampled_from(["header", "variable", "userinfo", "query", "path", "env", "default"]),
    noise=st.text(max_size=3),
    flaw=st.sampled_from([{}, {"timeout": "x"}, {"type": "y"}, {"disabled": 1}, {"headers": 3}]),
    scheme=st.sampled_from(["https://", "http://[", "", "x:"]),
)
def test_no_message_and_no_repr_holds_a_secret(place: str, noise: str, flaw: dict[str, Any], scheme: str) -> None:
    """Wherever a secret stands, and whatever is wrong beside it, the error does not show it."""
    url, headers, env = f"{scheme}mcp.test", {"X": noise}, {"Y": noise}
    match place:
        case "header":
            headers = {"Authorization": CANARY + noise}
        case "variable":
            headers = {"Authorization": "${SECRET}" + noise}
        case "default":
            headers = {"Authorization": "${NOWHERE:-" + CANARY + noise + "}"}
        case "userinfo":
            url = f"{scheme}user:{CANARY}{noise}@mcp.test"
        case "query":
            url = f"{scheme}mcp.test?key={CANARY}{noise}"
        case "path":
            url = f"{CANARY}{scheme}{noise}"
        case _:
            env = {"Y": CANARY}
    entry = {"url": url, "headers": headers, "env": env, **flaw}
    try:
        shown = repr(parse_config(json.dumps({"a": entry}), {"SECRET": CANARY}))
    except ConfigError as error:
        shown = f"{error.in_file('mcp.json')} {error!r} {error.__cause__!r}"
    assert CANARY not in shown


# --- dialects


PROGRAM = Backend(id="a", transport="stdio", command="npx", args=["-y", "x"], env={"K": "v"})


@pytest.mark.parametrize(
    "document",
    [
        {"mcp": {"servers": {"a": {"command": "npx", "args": ["-y", "x"], "env": {"K": "v"}}}}, "editor.tabSize": 2},
        {"context_servers": {"a": {"source": "custom", "command": "npx", "args": ["-y", "x"], "env": {"K": "v"}}}},
        {"context_servers": {"a": {"command": {"path": "npx", "args": ["-y", "x"], "env": {"K": "v"}}}}},
        {"mcp": {"a": {"type": "local", "command": ["npx", "-y", "x"], "environment": {"K": "v"}, "enabled": True}}},
        {"amp.mcpServers": {"a": {"command": "npx", "args": ["-y", "x"], "env": {"K": "{env:V}"}}}},
        {"mcpServers": {"a": {"command": "npx", "args": ["-y", "x"], "env": {"K": "$V"}, "trust": True}}},
    ],
    ids=["VS Code settings", "Zed", "Zed before 2025", "opencode", "Amp", "Gemini CLI"],
)
def test_the_forms_of_other_clients_are_read(document: Any) -> None:
    """The same server in each of them is the same backend, and nothing is warned about."""
    config = read_config(json.dumps(document), {"V": "v"})
    assert ((PROGRAM,), (), ()) == (config.backends, config.problems, config.warnings)


def test_a_url_of_a_unix_socket() -> None:
    """As VS Code writes it."""
    backend = parse_one({"type": "http", "url": "unix:///run/user/1000/mcp.sock#/mcp/one"})
    assert ("streamable-http", "unix:///run/user/1000/mcp.sock#/mcp/one") == (backend.transport, backend.url)


@pytest.mark.parametrize("key", ["inherit_env", "inheritEnv", "env_vars", "env_keys"])
def test_variables_that_a_program_inherits(key: str) -> None:
    """This library's name for the key, and those of Codex and Goose; null is none."""
    assert ("A", "B_*") == parse_one({"command": "x", key: ["A", "B_*"]}).inherit_env
    assert () == parse_one({"command": "x", key: None}).inherit_env
    assert () == read_config(json.dumps({"a": {"command": "x", key: ["A"]}}), {}).warnings


def test_a_dollar_inside_of_a_text_stays() -> None:
    """It may be part of a password, or of a script that expands it itself."""
    assert {"K": "pa$V$HOME"} == parse_one({"command": "x", "env": {"K": "pa$V$HOME"}}, V="v").env


@pytest.mark.parametrize(
    ("keys", "allowed", "denied"),
    [
        ({"disabledTools": ["x"]}, None, {"x"}),
        ({"excludeTools": ["x"]}, None, {"x"}),
        ({"disabledTools": ["x"], "excludeTools": ["y"]}, None, {"x", "y"}),
        ({"includeTools": ["x"]}, {"x"}, set()),
        ({"enabledTools": ["x", "y"], "excludeTools": ["y"]}, {"x", "y"}, {"y"}),
        ({"enabledTools": []}, set(), set()),
        ({"includeTools": None}, None, set()),
        ({"includeTools": ["get_*", "@readOnly"], "excludeTools": ["*_all"]}, {"get_*", "@readOnly"}, {"*_all"}),
        ({"enabled_tools": ["x"], "disabled_tools": ["y"]}, {"x"}, {"y"}),
        ({"tools": ["*"]}, {"*"}, set()),
        ({"tools": []}, set(), set()),
        ({"tools": ["x"], "includeTools": ["y"]}, {"x", "y"}, set()),
        ({"tools": {}}, None, set()),
        ({"tools": None}, None, set()),
        ({"tools": {"x": {"enabled": False}, "y": {"enabled": True}, "z": {"enabled": None}}}, None, {"x"}),
        ({"tools": {"a[0]": {"enabled": False}}, "excludeTools": ["y"]}, None, {"a[[]0]", "y"}),
        ({"tools": {"@x": {"enabled": False}}}, None, {"[@]x"}),
    ],
)
@pytest.mark.parametrize("way", [{"url": URL}, {"command": "x"}])
def test_tools_are_switched_on_and_off(
    way: dict[str, str], keys: dict[str, Any], allowed: object, denied: object
) -> None:
    """These keys become `allow_tools` and `deny_tools`; a list of `tools` (Copilot) says which are allowed."""
    backend = parse_one({**way, **keys})
    assert (allowed, denied) == (backend.allow_tools, backend.deny_tools)


@pytest.mark.parametrize("way", [{"url": URL}, {"command": "x"}])
def test_tools_are_described_anew(way: dict[str, str]) -> None:
    """FastMCP's `tools` become `overrides`; what of it has no effect here is named."""
    tools = {
        "get": {"name": "fetch", "title": "Fetch", "description": None, "annotations": {"readOnlyHint": True}},
        "put": {"description": "Puts.", "arguments": {"x": {"hide": True}}, "tags": ["t"], "_note": 1},
        "post": {},
    }
    config = read_config(json.dumps({"mcpServers": {"time": {**way, "tools": tools}}}), {})
    assert {
        "get": ToolOverride(name="fetch", title="Fetch", annotations={"readOnlyHint": True}),
        "put": ToolOverride(description="Puts."),
        "post": ToolOverride(),
    } == config.backends[0].overrides
    assert (
        "mcpServers.time.tools.put.arguments: is not understood, and has no effect",
        "mcpServers.time.tools.put.tags: is not understood, and has no effect",
    ) == config.warnings


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tools": 5}, "mcpServers.time.tools: is a number, not an object"),
        ({"tools": [5]}, "mcpServers.time.tools[0]: is a number, not a string"),
        ({"tools": [""]}, "mcpServers.time.tools[0]: is empty, and no tool has an empty name"),
        ({"includeTools": ["x", "@readonly"]}, "mcpServers.time.includeTools[1]: is none of @readOnly, @destructive, "),
        ({"disabledTools": ["@"]}, "mcpServers.time.disabledTools[0]: is none of @readOnly"),
        ({"tools": {"": {}}}, 'mcpServers.time.tools[""]: is no name of a tool'),
        ({"tools": {"x": "y"}}, "mcpServers.time.tools.x: is a string, not an object"),
        ({"tools": {"x": {"enabled": "no"}}}, "mcpServers.time.tools.x.enabled: is a string, not true or false"),
        ({"tools": {"x": {"name": ""}}}, "mcpServers.time.tools.x.name: is empty"),
        ({"tools": {"x": {"title": 5}}}, "mcpServers.time.tools.x.title: is int, not str"),
        ({"tools": {"x": {"annotations": []}}}, "mcpServers.time.tools.x.annotations: is list, not a mapping"),
        (
            {"tools": {"x": {"name": "z"}, "y": {"name": "z"}}},
            "mcpServers.time.tools.y: gets the name 'z', like ",
        ),
        (
            {"tools": {"x": {"name": "y"}, "y": {}}},
            "mcpServers.time.tools.y: gets the name 'y', like ",
        ),
    ],
)
@pytest.mark.parametrize("way", [{"url": URL}, {"command": "x"}])
def test_what_cannot_be_meant_of_tools_is_named(way: dict[str, str], keys: dict[str, Any], message: str) -> None:
    """With its place."""
    with pytest.raises(ConfigError) as bad:
        parse_one({**way, **keys})
    assert str(bad.value).startswith(message)


@pytest.mark.parametrize(
    ("keys", "seconds"),
    [
        ({"timeout": 60}, 60),
        ({"timeout": 999}, 999),
        ({"timeout": 1000}, 1),
        ({"timeout": 60_000}, 60),
        ({"timeout": 1800, "alwaysAllow": []}, 1800),
        ({"timeout": 1800, "autoApprove": []}, 1800),
        ({"timeout": 60_000, "autoApprove": []}, 60),
    ],
)
@pytest.mark.parametrize("way", [{"url": URL}, {"command": "x"}])
def test_a_timeout_is_in_the_unit_of_its_dialect(way: dict[str, str], keys: dict[str, Any], seconds: float) -> None:
    """Seconds under 1000, and up to an hour in entries of Cline, Roo Code and Kilo Code; else milliseconds."""
    assert seconds == parse_one({**way, **keys}).request_timeout


@pytest.mark.parametrize(
    ("keys", "request_timeout", "init_timeout"),
    [
        ({"startup_timeout_sec": 60}, None, 60),
        ({"startup_timeout_sec": 2000}, None, 2000),
        ({"startup_timeout_ms": 500}, None, 0.5),
        ({"initTimeout": 60_000, "timeout": 5000}, 5, 60),
        ({"connectionTimeout": 10_000}, None, 10),
        ({"timeout": {"startup": 500, "request": 90_000}}, 90, 0.5),
        ({"timeout": {"request": 90_000}}, 90, None),
        ({"timeout": {}}, None, None),
        ({"timeout": None, "initTimeout": None}, None, None),
    ],
)
@pytest.mark.parametrize("way", [{"url": URL}, {"command": "x"}])
def test_a_time_to_start_is_understood(
    way: dict[str, str], keys: dict[str, Any], request_timeout: float | None, init_timeout: float | None
) -> None:
    """Under the names of Codex, LibreChat, Continue and opencode, in the unit of each."""
    (backend,) = (config := read_config(json.dumps({"a": {**way, **keys}}), {})).backends
    assert (request_timeout, init_timeout) == (backend.request_timeout, backend.init_timeout)
    assert () == config.warnings


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"startup_timeout_sec": "60"}, "a.startup_timeout_sec: is a string, not a number of s"),
        ({"startup_timeout_sec": 0}, "a.startup_timeout_sec: is not a number of s above 0"),
        ({"initTimeout": True}, "a.initTimeout: is true or false, not a number of ms"),
        ({"timeout": {"startup": -1}}, "a.timeout.startup: is not a number of ms above 0"),
        ({"timeout": {"request": []}}, "a.timeout.request: is a list, not a number of ms"),
    ],
)
@pytest.mark.parametrize("way", [{"url": URL}, {"command": "x"}])
def test_a_wrong_time_to_start_is_named(way: dict[str, str], keys: dict[str, Any], message: str) -> None:
    """With its place and its unit."""
    with pytest.raises(ConfigError) as caught:
        parse_config(json.dumps({"a": {**way, **keys}}), {})
    assert message == str(caught.value)


@pytest.mark.parametrize("era", ["auto", "legacy", "modern"])
def test_an_era_is_understood(era: str) -> None:
    """For an HTTP server and for a program."""
    assert [era, era] == [parse_one({**way, "era": era}).era for way in ({"url": URL}, {"command": "x"})]


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"url": URL, "disabledTools": "x"}, "a.disabledTools: is a string, not a list"),
        ({"url": URL, "includeTools": ["x", 1]}, "a.includeTools[1]: is a number, not a string"),
        ({"url": URL, "era": "bronze"}, "a.era: is none of auto, legacy and modern"),
        ({"url": URL, "era": 1}, "a.era: is a number, not a string"),
    ],
)
def test_bad_options_are_named(entry: Any, line: str) -> None:
    """The line names place and reason."""
    assert f"mcp.json: {line}" == refusal(json.dumps({"a": entry}))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("${NOPE}", "needs the environment variable NOPE, which is not set"),
        ("${env:NOPE}", "needs the environment variable NOPE, which is not set"),
        ("$NOPE", "needs the environment variable NOPE, which is not set"),
        ("{env:NOPE}", "needs the environment variable NOPE, which is not set"),
        ("{file:~/.key}", "holds {file:...}, which is not read"),
        ("${input:pat}", "holds ${input:pat}, which an editor asks its user for"),
        ("${workspaceFolder}/x", "holds ${workspaceFolder}, which only an editor knows"),
        ("${userHome}", "holds ${userHome}, which only an editor knows"),
        ("${command:pick.it}", "holds ${command:pick.it}, which only an editor knows"),
        ("${", "holds a ${...} that is none of"),
    ],
)
@pytest.mark.parametrize("place", ["url", "headers", "command", "args", "env", "cwd"])
def test_an_entry_that_cannot_be_expanded_costs_itself(place: str, value: str, told: str) -> None:
    """The other entries are read, and the problem names place and variable."""
    bad = {
        "url": {"url": value},
        "headers": {"url": URL, "headers": {"X": value}},
        "command": {"command": value},
        "args": {"command": "x", "args": [value]},
        "env": {"command": "x", "env": {"X": value}},
        "cwd": {"command": "x", "cwd": value},
    }[place]
    config = read_config(json.dumps({"good": {"url": URL}, "bad": bad, "best": {"url": URL}}), {})
    assert ["good", "best"] == [backend.id for backend in config.backends]
    (problem,) = config.problems
    assert problem.path.startswith(f"bad.{place}")
    assert told in problem.detail


@pytest.mark.parametrize(("kind", "unused"), [(None, "command"), ("stdio", "url")])
def test_an_entry_with_a_url_and_a_command(kind: str | None, unused: str) -> None:
    """The one that its type does not need is told to have no effect."""
    entry = {"command": "npx", "url": URL} | ({} if kind is None else {"type": kind})
    read = read_config(json.dumps({"mcpServers": {"a": entry}}), {})
    assert (f"mcpServers.a.{unused}: has no effect, since the entry has a url and a command",) == read.warnings


def test_keys_that_are_not_understood_are_named() -> None:
    """They may change what a server does. Values are not shown; keys for people and approvals are no news."""
    entry = {"url": URL, "envFile": CANARY, "oauth": {}, "description": "x", "autoApprove": [], "_comment": ""}
    config = read_config(json.dumps({"mcpServers": {"a": entry}}), {})
    expected = [f"mcpServers.a.{key}: is not understood, and has no effect" for key in ("envFile", "oauth")]
    assert expected == list(config.warnings)
