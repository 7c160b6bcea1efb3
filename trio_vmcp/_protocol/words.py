"""What a backend says in the body of a refusal, as one short line for an error text. Sans-IO.

The words are untrusted: the texts that quote them use `repr`. A backend may repeat what it was sent, so secrets of the
request are replaced before anything is cut, or a part of one could stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl

__all__ = ["MOST_WORDS", "blotted", "is_credential", "quoted", "secrets_in", "secrets_of", "words_in"]

MOST_WORDS = 300  # characters that an error quotes
_MOST_READ = 8 * 1024  # bytes of a body, in which its words are looked for
_SHORTEST_SECRET = 6  # characters; shorter values would blot out ordinary words
_TITLE = re.compile(r"<title[^<>]*>([^<]*)<", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")

# Headers whose values are no secrets, in lower case. Any other header may be a credential, or the id of a session.
_NO_SECRETS = frozenset(
    [
        "accept",
        "accept-encoding",
        "accept-language",
        "connection",
        "content-length",
        "content-type",
        "host",
        "mcp-method",
        "mcp-name",
        "mcp-protocol-version",
        "user-agent",
    ]
)
_NO_CREDENTIALS = ("cookie", "last-event-id", "mcp-session-id")  # the user's own cookies are looked at before


def is_credential(name: str) -> bool:
    """Whether a header of a request may say who asks. `name` is in lower case."""
    return not (name in _NO_SECRETS or name in _NO_CREDENTIALS or name.startswith("mcp-param-"))


def secrets_of(headers: Iterable[tuple[str, str]], query: str) -> dict[str, str]:
    """The values in a request that no text may show, each with what stands in its place; the longest first.

    Args:
        headers: Names in lower case.
        query: Of the url.
    """
    found: dict[str, str] = {}
    for name, value in headers:
        if name == "cookie":
            found |= {part.partition("=")[2]: "[cookie]" for part in value.split("; ")}
        if name not in _NO_SECRETS:
            found |= dict.fromkeys((value, value.partition(" ")[2]), f"[{name}]")  # "Bearer x" may be repeated as "x"
    found |= dict.fromkeys([query, *(value for _, value in parse_qsl(query))], "[query]")
    return {value: found[value] for value in sorted(found, key=len, reverse=True) if len(value) >= _SHORTEST_SECRET}


def secrets_in(environment: Mapping[str, str]) -> dict[str, str]:
    """The values in the environment of a program that no text may show, as `secrets_of`."""
    found = {value: f"${name}" for name, value in environment.items() if len(value) >= _SHORTEST_SECRET}
    return {value: found[value] for value in sorted(found, key=len, reverse=True)}


def blotted(text: str, secrets: Mapping[str, str]) -> str:
    """A text without these values: in the place of each stands what it is."""
    for value, name in secrets.items():
        text = text.replace(value, name)
    return text


def quoted(words: str) -> str:
    """The end of an error text that quotes these words; empty: there are none."""
    return f": {words!r}" if words else ""


def words_in(data: bytes | bytearray, media_type: str, secrets: dict[str, str]) -> str:
    """The words in a body, at most `MOST_WORDS` characters; empty: there are none, or it is no text."""
    if media_type and not (media_type.startswith("text/") or media_type.endswith(("json", "xml"))):
        return ""
    text = blotted(data[:_MOST_READ].decode(errors="replace"), secrets)
    if media_type == "text/html" or text.lstrip()[:1] == "<":
        title = _TITLE.search(text)
        text = title[1] if title and not title[1].isspace() else _TAG.sub(" ", text)
    text = " ".join(text.split())
    return text if len(text) <= MOST_WORDS else text[: MOST_WORDS - 1] + "…"
