"""Notices of other instances' writes, by PUBLISH: a hint that comes soon, and may be lost."""

from __future__ import annotations

from contextlib import aclosing

import trio
from coredis.connection import BaseConnection

from trio_vmcp._nursery import start_task
from trio_vmcp.storage._redis_address import RedisAddress
from trio_vmcp.storage._redis_client import make_connection

__all__ = ["listen", "make_notice"]

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # s between two attempts to listen: it doubles while they fail
_KEEPALIVE = 5.0  # s between two checks of the connection, and for the answer to one


def make_notice(origin: str, tag: str) -> str:
    """The message about a row. `origin` names the storage that wrote, so that it does not hear of its own writes."""
    return f"{origin} {tag}"


async def listen(address: RedisAddress, channel: str, origin: str, send: trio.MemorySendChannel[str]) -> None:
    """Send the tag of each row that another storage writes or deletes, until cancelled. Connects again and again."""
    pause = _SHORTEST_PAUSE
    while True:
        begun_at = trio.current_time()
        try:
            await _listen_once(address, channel, origin, send)
        except* Exception:  # noqa: BLE001  # Redis is away: a notice is a hint, and operations report the outage
            pass
        if trio.current_time() > begun_at + _LONGEST_PAUSE:
            pause = _SHORTEST_PAUSE  # it did listen
        await trio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _listen_once(address: RedisAddress, channel: str, origin: str, send: trio.MemorySendChannel[str]) -> None:
    connection = make_connection(address)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(_KEEPALIVE):
            await nursery.start(connection.run)
        connection.send_command(b"SUBSCRIBE", channel)
        start_task(nursery, _keep_alive, connection)
        async with aclosing(connection.push_messages) as messages:
            async for kind, _, *data in messages:
                if kind == b"message" and isinstance(data[0], bytes):
                    _pass_on(data[0].decode("ascii", "replace"), origin, send)


def _pass_on(notice: str, origin: str, send: trio.MemorySendChannel[str]) -> None:
    sender, _, tag = notice.partition(" ")
    if sender == origin:
        return
    try:
        send.send_nowait(tag)
    except (trio.WouldBlock, trio.BrokenResourceError):  # the reader is busy, or on its way out
        return


async def _keep_alive(connection: BaseConnection) -> None:
    """A connection to a server that is gone without a word looks like one on which nothing happens."""
    while True:
        await trio.sleep(_KEEPALIVE)
        await connection.create_request(b"PING", timeout=_KEEPALIVE)
