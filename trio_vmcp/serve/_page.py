"""The page of `/status` for browsers: files of this package, which show what the same address gives as JSON."""

from __future__ import annotations

from importlib.resources import files

import attrs

__all__ = ["PAGE_PATH", "PageFile", "page_files"]

PAGE_PATH = "/status"
_FILES = (
    (PAGE_PATH, "status.html", "text/html; charset=utf-8"),
    ("/status.css", "status.css", "text/css; charset=utf-8"),
    ("/status.js", "status.js", "text/javascript; charset=utf-8"),
)
# Nothing from elsewhere, no script and no style within the page, no frame around it. The icon is a data url.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


@attrs.frozen
class PageFile:
    """One file, and the headers that it is sent with."""

    body: bytes = attrs.field(repr=False)
    headers: tuple[tuple[bytes, bytes], ...]


def page_files() -> dict[str, PageFile]:
    """By their paths. They name each other without a directory, so they work wherever the application is mounted."""
    home = files("trio_vmcp.serve").joinpath("page")
    return {
        path: PageFile(home.joinpath(name).read_bytes(), ((b"content-type", media_type.encode()), *_HEADERS))
        for path, name, media_type in _FILES
    }
