"""The command's arguments: which plan they make, what is refused, and what a refusal does not show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_vmcp._cli.arguments import ServerChoice, UsageError, parse_plan
from trio_vmcp._cli.given import Given, parse_words, read_object, types_of

REQUESTS = {
    "call": ["call", "time_now"],
    "read": ["read", "time://zones"],
    "prompt": ["prompt", "time_ask"],
    "complete": ["complete", "time_ask", "zone=U"],
}
every_request = pytest.mark.parametrize("request_words", REQUESTS.values(), ids=REQUESTS)
every_command_with_servers = pytest.mark.parametrize(
    "words", [["check"], *REQUESTS.values()], ids=lambda words: str(words[0])
)


@every_command_with_servers
def test_servers_of_a_file(words: list[str]) -> None:
    """--config and --server stand anywhere among the words; a file of "-" is stdin."""
    command, *rest = words
    around = [command, "--config", "-", *rest, "--server", "a", "--timeout", "3", "--server=b", "-v", "--json"]
    behind = [*words, "--json", "--verbose", "--timeout=3.0", "--server=a", "--config=-", "--server", "b"]
    plans = [parse_plan(around), parse_plan(behind)]
    assert plans[0] == plans[1]
    for plan in plans:
        assert ServerChoice(file="-", ids=("a", "b")) == plan.servers
        assert (words[0], 3.0, True, True) == (plan.command, plan.timeout, plan.verbose, plan.json)


@pytest.mark.parametrize(
    ("words", "servers", "name"),
    [
        (["https://a.test/mcp"], ServerChoice(url="https://a.test/mcp"), ""),
        (["now", "https://a.test/mcp"], ServerChoice(url="https://a.test/mcp"), "now"),
        (
            ["--header", "X-Key: k:1 ", "https://a.test", "--header", "Y:", "--bearer", "t"],
            ServerChoice(url="https://a.test", headers=(("X-Key", "k:1"), ("Y", ""), ("Authorization", "Bearer t"))),
            "",
        ),
        (["--", "npx", "-y", "server"], ServerChoice(program=("npx", "-y", "server")), ""),
        (["now", "--json", "--", "npx", "--", "--json"], ServerChoice(program=("npx", "--", "--json")), "now"),
    ],
)
def test_a_server_without_a_file(words: list[str], servers: ServerChoice, name: str) -> None:
    """`check` takes one URL, with headers, or the program and arguments behind `--`."""
    plan = parse_plan(["check", *words])
    assert (servers, name) == (plan.servers, plan.name)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["check"], "one of --config FILE, a URL, and a program after -- is required"),
        (["check", "https://a.test", "--config", "f"], "exclude each other"),
        (["check", "https://a.test", "https://b.test"], "exclude each other"),
        (["check", "https://a.test", "--", "npx"], "exclude each other"),
        (["check", "--config", "f", "--", "npx"], "exclude each other"),
        (["check", "--"], "there is no program after --"),
        (["check", "--config", "f", "a", "b"], "one NAME at most"),
        (["check", "--watch", "now", "https://a.test"], "--watch goes with neither NAME nor --json"),
        (["check", "--watch", "--json", "https://a.test"], "--watch goes with neither NAME nor --json"),
        (["read", "--watch", "a:b", "--config", "f"], "--watch"),
        (["check", "--server", "a", "https://a.test"], "--server is for --config"),
        (["check", "--bearer", "t", "--config", "f"], "--header and --bearer are for a URL"),
        (["check", "--header", "A: b", "--", "npx"], "--header and --bearer are for a URL"),
        (["check", "--header", "A: b", "--header", "a: c", "https://a.test"], "names one header twice"),
        (["check", "--bearer", "t", "--header", "authorization: b", "https://a.test"], "exclude each other"),
        (["check", "--header", "no colon", "https://a.test"], "is not of the form 'NAME: VALUE'"),
        (["call", "time_now", "a=1", "a=2", "--config", "f"], "argument a: is there twice"),
        (["call", "time_now", "now", "--config", "f"], "each is KEY=VALUE"),
        (["call", "time_now", "=1", "--config", "f"], "each is KEY=VALUE"),
        (["call", "time_now", "a=1", "-", "--config", "f"], "each is KEY=VALUE"),
        (["call", "time_now", "@", "--config", "f"], "has no file"),
        (["call", "time_now", "-", "--config", "-"], "stdin cannot hold both"),
        (["prompt", "time_ask", "-", "--config=-"], "stdin cannot hold both"),
        (["complete", "time_ask", "zone", "--config", "f"], "has no name or no ="),
        (["complete", "time_ask", "--config", "f"], "ARGUMENT=VALUE"),
        (["complete", "time_ask", "a=b", "c=d", "--config", "f"], "c=d"),
        (["read", "time://zones", "more", "--config", "f"], "more"),
        (["read", "--config", "f"], "URI"),
        (["demo", "--config", "f"], "--config"),
    ],
)
def test_what_is_refused(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, and a line that names the reason."""
    with pytest.raises(UsageError) as refused:
        parse_plan(words)
    assert 2 == refused.value.code
    assert complaint in capsys.readouterr().err


