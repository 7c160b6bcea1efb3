"""One response: its head, and its body as raw bytes, of the built-in transport or any other."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Protocol

import attrs
import trio

from trio_vmcp._client.http.credentials import Body
from trio_vmcp._client.http.errors import cause_of, translated
from trio_vmcp._http.response import Headers
from trio_vmcp._protocol.headers import parse_media_type, parse_retry_after
from trio_vmcp.errors import BackendProtocolError, MessageTooLarge

__all__ = ["HttpReply", "Source"]

# Chunks of a body between two checkpoints: buffered chunks need no wait, so a flood of them would stop all other tasks.
# Counted in chunks, not bytes, since a chunk of one byte takes as long as one of 64 KiB.
_CHUNKS_PER_STEP = 16


class Source(Protocol):
    """The origin of a reply's bytes: a connection of the built-in transport, or a user's transport."""

    def receive(self) -> Awaitable[bytes | None]:
        """The next bytes of the body; None at its end."""
        ...

    @property
    def is_ended(self) -> bool:
        """The whole body was handed out."""
        ...

    @property
    def pieces(self) -> int:
        """How many pieces the bytes that `receive` returned last had arrived in."""
        ...

    async def aclose(self) -> None:
        """Give the connection back, or close it if the body was not read to its end. Bounded in time; never raises."""
        ...

    async def close_connection(self) -> None:
        """Close the connection, so that no request uses it again. Bounded in time; never raises."""
        ...


@attrs.define(eq=False)
class HttpReply:
    """The head of a response, and its body as raw bytes."""

    backend_id: str
    status: int
    body: Body
    headers: Headers = attrs.field(repr=False)  # names in lower case
    source: Source = attrs.field(repr=False)
    sent: Headers = attrs.field(factory=list, repr=False)  # of the request, beside those that its link always sends
    _received: int = attrs.field(default=0, init=False)
    _media_type: str | None = attrs.field(default=None, init=False)  # None: not read yet

    @property
    def is_ended(self) -> bool:
        """The body was read to its end."""
        return self.source.is_ended

    @property
    def pieces(self) -> int:
        """How many pieces the bytes that `receive` returned last had arrived in."""
        return self.source.pieces

    def header(self, name: str) -> str | None:
        """One header's value, the values of repeated ones joined; None: absent."""
        wanted = name.encode()
        values = [value for header, value in self.headers if header == wanted]
        return b", ".join(values).decode("latin-1") if values else None

    def header_values(self, name: str) -> list[str]:
        wanted = name.encode()
        return [value.decode("latin-1") for header, value in self.headers if header == wanted]

    @property
    def retry_after(self) -> float | None:
        """s, as the backend asks with `Retry-After`; None: it does not."""
        value = self.header("retry-after")
        return None if value is None else parse_retry_after(value, datetime.now(UTC))

    @property
    def media_type(self) -> str:
        if self._media_type is None:
            self._media_type = parse_media_type(self.header("content-type"))
        return self._media_type

    def refuse_encoding(self) -> None:
        """Refuse a compressed body. The request said `Accept-Encoding: identity`, and 1 KiB may inflate to 1 GiB."""
        encoding = (self.header("content-encoding") or "").strip().lower()
        if encoding not in ("", "identity"):
            raise self.protocol_error("answered with a Content-Encoding although identity was asked for")

    async def receive(self) -> bytes | None:
        """The next bytes of the body; None at its end.

        Raises:
            BackendUnavailable, BackendProtocolError: The body broke off.
        """
        if self.source.is_ended:
            return None
        self._received += 1
        if self._received % _CHUNKS_PER_STEP == 0:
            await trio.lowlevel.checkpoint()
        try:
            return await self.source.receive()
        except Exception as exc:  # noqa: BLE001  # a user's transport may raise anything
            raise translated(exc, self.backend_id, written=self.body.written) from cause_of(exc)

    async def read(self, limit: int) -> bytes | bytearray:
        """The whole body.

        Raises:
            MessageTooLarge: Over `limit` bytes.
        """
        self.refuse_encoding()
        data: bytes | bytearray = b""
        while (chunk := await self.receive()) is not None:
            if len(data) + len(chunk) > limit:
                raise MessageTooLarge(
                    self.backend_id, f"sent an answer of over {limit} bytes (max_message_bytes)", may_have_executed=True
                )
            if not data:
                data = chunk  # mostly the whole body, which saves a copy
            else:  # one buffer: a list of chunks of a byte or two takes twenty times their size
                data = data if isinstance(data, bytearray) else bytearray(data)
                data += chunk
        return data

    async def aclose(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""
        await self.source.aclose()

    async def close_connection(self) -> None:
        """Close the connection after an answer that breaks the protocol: its length may be wrong, too, and then the
        rest of it would be read as the next response.
        """
        await self.source.close_connection()

    def protocol_error(self, detail: str) -> BackendProtocolError:
        return BackendProtocolError(self.backend_id, detail, may_have_executed=self.body.written)
