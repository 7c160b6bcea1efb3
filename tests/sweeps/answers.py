"""Answers that were right once: JSON-RPC, event streams and heads with something wrong in them, for Hypothesis to draw.

They are texts in which ID stands for the id of the request, so that what is wrong can be anything but that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TypeVar

import attrs
from hypothesis import strategies as st

__all__ = ["ID", "Answer", "answers", "bodies"]

T = TypeVar("T")

ID = "@ID@"
JSON_TYPE, SSE_TYPE = b"application/json", b"text/event-stream"


@attrs.frozen
class Answer:
    """One HTTP response.

    Attributes:
        cuts: Some places to cut its body at; what is behind its end cuts nothing.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    cuts: list[int]

    def sliced(self) -> list[Sequence[int]]:
        """The same body arrives as drawn, at once, and at first byte by byte, or by seven."""
        return [sorted(self.cuts), [], range(1, 60), range(7, 500, 7)]

    def chunks(self, cuts: Sequence[int], message_id: int) -> list[bytes]:
        body = self.body.replace(ID.encode(), b"%d" % message_id)
        return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


def mostly(right: T, wrong: Iterable[T]) -> st.SearchStrategy[T]:
    """An answer can be wrong in a dozen places: in one or two of them it is, as a rule, and some are right."""
    odd = list(wrong)
    return st.sampled_from([right] * (12 * len(odd)) + odd)


# Values and members of a message, as JSON texts: some of them have no other form

ODD = ("1e999", "NaN", "-Infinity", "1e-999", "-0.0", "9007199254740993", "01", "true", "null", "{}", "[]", "-1", "1.5")
ODD_STRINGS = ('""', '"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', '"\u2028"')
odd_values = st.sampled_from(ODD + ODD_STRINGS) | st.integers(1, 5).map(lambda digits: "9" * 10**digits)
nests = st.builds(
    lambda depth, opening: opening * depth, st.sampled_from([60, 127, 128, 129, 1000, 6000]), st.sampled_from("[{")
)
deep_values = nests.map(lambda nest: nest.replace("{", '{"a":') + "0" + ("]" if nest[0] == "[" else "}") * len(nest))
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
).map(json.dumps)
values = odd_values | plain_values | deep_values

ids = mostly(
    ID,
    [f'"{ID}"', f"{ID}.0", f"{ID}e0", f"-{ID}", f"{ID}0", "true", "null", "[]", "{}", f"[{ID}]", "1", "0", f'" {ID}"'],
)
CONTENT = '{"content":[{"type":"text","text":"ok"}],"isError":false}'
results = mostly(
    CONTENT,
    [
        '{"resultType":"complete","content":[]}',
        '{"resultType":"input_required"}',
        '{"resultType":7,"content":[]}',
        '{"content":{}}',
        '{"content":[1,null,{"type":1}],"structuredContent":0,"_meta":[]}',
        '{"isError":"yes","content":[]}',
    ],
)
holding = values.map(lambda value: f'{{"content":[],"structuredContent":{value}}}')
codes = st.sampled_from(
    ["-32700", "-32601", "-32602", "-32020", "-32022", "-32000", "0", '"x"', "1.5", "true", "1e999"]
)
errors = st.builds(
    lambda code, message, data: f'{{"code":{code},"message":{message}{data}}}',
    codes,
    st.sampled_from(['"no"', '""', "null", "7", '"\\ud800"', '"%s {} \\u001b[31m"']),
    st.just("") | values.map(lambda value: f',"data":{value}'),
)
methods = st.sampled_from(
    [
        '"notifications/progress"',
        '"notifications/message"',
        '"notifications/tools/list_changed"',
        '"ping"',
        '"sampling/createMessage"',
        '""',
        "null",
        "7",
    ]
)
progress = st.builds(
    lambda token, now, total, text: f'{{"progressToken":{token},"progress":{now},"total":{total},"message":{text}}}',
    ids,
    values,
    values,
    values,
)


KINDS = ("error", "both", "neither", "call")


