"""RFC 6570 backwards: which URIs a template could have made, at a cost that neither backend nor caller can drive up."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_vmcp._protocol.uri_template import (
    MAX_TEMPLATE_LENGTH,
    MAX_URI_LENGTH,
    MAX_VARIABLES,
    compile_template,
    first_match,
)

# The examples of RFC 6570, section 1.2 and 3.2, with their values of 3.2.
EXPANSIONS = """
{count}             one,two,three
{count*}            one,two,three
{/count}            /one,two,three
{/count*}           /one/two/three
{;count}            ;count=one,two,three
{;count*}           ;count=one;count=two;count=three
{?count}            ?count=one,two,three
{?count*}           ?count=one&count=two&count=three
{&count*}           &count=one&count=two&count=three
{var}               value
{hello}             Hello%20World%21
{half}              50%25
O{empty}X           OX
O{undef}X           OX
{x,y}               1024,768
{x,hello,y}         1024,Hello%20World%21,768
?{x,empty}          ?1024,
?{x,undef}          ?1024
?{undef,y}          ?768
{var:3}             val
{var:30}            value
{list}              red,green,blue
{keys}              semi,%3B,dot,.,comma,%2C
{keys*}             semi=%3B,dot=.,comma=%2C
{+hello}            Hello%20World!
{base}index         http%3A%2F%2Fexample.com%2Fhome%2Findex
{+base}index        http://example.com/home/index
O{+empty}X          OX
{+path}/here        /foo/bar/here
here?ref={+path}    here?ref=/foo/bar
up{+path}{var}/here up/foo/barvalue/here
{+x,hello,y}        1024,Hello%20World!,768
{+path,x}/here      /foo/bar,1024/here
{+path:6}/here      /foo/b/here
{+keys*}            semi=;,dot=.,comma=,
{#var}              #value
{#hello}            #Hello%20World!
foo{#empty}         foo#
foo{#undef}         foo
{#path,x}/here      #/foo/bar,1024/here
{#path:6}/here      #/foo/b/here
{.who}              .fred
{.who,who}          .fred.fred
{.half,who}         .50%25.fred
www{.dom*}          www.example.com
X{.var:3}           X.val
X{.empty}           X.
X{.list*}           X.red.green.blue
X{.keys*}           X.semi=%3B.dot=..comma=%2C
X{.empty_keys}      X
{/who}              /fred
{/half,who}         /50%25/fred
{/var,empty}        /value/
{/var,undef}        /value
{/var,x}/here       /value/1024/here
{/var:1,var}        /v/value
{/list*,path:4}     /red/green/blue/%2Ffoo
{/keys*}            /semi=%3B/dot=./comma=%2C
{;who}              ;who=fred
{;empty}            ;empty
{;v,empty,who}      ;v=6;empty;who=fred
{;v,bar,who}        ;v=6;who=fred
{;x,y,undef}        ;x=1024;y=768
{;hello:5}          ;hello=Hello
{;keys*}            ;semi=%3B;dot=.;comma=%2C
{?who}              ?who=fred
{?x,y,empty}        ?x=1024&y=768&empty=
{?x,y,undef}        ?x=1024&y=768
{?var:3}            ?var=val
{?keys*}            ?semi=%3B&dot=.&comma=%2C
?fixed=yes{&x}      ?fixed=yes&x=1024
{&x,y,empty}        &x=1024&y=768&empty=
{&var:3}            &var=val
"""


@pytest.mark.parametrize("line", EXPANSIONS.strip().splitlines())
def test_what_the_rfc_expands_a_template_to_matches_it(line: str) -> None:
    """Every expansion in RFC 6570 §3.2 matches its template."""
    template, uri = line.split()
    assert compile_template(template).matches(uri)


@pytest.mark.parametrize(
    ("template", "uri"),
    [
        ("file:///{+path}", "file:///a dir/ü.txt"),  # not a valid URI, but users pass such text
        ("user://{name}", "user://jo@example.com:80"),
        ("x://{id}", "x://%C3%BC%2F%zz"),
        ("x://{+a}/{b}", "x://1/2/3"),
        ("x://{a}{b}-{c}", "x://-"),
        ("x://{?a,b}", "x://?b=1&a=2"),
        ("x://{?a}", "x://?a=http://y/z?w"),
        ("x://{?ab,a}", "x://?a=1&ab=2"),
        ("x://{?a.b,%61}", "x://?%61=1&a.b=2"),
        ("x://{id:3}", "x://a%20%C3%BC"),  # three characters
        ("x://{id:9999}", "x://" + "a" * 4000),
        ("static://here", "static://here"),
        ("", ""),
    ],
)
def test_what_people_write_matches(template: str, uri: str) -> None:
    """Values may be raw or percent-encoded where servers accept both."""
    assert compile_template(template).matches(uri)


@pytest.mark.parametrize(
    ("template", "uri"),
    [
        ("x://{id}", "x://a/b"),
        ("x://{id}", "x://a?b"),
        ("x://{id}", "x://a#b"),
        ("x://{id}", "X://a"),
        ("x://%C3%BC/{id}", "x://%c3%bc/1"),  # literals are compared without decoding
        ("x://%41/{id}", "x://A/1"),
        ("x://{id}/end", "x://a/END"),
        ("x://{id}/end", "x://a/end/more"),
        ("x://{id}/end", "y://a/end"),
        ("x://{a}/y/{b}", "x://1/z/2"),
        ("x://{id:3}", "x://abcd"),
        ("x://{id:3}", "x://a/b"),
        ("x://{id:3}", "x://a%20%C3%BC%C3%BC"),
        ("x://{/a,b}", "x:///1/2/3"),
        ("x://{.a}", "x://a"),
        ("x://{?a,b}", "x://?c=1"),
        ("x://{?a,b}", "x://?a=1&c=2"),
        ("x://{?a,b}", "x://?a=1&b=2&a=3"),
        ("x://{?a:2}", "x://?a=123"),
        ("x://{?a}", "x://?ab=1"),
        ("x://{?a}", "x://a=1"),
        ("x://{?a*}", "x://?a=1#b"),
        ("x://{;a}", "x://;a=1;b=2"),
        ("x://{&a}", "x://?a=1"),
        ("x://{#a}", "x://a"),
        ("static://here", "static://here/"),
        ("", "x"),
    ],
)
def test_what_no_value_can_make_does_not_match(template: str, uri: str) -> None:
    """Literals compare exactly, and a value ends where a character that its operator excludes begins."""
    assert not compile_template(template).matches(uri)


# Compared with a regular expression, which may take for ever on long strings, but not on these.

OPERATORS = {
    "": ("", ",", "[^/?#]"),
    "+": ("", ",", "."),
    "#": ("#", ",", "."),
    ".": (r"\.", r"\.", "[^/?#]"),
    "/": ("/", "/", "[^/?#]"),
    ";": (";", ";", "[^/?#;]"),
    "?": (r"\?", "&", "[^&#]"),
    "&": ("&", "&", "[^&#]"),
}
Variables = list[tuple[str, str]]  # name, modifier


def as_regex(sign: str, variables: Variables) -> str:
    first, separator, value = OPERATORS[sign]
    if sign not in (";", "?", "&"):
        present = [some for count in range(len(variables)) for some in combinations(variables, count + 1)]
        bodies = [separator.join(_value(value, separator, modifier) for _, modifier in some) for some in present]
    elif any(modifier == "*" for _, modifier in variables):
        bodies = [f"(?:{value}|{separator})*"]
    else:
        pair = "|".join(f"{name}(?:={_value(value, separator, modifier)})?" for name, modifier in variables)
        bodies = [f"(?:{pair})(?:{separator}(?:{pair})){{0,{len(variables) - 1}}}"]
    return f"(?:{first}(?:{'|'.join(bodies)}))?"


def _value(value: str, separator: str, modifier: str) -> str:
    if modifier == "*":
        return f"(?:{value}|{separator})*"
    return f"(?:{value}){{0,{modifier[1:]}}}" if modifier else f"{value}*"


expressions = st.tuples(
    st.sampled_from(list(OPERATORS)),
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["", "*", ":1", ":2", ":5"])), min_size=1, max_size=2),
)
templates = st.lists(st.sampled_from("ab/?#&=") | expressions, max_size=4)
uris = st.lists(st.sampled_from(["a", "b", "/", "?", "#", ";", "&", ",", ".", "=", "a=", "b=a", "&b"]), max_size=8)


@given(templates, uris.map("".join))
def test_matching_is_what_the_documented_language_says(template: list[str | tuple[str, Variables]], uri: str) -> None:
    """Matching agrees with a naive regular expression, whatever the template."""
    source = "".join(
        piece if isinstance(piece, str) else f"{{{piece[0]}{','.join(name + mod for name, mod in piece[1])}}}"
        for piece in template
    )
    regex = "".join(re.escape(piece) if isinstance(piece, str) else as_regex(*piece) for piece in template)
    assert bool(re.fullmatch(regex, uri, re.DOTALL)) == compile_template(source).matches(uri)


# Malformed, oversized, hostile.


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("x{", "stray brace at or after character 1"),
        ("x}", "stray brace at or after character 1"),
        ("{a{b}}", "stray brace at or after character 0"),
        ("{a}}", "stray brace at or after character 3"),
        ("{}", "'' is not `name`"),
        ("{+}", "'' is not `name`"),
        ("{a,}", "'' is not `name`"),
        ("{a b}", "'a b' is not `name`"),
        ("{a-b}", "'a-b' is not `name`"),
        ("{ä}", "'ä' is not `name`"),
        ("{.a.}", "'a.' is not `name`"),
        ("{a:0}", "'a:0' is not `name`"),
        ("{a:10000}", "'a:10000' is not `name`"),
        ("{a:3*}", "is not `name`"),
        ("{a%2}", "is not `name`"),
        ("{!a}", "operator '!' is reserved"),
        ("{=a}", "operator '=' is reserved"),
        ("{|a}", "operator '|' is reserved"),
        ("{a}" * (MAX_VARIABLES + 1), "65 variables, over 64"),
        ("x" * (MAX_TEMPLATE_LENGTH + 1), "2049 characters is over 2048"),
    ],
)
def test_a_malformed_template_is_refused(template: str, why: str) -> None:
    """The error says what is wrong and where."""
    with pytest.raises(ValueError, match="URI template") as caught:
        compile_template(template)
    assert why in str(caught.value)


@given(st.text("{}+#./;?&=,!@|ab:*19%é", max_size=20), st.text("ab{}=&?/", max_size=10))
def test_no_template_does_anything_but_compile_or_be_refused(template: str, uri: str) -> None:
    """Any text from a backend is compiled or refused with ValueError, and matching it ends."""
    try:
        compiled = compile_template(template)
    except ValueError:
        return
    assert compiled.matches(uri) in (True, False)


def test_an_endless_uri_matches_nothing() -> None:
    """A URI over the limit matches nothing, so that the cost of one match is bounded."""
    anything = compile_template("{+all}")
    assert anything.matches("x" * MAX_URI_LENGTH)
    assert not anything.matches("x" * (MAX_URI_LENGTH + 1))


MANY = MAX_VARIABLES - 2
HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
HOSTILE = {  # name: template, and what the URI repeats; each fails only at its last character
    "adjacent": ("{a}" * MANY + "!", "a"),
    "adjacent, anything": ("{+a}" * MANY + "!{b:1}", "a!a"),
    "one expression": ("{" + ",".join(["a*"] * MANY) + "}!", "a,"),
    "literals between": ("{+a}a" * MANY + "!{b:1}", "a"),
    "prefixes": ("{a:9999}" * MANY + "!", "a"),
    "pairs": ("{?" + ",".join("a" * (i % 20 + 1) for i in range(MANY)) + "}!", "a&"),
    "empty pairs": ("{+x}{?" + ",".join("a" * MANY) + "}#{x:1}", "?a&a=&a"),
    "long literal": ("{+x}" + "a" * 2000 + "{y}!{x:1}", "a"),
    "many characters": ("{+x}" + HAN[:2000] + "{x}", HAN),
    "percent": ("{x:9999}" * MANY + "%", "%C3%BC"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_cost_little(name: str) -> None:
    """Within the limits no template and no URI makes a match slow."""
    template, unit = HOSTILE[name]
    uri = ("?" + unit * MAX_URI_LENGTH)[: MAX_URI_LENGTH - 1] + "~"
    compiled = compile_template(template)
    best = min(_cpu_time(compiled.matches, uri) for _ in range(2))
    assert best < 0.2  # takes about 0.01 s; with backtracking, longer than the age of the universe


def test_cost_grows_with_the_length_and_no_faster_than_its_square() -> None:
    """Eight times the URI takes at most about eight times as long, in the worst case."""
    compiled = compile_template("{+a}a" * MANY + "!{b:1}")
    short, long = (min(_cpu_time(compiled.matches, "a" * n) for _ in range(5)) for n in (1000, 8000))
    assert long < 40 * max(short, 1e-4)


def test_many_templates_that_do_not_match_cost_little() -> None:
    """A backend with thousands of templates does not slow down reads of other resources."""
    uri = "files:///" + "a" * 1000
    for count, template in (
        (3000, "files:///" + "a" * 500 + "b{x}"),  # decided by its first characters
        (3000, "{+x}" + "a" * 500 + "b"),  # decided by its last characters
        (100, "{+x}{?" + ",".join(["a"] * 60) + "}b{y}"),  # decided by the missing pair
    ):
        many = [compile_template(template)] * count
        assert first_match(many, uri) is None
        assert min(_cpu_time(partial(first_match, many), uri) for _ in range(3)) < 0.2  # takes about 0.01 s


def _cpu_time(function: Callable[[str], object], uri: str) -> float:
    began = time.process_time()
    function(uri)
    return time.process_time() - began
