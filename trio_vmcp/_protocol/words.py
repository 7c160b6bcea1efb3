"""What a backend says in the body of a refusal, as one short line for an error text. Sans-IO.

The words are untrusted: the texts that quote them use `repr`. A backend may repeat what it was sent, so secrets of the
request are replaced before anything is cut, or a part of one could stay.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import parse_qsl, unquote

__all__ = [
    "MOST_WORDS",
    "blotted",
    "is_credential",
    "names_secret",
    "quoted",
    "secrets_in",
    "secrets_in_arguments",
    "secrets_of",
    "words_in",
]

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
_SECRET_NAME = re.compile(
    r"auth|token|secret|passw|pwd|pass$|key|credential|cookie|session|private|signature|^sig$|^code$|dsn|jwt|database_?url",
    re.IGNORECASE,
)
_NAMED_VALUE = re.compile(r"-*([\w.-]+)\s*[=:]\s*(?!//)(.+)", re.DOTALL)  # --token=x, TOKEN=x, X-Api-Key: x
_URL = re.compile(r"[a-z][a-z0-9+.-]*://(?:([^/?#]*)@)?[^?#]*(?:\?([^#]*))?", re.IGNORECASE)
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
            found |= dict.fromkeys(_forms(value), f"[{name}]")
    as_sent = (part.partition("=")[2] for part in query.split("&"))
    found |= dict.fromkeys([query, *as_sent, *(value for _, value in parse_qsl(query))], "[query]")
    return _longest_first(found)


def names_secret(name: str) -> bool:
    """Whether a variable, an option or a header of this name commonly holds a secret."""
    return _SECRET_NAME.search(name) is not None


def secrets_in(environment: Mapping[str, str], arguments: Sequence[str] = ()) -> dict[str, str]:
    """The values given to a program that no text may show, as `secrets_of`: all of its environment, and those arguments
    whose names say that they are secrets.
    """
    found = dict.fromkeys(secrets_in_arguments(arguments), "[argument]")
    return _longest_first(found | {value: f"${name}" for name, value in environment.items()})


def secrets_in_arguments(arguments: Sequence[str]) -> set[str]:
    """The values of options such as `--token x`, `--token=x`, `-e TOKEN=x` and `-H "Authorization: Bearer x"`, and the
    password and such parameters of a url.
    """
    found: set[str] = set()
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if url := _URL.search(argument):
            userinfo = unquote(url[1] or "")
            found |= {url[1] or "", userinfo, userinfo.partition(":")[2]}
            found |= {value for name, value in parse_qsl(url[2] or "") if names_secret(name)}
        if (named := _NAMED_VALUE.match(argument)) and names_secret(named[1]):
            found |= {*_forms(named[2])}
        elif argument.startswith("-") and "=" not in argument and names_secret(argument):
            found |= {*_forms(following)}
    return {value for value in found if len(value) >= _SHORTEST_SECRET}


def _forms(value: str) -> tuple[str, ...]:
    """A value, and the parts of it that a text may repeat alone: of "Bearer x" x, of HTTP Basic what it encodes, and
    the password in that (RFC 7617 §2).
    """
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "basic":
        return (value, token)
    try:
        userinfo = base64.b64decode(token, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return (value, token)
    return (value, token, userinfo, userinfo.partition(":")[2])


def _longest_first(secrets: Mapping[str, str]) -> dict[str, str]:
    """A secret may hold a shorter one, which must not be replaced in it."""
    return {value: secrets[value] for value in sorted(secrets, key=len, reverse=True) if len(value) >= _SHORTEST_SECRET}


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
