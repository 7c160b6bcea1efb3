"""What a backend was given by the requests of one link, and what it says, without that.

A backend may repeat what it was sent. Each text of a backend goes through here before it stands in an error or a log.
"""

from __future__ import annotations

import attrs
import httpx

from trio_vmcp._client.http.cookies import BackendCookies
from trio_vmcp._client.http.reply import HttpReply
from trio_vmcp._http.response import Headers
from trio_vmcp._protocol.words import blotted, is_credential, secrets_of, words_in

__all__ = ["MOST_SIGNATURES", "GivenSecrets"]

MOST_SIGNATURES = 100  # credentials of `auth` that are looked for in texts of the backend


@attrs.define(eq=False)
class GivenSecrets:
    """The secrets in the requests of one link.

    Attributes:
        target: Where requests go: another url than the first once a permanent redirect was followed.
    """

    _constant: Headers = attrs.field(repr=False)  # of every request
    _cookies: BackendCookies
    _url: httpx.URL = attrs.field(repr=False)
    target: httpx.URL = attrs.field(init=False, repr=False)
    # The newest credentials that `auth` has put into requests: a backend may repeat them in a stream that does not tell
    # which request it is about.
    _signatures: dict[tuple[bytes, bytes], None] = attrs.field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.target = self._url

    def note_sent(self, headers: Headers) -> None:
        """A request with these headers is sent, which `auth` may have signed."""
        for pair in headers:
            if pair not in self._signatures and pair not in self._constant and is_credential(pair[0].decode().lower()):
                self._signatures[pair] = None
        while len(self._signatures) > MOST_SIGNATURES:
            del self._signatures[next(iter(self._signatures))]

    def is_signed(self, reply: HttpReply) -> bool:
        """The request carried what may be credentials."""
        return bool(self._queries or self._cookies.own) or any(is_credential(name) for name, _ in self._all(reply.sent))

    def blot(self, text: str, sent: Headers) -> str:
        """A text of the backend without what a request with these headers, beside the usual ones, held of secrets, and
        without the credentials of other requests.
        """
        return blotted(text, self._secrets(sent))

    def words(self, reply: HttpReply, data: bytes | bytearray) -> str:
        """What a response says in its body, `data`: short, and without secrets."""
        return words_in(data, reply.media_type, self._secrets(reply.sent))

    def challenge(self, reply: HttpReply) -> tuple[str | None, str | None]:
        """The header `WWW-Authenticate` as received, and without secrets; None: absent."""
        value = reply.header("www-authenticate")
        return value, None if value is None else self.blot(value, reply.sent)

    def _secrets(self, sent: Headers) -> dict[str, str]:
        everything = [*self._signatures, *self._cookies.headers(self.target), *sent]
        return secrets_of(self._all(everything), self._queries)

    @property
    def _queries(self) -> str:
        """What may be secret in the addresses of requests."""
        return "&".join(url.query.decode() for url in dict.fromkeys((self._url, self.target)) if url.query)

    def _all(self, sent: Headers) -> list[tuple[str, str]]:
        """The headers of a request, with names in lower case."""
        return [(name.decode().lower(), value.decode("latin-1")) for name, value in (*self._constant, *sent)]
