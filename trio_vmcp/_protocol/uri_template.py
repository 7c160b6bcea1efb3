"""Whether a URI could have come from an RFC 6570 template. No I/O, and no regular expression made of foreign text.

A backend supplies the template and a caller the URI, so neither may decide what a match costs. The URI is split into
tokens (a character, or a percent-encoded one). A set of places in the URI is one int: bit i says that the template so
far can end before token i. Each piece of the template turns the set into the next with a few operations on whole ints,
so there is no backtracking.

What matches:
- A literal matches itself only, character by character: no decoding, no case folding, no normalisation.
- Every variable may be undefined or empty (RFC 6570 §3.2.1), so an expression may match nothing.
- `{var}`, `{.var}`, `{/var}` and `{;var}` take a path segment; `/`, `?` and `#` end the value. An expansion encodes
  `:` and `@`, too, but users write `user@host` for `{user}`, and servers accept it.
- `{+var}` and `{#var}` take anything.
- `{?a,b}`, `{&a,b}` and `{;a,b}` take the named pairs in any order, since servers read them in any order.
- An exploded variable may be a map with keys that the caller chooses: its expression takes any names.
- `{var:3}` counts characters; a percent-encoded UTF-8 sequence is one (RFC 6570 §2.4.1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import attrs

__all__ = ["MAX_URI_LENGTH", "Uri", "UriTemplate", "compile_template", "first_match"]

MAX_TEMPLATE_LENGTH = 2048  # characters
MAX_VARIABLES = 64  # in one template; the cost of named pairs is their number squared
MAX_URI_LENGTH = 8192  # characters; a longer URI matches nothing

_PIECE = re.compile(r"\{([^{}]*)\}|([^{}]+)")
_RESERVED_OPERATORS = "=,!@|"  # RFC 6570 §2.2: reserved for extensions
_VARIABLE = re.compile(
    r"(?P<name>(?:\w|%[0-9A-Fa-f]{2})+(?:\.(?:\w|%[0-9A-Fa-f]{2})+)*)(?:(?P<explode>\*)|:(?P<prefix>[1-9][0-9]{0,3}))?",
    re.ASCII,
)
_TOKEN = re.compile(r"%[C-Fc-f][0-9A-Fa-f](?:%[89ABab][0-9A-Fa-f]){1,3}|%[0-9A-Fa-f]{2}|.", re.DOTALL)


@attrs.define(eq=False)
class Uri:
    """A URI as sets of places: bit i stands before token i."""

    text: str
    length: int  # tokens
    # Operations on sets so far, each of about 0.5 microseconds.
    work: float = attrs.field(default=0.0, init=False)
    _places: dict[str, list[int]] = attrs.field(alias="places")
    _sets: dict[str, int] = attrs.field(factory=dict[str, int], init=False)

    @classmethod
    def read(cls, text: str) -> Uri:
        tokens = _TOKEN.findall(text)
        places: dict[str, list[int]] = {}
        for place, token in enumerate(tokens):
            places.setdefault(token, []).append(place)
        return cls(text, len(tokens), places)

    def places_of(self, token: str) -> int:
        """Where `token` stands."""
        if (known := self._sets.get(token)) is not None:
            return known
        bits = bytearray(self.length // 8 + 1)
        for place in self._places.get(token, ()):
            bits[place >> 3] |= 1 << (place & 7)
        self._sets[token] = found = int.from_bytes(bits, "little")
        return found

    def places_without(self, tokens: str) -> int:
        """Where some token stands, but none of `tokens`."""
        found = (1 << self.length) - 1
        for token in tokens:
            found &= ~self.places_of(token)
        return found


def _read_text(uri: Uri, places: int, text: str) -> int:
    """From `places`, read `text`."""
    for match in _TOKEN.finditer(text):
        if not places:
            break
        uri.work += 1
        places = (places & uri.places_of(match[0])) << 1
    return places


def _read_any(places: int, allowed: int) -> int:
    """From `places`, read any number of `allowed` tokens.

    Adding a set to the runs of ones that it stands in carries to the end of each run (MatchStar, Cameron et al. 2014).
    """
    return (((places & allowed) + allowed) ^ allowed) | places


def _read_up_to(places: int, allowed: int, most: int | None) -> int:
    """From `places`, read at most `most` of the `allowed` tokens; None: any number."""
    if most is None:
        return _read_any(places, allowed)
    near, reach = places, 0
    while reach < most:  # doubles, so that 9999 takes 14 rounds
        step = min(reach + 1, most - reach)
        near |= near << step
        reach += step
    return near & _read_any(places, allowed)


@attrs.frozen
class _Operator:
    """One line of the table in RFC 6570, appendix A."""

    first: str
    separator: str
    named: bool
    ends: str  # what no value holds


_SEGMENT = "/?#"
_ACROSS = "?#"
_WORK_OF_VALUE, _WORK_OF_PREFIX = 6, 40  # of one variable; with a prefix, sets are doubled up to 14 times
_WORK_OF_GLANCE = 0.5  # of a template whose literal text at one end decides
_OPERATORS = {
    "": _Operator("", ",", False, _SEGMENT),
    "+": _Operator("", ",", False, ""),
    "#": _Operator("#", ",", False, ""),
    ".": _Operator(".", ".", False, _SEGMENT),
    "/": _Operator("/", "/", False, _SEGMENT),
    ";": _Operator(";", ";", True, _SEGMENT + ";"),
    "?": _Operator("?", "&", True, "&#"),
    "&": _Operator("&", "&", True, "&#"),
}


@attrs.frozen
class _Variable:
    name: str
    exploded: bool
    most: int | None  # characters


@attrs.frozen
class _Expression:
    operator: _Operator
    variables: tuple[_Variable, ...]

    @property
    def is_segment(self) -> bool:
        """`{var}`, without an operator."""
        return not self.operator.first and self.operator.ends == _SEGMENT

    @property
    def work(self) -> int:
        """Operations on sets, at most."""
        each = sum(_WORK_OF_VALUE if variable.most is None else _WORK_OF_PREFIX for variable in self.variables)
        if not self.operator.named:
            return each
        return each * len(self.variables) + sum(len(variable.name) for variable in self.variables)

    def read(self, uri: Uri, places: int, across: bool) -> int:
        """Where this expression may end if it begins at one of `places`.

        Args:
            across: `{var}` may hold `/`.
        """
        if not self.operator.named:
            return places | self._read_values(uri, places, across and self.is_segment)
        if any(variable.exploded for variable in self.variables):
            start = _read_text(uri, places, self.operator.first)
            return places | _read_any(start, self._values(uri) | uri.places_of(self.operator.separator))
        return places | self._read_pairs(uri, places)

    def _values(self, uri: Uri) -> int:
        return uri.places_without(self.operator.ends)

    def _read_values(self, uri: Uri, places: int, across: bool) -> int:
        """Values in the order of their variables, some of them undefined."""
        reached = 0
        values = uri.places_without(_ACROSS) if across else self._values(uri)
        for variable in self.variables:
            allowed = values | (uri.places_of(self.operator.separator) if variable.exploded else 0)
            start = _read_text(uri, places, self.operator.first) | _read_text(uri, reached, self.operator.separator)
            reached |= _read_up_to(start, allowed, variable.most)
        return reached

    def _read_pairs(self, uri: Uri, places: int) -> int:
        """`name=value` or `name`, in any order, as many as there are variables."""
        allowed, everywhere = self._values(uri), (1 << (uri.length + 1)) - 1
        names = [(v, len(_TOKEN.findall(v.name)), _read_text(uri, everywhere, v.name)) for v in self.variables]
        reached, start = 0, _read_text(uri, places, self.operator.first)
        for _ in self.variables:
            if not start:
                break
            ended = 0
            for variable, length, name_ends in names:
                named = (start << length) & name_ends
                ended |= named | _read_up_to(_read_text(uri, named, "="), allowed, variable.most)
            reached |= ended
            start = _read_text(uri, ended, self.operator.separator)
        return reached


def _sum_work(template: UriTemplate) -> tuple[int, ...]:
    return tuple(len(piece) if isinstance(piece, str) else piece.work for piece in template._pieces)


def _count_literals(template: UriTemplate) -> int:
    return sum(len(piece) for piece in template._pieces if isinstance(piece, str))


def _has_segments(template: UriTemplate) -> bool:
    return any(not isinstance(piece, str) and piece.is_segment for piece in template._pieces)


@attrs.frozen
class UriTemplate:
    """A template that is ready to be matched; `compile_template` makes it."""

    _pieces: tuple[str | _Expression, ...] = attrs.field(alias="pieces")
    # Of each piece, at most.
    _work: tuple[int, ...] = attrs.field(default=attrs.Factory(_sum_work, takes_self=True), init=False, repr=False)
    literals: int = attrs.field(default=attrs.Factory(_count_literals, takes_self=True), init=False)  # characters
    # `{var}`, which may be taken across `/`.
    has_segments: bool = attrs.field(default=attrs.Factory(_has_segments, takes_self=True), init=False)

    def matches(self, uri: str) -> bool:
        """Whether some values of the variables make this URI."""
        return first_match((self,), uri) is not None

    def fits(self, uri: Uri, most_work: float = math.inf, *, across: bool = False) -> bool | None:
        """`matches`, for a URI that is tried on many templates.

        Args:
            most_work: Of `uri.work`, which this adds to.
            across: `{var}` may hold `/`, which RFC 6570 encodes: MCP's own example is `file:///{path}`.

        Returns:
            None: The work would go over `most_work`.
        """
        if uri.work >= most_work:
            return None
        uri.work += _WORK_OF_GLANCE
        # Literal text at the ends decides for nearly all templates: without this, thousands of templates are slow.
        if self._pieces and isinstance(head := self._pieces[0], str) and not uri.text.startswith(head):
            return False
        if self._pieces and isinstance(tail := self._pieces[-1], str) and not uri.text.endswith(tail):
            return False
        places = 1
        for piece, work in zip(self._pieces, self._work, strict=True):
            if uri.work + work > most_work:
                return None
            if isinstance(piece, str):
                places = _read_text(uri, places, piece)
            else:
                uri.work += work
                places = piece.read(uri, places, across)
            if not places:
                return False
        return bool(places >> uri.length)


def first_match(templates: Iterable[UriTemplate], uri: str) -> int | None:
    """The index of the first template that matches; the URI is prepared once for all of them."""
    if len(uri) > MAX_URI_LENGTH:
        return None
    prepared = Uri.read(uri)
    return next((index for index, template in enumerate(templates) if template.fits(prepared)), None)


def compile_template(template: str) -> UriTemplate:
    """Parse a template of any level.

    Raises:
        ValueError: It is malformed, or over MAX_TEMPLATE_LENGTH or MAX_VARIABLES.
    """
    if len(template) > MAX_TEMPLATE_LENGTH:
        raise ValueError(f"URI template of {len(template)} characters is over {MAX_TEMPLATE_LENGTH}")
    pieces: list[str | _Expression] = []
    end = variables = 0
    for match in _PIECE.finditer(template):
        if match.start() != end:
            break
        end = match.end()
        if match[2]:
            pieces.append(match[2])
        else:
            pieces.append(expression := _parse_expression(template, match[1]))
            variables += len(expression.variables)
    if end != len(template):
        raise ValueError(f"URI template {template!r} has a stray brace at or after character {end}")
    if variables > MAX_VARIABLES:
        raise ValueError(f"URI template {template!r} has {variables} variables, over {MAX_VARIABLES}")
    return UriTemplate(tuple(pieces))


def _parse_expression(template: str, text: str) -> _Expression:
    if text and text[0] in _RESERVED_OPERATORS:
        raise ValueError(f"URI template {template!r}: operator {text[0]!r} is reserved")
    sign = text[:1] if text[:1] in _OPERATORS else ""
    variables: list[_Variable] = []
    for spec in text[len(sign) :].split(","):
        match = _VARIABLE.fullmatch(spec)
        if match is None:
            raise ValueError(f"URI template {template!r}: {spec!r} is not `name`, `name*` or `name:1` to `name:9999`")
        most = match["prefix"]
        variables.append(_Variable(match["name"], bool(match["explode"]), int(most) if most else None))
    return _Expression(_OPERATORS[sign], tuple(variables))