@every_request
@pytest.mark.parametrize("words", [["https://a.test"], ["--", "npx"], ["--bearer", "t"], ["--header", "A: b"], []])
def test_requests_are_for_the_servers_of_a_file(request_words: list[str], words: list[str]) -> None:
    """A URL, a program, a header or nothing in the place of --config is bad usage of each."""
    with pytest.raises(UsageError):
        parse_plan([*request_words, *words])


SECRET = "c4nary-s3cret"


@pytest.mark.parametrize(
    "words",
    [
        ["check", "--bearer", SECRET, "--config", "f"],
        ["check", "--header", SECRET, "https://a.test"],
        ["check", "--header", f"A: {SECRET}", "--header", f"A: {SECRET}", "https://a.test"],
        ["check", f"https://a.test?key={SECRET}", "--config", "f"],
        ["check", "--config", "f", "--", "npx", SECRET],
        ["call", "a_b", f"k={SECRET}", f"k={SECRET}", "--config", "f"],
        ["call", "a_b", '{"a": "' + SECRET, "--config", "f"],
        ["complete", "a_b", f"={SECRET}", "--config", "f"],
    ],
)
def test_a_refusal_shows_no_value(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Headers, tokens, URLs and arguments may be secret, and stderr may be a log that others read."""
    with pytest.raises(UsageError) as refused:
        parse_plan(words)
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err + refused.value.message


def test_a_plan_shows_no_secret() -> None:
    """Not in its repr either."""
    plan = parse_plan(["check", f"https://u:{SECRET}@a.test", "--bearer", SECRET, "--header", f"X: {SECRET}"])
    assert SECRET not in repr(plan)


# --- arguments of a tool

SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "deep": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        "either": {"type": ["string", "integer"]},
        "maybe": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/word"}]},
        "colour": {"$ref": "#/$defs/colour"},
        "level": {"enum": [1, 2]},
        "any": {},
    },
    "$defs": {"colour": {"type": "object"}, "word": {"enum": ["a", "b"]}},
}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("text=5", "5"),
        ("text=", ""),
        ("text=a=b", "a=b"),
        ("text=@file", "@file"),
        ('text={"a": 1}', '{"a": 1}'),
        ("count=5", 5),
        ("count=[1]", [1]),
        ("deep=null", None),
        ("deep=true", True),
        ("either=5", "5"),
        ("maybe=null", "null"),
        ('colour={"r": 1.5}', {"r": 1.5}),
        ("level=2", 2),
        ("any=5", "5"),
        ("unknown=5", "5"),
    ],
)
def test_a_value_is_a_string_unless_the_schema_gives_another_type(word: str, value: object) -> None:
    """Then it is JSON. A schema that allows strings, or says nothing, gives strings."""
    assert {word.partition("=")[0]: value} == parse_words([word]).fill_in(SCHEMA)


@pytest.mark.parametrize(
    "word", ["count=five", "count=", "count=NaN", "count=1e999", "deep=True", "colour=" + "[" * 100_000]
)
def test_a_value_that_is_no_json_where_it_has_to_be(word: str) -> None:
    """The error names the argument and the type, and not the value."""
    key = word.partition("=")[0]
    with pytest.raises(ValueError, match=f"^argument {key}: the tool wants .*, and the value is not JSON$"):
        parse_words([word]).fill_in(SCHEMA)


def test_one_word_for_all_arguments() -> None:
    """A JSON object, `@FILE`, `-`; no word is no arguments."""
    assert {"a": "b=c"} == parse_words(['{"a": "b=c"}']).fill_in(SCHEMA)
    assert [Given(), Given(place="a=b.json"), Given(place="-")] == [parse_words(w) for w in ([], ["@a=b.json"], ["-"])]


CIRCLE: dict[str, Any] = {
    "properties": {"a": {"$ref": "#/$defs/a"}},
    "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 50}},
}


@pytest.mark.parametrize(
    "schema",
    [CIRCLE, None, [], {"properties": []}, {"properties": {"a": 3}}, {"properties": {"a": {"$ref": "#/no/where"}}}],
)
def test_a_schema_that_says_nothing_gives_strings(schema: object) -> None:
    """Servers send what they like: a reference in a circle, or schemas that are none."""
    assert {"a": "5"} == parse_words(["a=5"]).fill_in(schema)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON_VALUES, JSON_VALUES)
def test_no_schema_is_an_error(schema: object, root: object) -> None:
    """Whatever JSON a server sends as a schema."""
    assert all(isinstance(kind, str) for kind in types_of(schema, root))
    parse_words(["a=x"]).fill_in({"properties": {"a": {"anyOf": [schema, {"type": "string"}]}}})


@given(st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3))
def test_an_object_is_read_as_it_is(value: dict[str, Any]) -> None:
    """JSON that can be sent comes out of its text."""
    assert value == read_object(json.dumps(value))
