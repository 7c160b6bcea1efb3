"""What an instance sends to backends, recorded request by request."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import httpx
import trio
from support.harness import Ledger, session_ids_in

from simulation.backends import SimulatedBackend
from simulation.outgoing_auth import RequestStamps
from simulation.trace import Event, Sent, SessionIdRead
from trio_vmcp._http.dial import ConnectedStream
from trio_vmcp._http.origin import Origin
from trio_vmcp._http.transport import RawResponse
from trio_vmcp.testing import MemoryNetwork

__all__ = ["Seam"]

_SESSION_ID = re.compile(rb"\r\nMcp-Session-Id: ([^\r]*)")


class Seam(Ledger):
    """The transport of one instance, which records each request."""

    def __init__(
        self,
        network: MemoryNetwork,
        note: Callable[[Event], None],
        backends: Mapping[str, SimulatedBackend],
        instance: int,
        stamper: RequestStamps,
    ) -> None:
        super().__init__(network)
        self.network = network
        self._dial = self._dial_and_keep
        self.note = note
        self.backends = backends
        self.instance = instance
        self.stamper = stamper
        self.streams: list[ConnectedStream] = []
        self.is_cut = False
        self.stamped: dict[trio.lowlevel.Task, tuple[int | None, int]] = {}  # tasks that send with credentials

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Requests of a factory with `auth` come here first, and go on to `send` if they get a connection."""
        task = trio.lowlevel.current_task()
        auth_call, _ = self.stamped[task] = self.stamper.stamp(request)
        session_id = request.headers.get("mcp-session-id")
        self._note_sent(request.url.host.removesuffix(".test"), request.method, session_id)
        try:
            response = await super().handle_async_request(request)
        finally:
            del self.stamped[task]
        self.stamper.note_answer(auth_call, response.status_code)
        return response

    async def send(
        self,
        origin: Origin,
        verb: str,
        head: bytes,
        body: bytes,
        on_write: Callable[[], None],
        *,
        may_repeat: bool = False,
    ) -> RawResponse:
        backend_id = origin.host.removesuffix(".test")
        sent_id = _SESSION_ID.search(head)
        if trio.lowlevel.current_task() not in self.stamped:
            self._note_sent(backend_id, verb, None if sent_id is None else sent_id[1].decode())
        try:
            response = await super().send(origin, verb, head, body, on_write, may_repeat=may_repeat)
        finally:
            self.backends[backend_id].note_health()
        auth_call, _ = self._stamp
        for assigned in session_ids_in(response):
            self.note(
                SessionIdRead(
                    at=trio.current_time(),
                    backend_id=backend_id,
                    session_id=assigned,
                    instance=self.instance,
                    auth_call=auth_call,
                )
            )
        return response

    def cut(self) -> None:
        """Close every connection, as the kernel does when a process is gone; there will be no others."""
        self.is_cut = True
        for stream in self.streams:
            stream.close()

    async def _dial_and_keep(self, origin: Origin) -> ConnectedStream:
        stream = await self.network.dial(origin)
        if self.is_cut:
            stream.close()
            raise OSError("the instance is gone")
        self.streams.append(stream)
        return stream

    @property
    def _stamp(self) -> tuple[int | None, int | None]:
        """The call of `auth` and number of this task's request, if the factory has an `auth`."""
        return self.stamped.get(trio.lowlevel.current_task(), (None, None))

    def _note_sent(self, backend_id: str, verb: str, session_id: str | None) -> None:
        auth_call, number = self._stamp
        self.note(
            Sent(
                at=trio.current_time(),
                backend_id=backend_id,
                verb=verb,
                session_id=session_id,
                instance=self.instance,
                auth_call=auth_call,
                number=number,
            )
        )
        self.backends[backend_id].note_health()
