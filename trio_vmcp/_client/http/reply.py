"""One response on its way in: the head, and the body as raw bytes, wherever they come from."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

import attrs
import trio

from trio_vmcp._client.http.credentials import Body
from trio_vmcp._client.http.errors import cause_of, translated
from trio_vmcp._http.response import Headers
from trio_vmcp._protocol.headers import parse_media_type
from trio_vmcp.errors import BackendProtocolError, MessageTooLarge

__all__ = ["Reply", "Source"]

_CHUNKS_PER_STEP = 16  # of a body, before others have their turn: a chunk of one byte costs as much as one of 64 KiB


class Source(Protocol):
    """Where a reply's bytes come from: a connection of ours, or a transport of the user's."""

    def receive(self) -> Awaitable[bytes | None]:
        """The next bytes of the body; None at its end."""
        ...

    @property
    def is_ended(self) -> bool:
        """The body was handed out to its end."""
        ...

    async def aclose(self) -> None:
        """Nobody reads on. Bounded, and raises nothing. A body that was not read to its end costs the connection."""
        ...

    async def close_connection(self) -> None:
        """Never use this connection again. Bounded, and raises nothing."""
        ...


@attrs.define(eq=False)
class Reply:
    """The head of a response, and its body as raw bytes."""

    backend_id: str
    status: int
    body: Body
    headers: Headers = attrs.field(repr=False)  # names in lower case
    source: Source = attrs.field(repr=False)
    _received: int = attrs.field(default=0, init=False)

    @property
    def is_ended(self) -> bool:
        """The body was read to its end."""
        return self.source.is_ended

    def header(self, name: str) -> str | None:
        """One header's value, the values of repeated ones joined; None: absent."""
        wanted = name.encode()
        values = [value for header, value in self.headers if header == wanted]
        return b", ".join(values).decode("latin-1") if values else None

    def header_values(self, name: str) -> list[str]:
        wanted = name.encode()
        return [value.decode("latin-1") for header, value in self.headers if header == wanted]

    @property
    def media_type(self) -> str:
        return parse_media_type(self.header("content-type"))

    def refuse_encoding(self) -> None:
        """Compressed bytes are refused, not inflated: 1 KiB can become 1 GiB, and we asked for identity."""
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
        if self._received % _CHUNKS_PER_STEP == 0:  # what is buffered already needs no wait, and would have no end
            await trio.lowlevel.checkpoint()
        try:
            return await self.source.receive()
        except Exception as exc:  # noqa: BLE001  # a transport of the user's may raise anything
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
                data = chunk  # all of it, as a rule
            else:  # one buffer: a list of chunks of a byte or two would take twenty times their size
                data = data if isinstance(data, bytearray) else bytearray(data)
                data += chunk
        return data

    async def aclose(self) -> None:
        """Let go. A body that was not read to its end costs the connection."""
        await self.source.aclose()

    async def close_connection(self) -> None:
        """Never use this connection again: who gets an answer wrong may get its length wrong, and what is left of it
        would be taken for the beginning of the next one.
        """
        await self.source.close_connection()

    def protocol_error(self, detail: str) -> BackendProtocolError:
        return BackendProtocolError(self.backend_id, detail, may_have_executed=self.body.written)
