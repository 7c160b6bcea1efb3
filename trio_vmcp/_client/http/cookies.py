"""The cookies of one backend, for one session: a load balancer keeps a client to one instance with them.

They go back to the origin that set them and nowhere else, since a link talks to one origin. The rules of RFC 6265 are
those of the standard library's cookie jar, by `httpx.Cookies`. Browsers' limits hold: RFC 6265 §6.1.
"""

from __future__ import annotations

import warnings
from contextlib import suppress

import attrs
import httpx

from trio_vmcp._http.response import Headers

__all__ = ["LONGEST_COOKIE", "MOST_COOKIES", "BackendCookies"]

MOST_COOKIES = 50
LONGEST_COOKIE = 4096  # bytes of a `Set-Cookie` value, attributes included


@attrs.define(eq=False)
class BackendCookies:
    """Keeps what a backend sets, and gives the `Cookie` header of a request.

    Args:
        own: The user's `Cookie` header; it comes first. Empty: none.
    """

    own: bytes = attrs.field(default=b"", repr=False)
    _jar: httpx.Cookies | None = attrs.field(default=None, init=False, repr=False)  # None: the backend set none
    _own_header: Headers = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._own_header = [(b"Cookie", self.own)] if self.own else []

    def keep(self, url: httpx.URL, headers: Headers) -> None:
        """Take the cookies of a response. One that is over a limit, not in ASCII or not to be read is ignored.

        Args:
            url: Of the request.
            headers: Of the response, with names in lower case.
        """
        found = [pair for pair in headers if pair[0] == b"set-cookie"]
        for pair in found[:MOST_COOKIES]:
            if len(pair[1]) > LONGEST_COOKIE or not pair[1].isascii():
                continue
            response = httpx.Response(200, headers=[pair], request=httpx.Request("POST", url))
            if self._jar is None:
                self._jar = httpx.Cookies()
            with suppress(Exception), warnings.catch_warnings():  # the jar warns of attributes that it fails to read
                warnings.simplefilter("error")
                if len(self._jar.jar) < MOST_COOKIES or _replaces(self._jar, response):
                    self._jar.extract_cookies(response)

    def headers(self, url: httpx.URL) -> Headers:
        """The `Cookie` header of a request to `url`; empty: there is none to send."""
        if self._jar is None:
            return self._own_header
        request = httpx.Request("POST", url)
        self._jar.set_cookie_header(request)
        kept = request.headers.get("cookie", "").encode()
        value = b"; ".join(part for part in (self.own, kept) if part)
        return [(b"Cookie", value)] if value else []


def _replaces(jar: httpx.Cookies, response: httpx.Response) -> bool:
    """A cookie of the same name is kept already, so this one needs no more room."""
    name = response.headers["set-cookie"].partition("=")[0].strip()
    return any(cookie.name == name for cookie in jar.jar)
