"""Where the keys of an issuer are read: at a url, by the library's own transport, or in a file."""

from __future__ import annotations

import os
import ssl
from collections.abc import Collection
from ipaddress import ip_address

import attrs
import httpx
import trio

from trio_vmcp._http.failure import failure_text
from trio_vmcp._http.proxy import Proxies
from trio_vmcp._http.transport import Http11Transport
from trio_vmcp._http.user_agent import USER_AGENT
from trio_vmcp.models import public_url
from trio_vmcp.serve._issuer_keys import LIFETIME, Fetched, KeysUnavailable, lifetime_of
from trio_vmcp.serve._jwks import KeySet, read_key_set

__all__ = ["KeyFile", "KeyUrl", "check_url"]

FETCH_TIMEOUT = 5.0  # s, from the connection to the last byte; requests wait for it
MOST_BYTES = 512 * 1024  # of a key set; to parse it takes a few ms
_CLOSE_TIMEOUT = 1.0  # s, to close a response of a transport that is not the library's


def check_url(url: str) -> None:
    """
    Raises:
        ValueError: Keys must not be fetched there: a set that others can change on the way verifies what they like. The
            text holds no userinfo and no query.
    """
    shown = public_url(url)
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):  # from None: the error quotes the url
        raise ValueError(f"jwks {shown!r} is no URL") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise ValueError(f"jwks {shown!r} is not https:// with a host and without userinfo")
    if parsed.scheme == "http" and not _is_loopback(parsed.host):
        raise ValueError(f"jwks {shown!r} is not https://, which keys need from another machine")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@attrs.frozen(eq=False)
class KeyUrl:
    """A key set at a url.

    Attributes:
        transport: None: the library's own, opened for each fetch, since there are minutes between two.
        ssl_context, proxies: For the library's own.
    """

    url: str = attrs.field(repr=public_url)
    algorithms: Collection[str]
    transport: httpx.AsyncBaseTransport | None
    ssl_context: ssl.SSLContext | None
    proxies: Proxies | None

    async def fetch(self) -> Fetched:
        """
        Raises:
            KeysUnavailable: After `FETCH_TIMEOUT` s at the latest.
        """
        problem = f"did not answer within {FETCH_TIMEOUT:g} s"
        with trio.move_on_after(FETCH_TIMEOUT):
            try:
                return await self._fetch()
            except KeysUnavailable:
                raise
            except Exception as error:  # noqa: BLE001  # any transport may be behind it, and raise anything
                problem = f"could not be reached: {failure_text(error)}"
        raise self._unavailable(problem)

    async def _fetch(self) -> Fetched:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": USER_AGENT.decode()}
        own = Http11Transport(ssl_context=self.ssl_context, proxies=self.proxies)
        try:
            request = httpx.Request("GET", self.url, headers=headers)
            response = await (self.transport or own).handle_async_request(request)
            try:
                body = await self._read(response)
            finally:
                with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                    await response.aclose()
        finally:
            own.close()
        try:
            keys = read_key_set(body, self.algorithms)
        except ValueError as error:
            raise self._unavailable(f"answered with what is no key set: {error}") from None
        return Fetched(keys, lifetime_of(response.headers.get("cache-control", "")))

    async def _read(self, response: httpx.Response) -> bytes:
        # A redirect is an error: what is at another place was not configured.
        if response.status_code != httpx.codes.OK:
            raise self._unavailable(f"answered HTTP {response.status_code}")
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise self._unavailable("answered with a Content-Encoding although identity was asked for")
        assert isinstance(response.stream, httpx.AsyncByteStream)
        body = bytearray()
        async for chunk in response.stream:
            body += chunk
            if len(body) > MOST_BYTES:
                raise self._unavailable(f"answered with over {MOST_BYTES} bytes")
        return bytes(body)

    def _unavailable(self, problem: str) -> KeysUnavailable:
        return KeysUnavailable(f"{public_url(self.url)} (jwks) {problem}")


@attrs.frozen(eq=False)
class KeyFile:
    """A key set in a file, which is read anew as often as a url would be."""

    path: str
    algorithms: Collection[str]

    def read(self) -> KeySet:
        """
        Raises:
            KeysUnavailable: There is no such file, or it holds no key set.
        """
        try:
            with open(self.path, "rb") as file:
                data = file.read(MOST_BYTES + 1)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else type(error).__name__
            raise KeysUnavailable(f"the file {self.path!r} (jwks) cannot be read: {why}") from None
        if len(data) > MOST_BYTES:
            raise KeysUnavailable(f"the file {self.path!r} (jwks) has over {MOST_BYTES} bytes")
        try:
            return read_key_set(data, self.algorithms)
        except ValueError as error:
            raise KeysUnavailable(f"the file {self.path!r} (jwks) holds what is no key set: {error}") from None

    async def fetch(self) -> Fetched:
        """
        Raises: As `read`.
        """
        return Fetched(await trio.to_thread.run_sync(self.read), LIFETIME)