@st.composite
def messages(draw: st.DrawFn) -> str:
    kind = draw(st.sampled_from(["result"] * 8 + [*KINDS]))
    members = [("jsonrpc", draw(mostly('"2.0"', ['"1.0"', "2.0", "null"])))]
    if kind in ("result", "both"):
        members.append(("result", draw(results | holding | holding | values)))
    if kind in ("error", "both"):
        members.append(("error", draw(errors | errors | values)))
    if kind == "call":
        members += [("method", draw(methods)), ("params", draw(progress | values))]
    members += draw(mostly([("id", draw(ids))], [[], [("id", ID)] * 2, [("id", ID), ("id", "true")]]))
    members = draw(st.permutations(members))
    message = "{" + ",".join(f'"{name}":{value}' for name, value in members) + "}"
    return draw(mostly(message, [f"[{message}]", f"[{message},{message}]", f"{message}{message}", f"\t{message}\r\n"]))


# Texts, and what becomes of them on their way


def encoded(text: str) -> st.SearchStrategy[bytes]:
    plain = text.encode()
    forms = [b"\xef\xbb\xbf" + plain, text.encode("utf-16"), text.encode("utf-32-le"), plain + b"\xff", b""]
    return mostly(plain, forms)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """As a rule not at all; else cut short, or with some bytes replaced."""
    if not whole or not draw(mostly(False, [True])):
        return whole
    start = draw(st.integers(0, len(whole) - 1))
    end = draw(st.integers(start, min(start + 20, len(whole))))
    return whole[:start] + draw(st.just(b"") | st.binary(max_size=8)) + draw(st.sampled_from([whole[end:], b""]))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A message as it arrives, without anything around it."""
    return draw(damaged(draw(encoded(draw(messages())))))


LINE_ENDS = ("\n", "\r", "\r\n")
other_lines = st.sampled_from(
    [
        ":",
        ": alive",
        "id: 7",
        "id",
        "id: a\0b",
        "id: ümlaut",
        "id: " + "x" * 1025,
        "retry: 0",
        "retry: 99999999999999999999",
        "retry: x",
        "event: message",
        "event:message",
        "event: other",
        "event",
        "data",
        "data:",
        "data: ",
        "nonsense",
        "\ufeff",
        "\ufeffdata: {}",
    ]
)


@st.composite
def events(draw: st.DrawFn) -> str:
    message = draw(messages())
    at = draw(st.integers(0, len(message)))
    pieces = draw(mostly([message], [[message[:at], message[at:]], message.split(",")]))
    colon = draw(mostly("data: ", ["data:", "data : ", "Data: "]))
    lines = [*draw(st.lists(other_lines, max_size=2)), *(colon + piece for piece in pieces)]
    end = draw(st.sampled_from(LINE_ENDS))
    return end.join([*lines, *draw(mostly(["", ""], [[""], [], ["", "", "", ""]]))])


# Heads, and whole answers

statuses = mostly(200, [201, 202, 204, 206, 299, 300, 303, 307, 308, 400, 401, 403, 404, 405, 429, 500, 503, 599])
OTHER_TYPES = (
    b"",
    b"text/html",
    b"Application/JSON; charset=utf-16",
    b"text/event-stream;charset=latin-1",
    b"\xff",
    b";",
    b"application/json, text/event-stream",
    JSON_TYPE,
    SSE_TYPE,
)
OTHER_HEADERS = (
    (b"content-encoding", b"gzip"),
    (b"content-encoding", b"identity"),
    (b"content-length", b"-1"),
    (b"content-length", b"5"),
    (b"transfer-encoding", b"gzip, chunked"),
    (b"mcp-session-id", b"one"),
    (b"mcp-session-id", b"t\xc3\xbcv"),
    (b"mcp-session-id", b"x" * 300),
    (b"location", b"/other"),
    (b"location", b"http://["),
    (b"location", b"http://elsewhere.test/"),
    (b"www-authenticate", b"Bearer " + b"x" * 2000),
    (b"retry-after", b"soon"),
    (b"set-cookie", b"a=b"),
    (b"connection", b"upgrade"),
)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    as_events = draw(st.booleans())
    text = "".join(draw(st.lists(events(), min_size=1, max_size=3))) if as_events else draw(messages())
    kind = draw(mostly(SSE_TYPE if as_events else JSON_TYPE, OTHER_TYPES))
    others = draw(mostly([], [[header] for header in OTHER_HEADERS]))
    return Answer(
        status=draw(statuses),
        headers=((b"content-type", kind), *others),
        body=draw(damaged(draw(encoded(text)))),
        cuts=draw(st.lists(st.integers(0, 200), max_size=5)),
    )
