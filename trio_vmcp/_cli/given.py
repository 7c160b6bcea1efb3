"""The arguments of a tool or prompt as they stand on a command line, and as JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import attrs

from trio_vmcp.models import JSON

__all__ = ["Given", "parse_words", "read_object", "types_of"]

_MOST_SCHEMAS = 1000  # that are looked at for the type of one value


@attrs.frozen
class Given:
    """Arguments in one of three forms.

    Attributes:
        pairs: From `key=value`; which JSON a value is depends on the tool's schema.
        whole: All arguments, from a JSON object.
        place: Where all arguments are to be read from, as one JSON object: a path, or "-" for stdin.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    whole: JSON | None = None
    place: str = ""

    def fill_in(self, schema: object) -> JSON:
        """The arguments as JSON: a value is a string unless the schema gives its key other types only.

        Raises:
            ValueError: A value is not JSON where the schema wants another type than a string; names the key.
        """
        if self.whole is not None:
            return self.whole
        return {key: _value(key, text, schema) for key, text in self.pairs}


def parse_words(words: Sequence[str]) -> Given:
    """`key=value` words, or one word for all arguments: a JSON object, `@FILE`, or `-` for stdin.

    Raises:
        ValueError: Names the form that is wrong, and never a value.
    """
    if len(words) == 1 and (words[0] == "-" or words[0].startswith("@")):
        place = words[0].removeprefix("@")
        if not place:
            raise ValueError("argument @FILE: has no file")
        return Given(place=place)
    if len(words) == 1 and _looks_like_json(words[0]):
        return Given(whole=read_object(words[0], "argument JSON: "))
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals or _looks_like_json(word):
            raise ValueError(
                "argument ARGUMENT: each is KEY=VALUE, or a single one is a JSON object, @FILE, or - for stdin"
            )
        if key in pairs:
            raise ValueError(f"argument {key[:40]}: is there twice")
        pairs[key] = value
    return Given(tuple(pairs.items()))


def _looks_like_json(word: str) -> bool:
    return word[:1] in ("{", "[")


def read_object(text: str, place: str = "") -> JSON:
    """One JSON object.

    Raises:
        ValueError: The fault, after the `place`.
    """
    try:
        value: Any = _loads(text)
    except json.JSONDecodeError as exc:
        raise ValueError(f"{place}not JSON: {exc.msg} at {exc.lineno}:{exc.colno}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{place}not JSON that can be sent") from None
    if not isinstance(value, dict):
        raise ValueError(f"{place}not a JSON object, such as {{}}")
    return value


def _loads(text: str) -> Any:
    value: Any = json.loads(text, parse_constant=_refuse_constant)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # refuses 1e999 and lone surrogates
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


# --- values by schema


def _value(key: str, text: str, schema: object) -> Any:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    wanted = types_of(properties.get(key) if isinstance(properties, dict) else None, schema)
    if not wanted or "string" in wanted:
        return text
    try:
        return _loads(text)
    except (ValueError, RecursionError):
        raise ValueError(
            f"argument {key}: the tool wants {' or '.join(sorted(wanted))}, and the value is not JSON"
        ) from None


_JSON_TYPES: Final = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def types_of(schema: object, root: object) -> set[str]:
    """The JSON types that a schema allows, as far as `type`, `enum`, `const`, alternatives and references tell."""
    found: set[str] = set()
    todo = [schema]
    for _ in range(_MOST_SCHEMAS):  # references may lead in a circle
        if not todo:
            break
        each = todo.pop()
        if not isinstance(each, dict):
            continue
        kinds = each.get("type")
        found |= {kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(kind, str)}
        values = each["enum"] if isinstance(each.get("enum"), list) else []
        if kinds is None:
            values = [each["const"]] if "const" in each else values
            found |= {_JSON_TYPES.get(type(value), "null") for value in values}
        for key in ("anyOf", "oneOf", "allOf"):
            todo += each[key] if isinstance(each.get(key), list) else []
        if isinstance(each.get("$ref"), str):
            todo.append(_referred(each["$ref"], root))
    return found


def _referred(reference: str, root: object) -> object:
    """The schema at a JSON pointer of the same document (RFC 6901), such as `#/$defs/Colour`; None: elsewhere."""
    found = root if reference.startswith("#/") else None
    for step in reference[2:].split("/"):
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found
