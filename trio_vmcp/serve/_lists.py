"""The four lists of a session as a client gets them: entries under their advertised names, in pages.

A page is cut after so many entries, and its cursor names the last of them. So a cursor is good in any process and after
any change of the list, as long as that entry is there.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from trio_vmcp._protocol.methods import LISTS, ListMethod
from trio_vmcp.models import JSON
from trio_vmcp.serve._errors import INVALID_PARAMS, Refusal
from trio_vmcp.session import Session

__all__ = ["LIST_METHODS", "PAGE", "list_page"]

PAGE = 1000  # entries; some clients read the first page alone
MOST_CURSOR = 8192  # characters: a cursor holds a name or URI

LIST_METHODS: dict[str, ListMethod] = {method.name: method for method in LISTS}


def list_page(session: Session, method: ListMethod, params: JSON) -> JSON:
    """The result of one list request.

    Raises:
        Refusal: The cursor is none of this list.
    """
    entries: tuple[Any, ...] = getattr(session, method.kept_as)
    start = 0
    cursor = params.get("cursor")
    if cursor is not None:
        last = _read_cursor(cursor, method)
        start = next((at + 1 for at, entry in enumerate(entries) if _key_of(entry, method) == last), 0)
        if not start:
            raise _bad_cursor()
    page = entries[start : start + PAGE]
    result: JSON = {method.array: [_entry(each, method) for each in page]}
    if start + PAGE < len(entries):
        result["nextCursor"] = _write_cursor(_key_of(page[-1], method), method)
    return result


def _key_of(entry: Any, method: ListMethod) -> str:
    key: str = entry.uri_template if method.key == "uriTemplate" else getattr(entry, method.key)
    return key


def _entry(entry: Any, method: ListMethod) -> JSON:
    """The backend's object. Tools and prompts are called by their advertised names; URIs are never rewritten."""
    raw: JSON = entry.raw
    return raw if method.key != "name" or raw["name"] == entry.name else {**raw, "name": entry.name}


def _write_cursor(key: str, method: ListMethod) -> str:
    data = json.dumps([method.array, key], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _read_cursor(cursor: object, method: ListMethod) -> str:
    if not isinstance(cursor, str) or not 0 < len(cursor) <= MOST_CURSOR:
        raise _bad_cursor()
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found = json.loads(data)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise _bad_cursor() from None
    match found:
        case [method.array, str(key)]:
            return key
    raise _bad_cursor()


def _bad_cursor() -> Refusal:
    return Refusal(INVALID_PARAMS, "the cursor is none of this list, or its entry is gone: begin without a cursor")
