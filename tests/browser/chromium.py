"""A headless Chromium, driven by the DevTools protocol over two pipes (`--remote-debugging-pipe`): JSON messages, each
with a NUL behind it.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

__all__ = ["Page", "find_chromium", "open_chromium"]

START_TIMEOUT = 45.0  # s; a first start makes a profile
END_TIMEOUT = 10.0  # s
_OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # which root has not
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little of it
    "--no-first-run",
    "--disable-background-networking",  # loopback only
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
# Chromium reads from descriptor 3 and writes to 4.
_LAUNCH = """
import fcntl, os, sys
reads, writes = (fcntl.fcntl(int(each), fcntl.F_DUPFD_CLOEXEC, 10) for each in sys.argv[1:3])
os.dup2(reads, 3)
os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str:
    """The program, which is installed where it is missing, as in a container of CI."""
    if not shutil.which("chromium"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        packages = ("chromium", "fonts-dejavu-core")
        subprocess.run(["apt-get", "update", "-q"], check=True, env=environment)
        subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends", *packages], check=True, env=environment)
    found = shutil.which("chromium")
    assert found is not None
    return found


@attrs.define(eq=False)
class _Pipe:
    """Commands to the browser and their results, and the events of its pages."""

    _requests: trio.lowlevel.FdStream
    _answers: trio.lowlevel.FdStream
    _ids: itertools.count[int] = attrs.field(factory=lambda: itertools.count(1), init=False)
    _waiting: dict[int, tuple[trio.Event, list[Any]]] = attrs.field(factory=dict, init=False)
    events: list[Any] = attrs.field(factory=list, init=False)

    async def command(self, method: str, params: dict[str, Any], session: str | None = None) -> Any:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        answered, answers = self._waiting[number] = trio.Event(), []
        await self._requests.send_all(json.dumps(message).encode() + b"\0")
        await answered.wait()
        assert answers, "the browser has ended"
        answer = answers[0]
        assert "error" not in answer, (method, answer)
        return answer["result"]

    async def read(self) -> None:
        data = b""
        async for chunk in self._answers:
            *whole, data = (data + chunk).split(b"\0")
            for each in whole:
                self._take(json.loads(each))
        for answered, _ in self._waiting.values():  # the browser is gone
            answered.set()

    def _take(self, message: Any) -> None:
        if "id" in message:
            answered, answers = self._waiting.pop(message["id"])
            answers.append(message)
            answered.set()
        else:
            self.events.append(message)


@attrs.define(eq=False)
class Page:
    """One tab, in a context of its own."""

    _pipe: _Pipe
    _session: str

    async def command(self, method: str, **params: Any) -> Any:
        return await self._pipe.command(method, params, self._session)

    async def show(self, url: str, *, width: int, height: int, scheme: str, is_phone: bool) -> None:
        """Open an address in a window of this size, in a "light" or "dark" scheme."""
        for domain in ("Page", "Runtime", "Log"):
            await self.command(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if is_phone else 1, "mobile": is_phone}
        await self.command("Emulation.setDeviceMetricsOverride", **size)
        await self.command("Emulation.setTouchEmulationEnabled", enabled=is_phone)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.command("Emulation.setEmulatedMedia", features=features)
        await self.command("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript, as JSON."""
        found = await self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def wait(self, expression: str, *, within: float = 10.0) -> None:
        """Until an expression is true."""
        with trio.move_on_after(within):
            while not await self.evaluate(expression):  # noqa: ASYNC110  # the state of another process
                await trio.sleep(0.05)
            return
        raise AssertionError(f"not within {within} s: {expression}")

    async def press(self, key: str, code: int, text: str = "") -> None:
        """A key of the keyboard: its name, its code in Windows, and what it types."""
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            named = {"key": key, "windowsVirtualKeyCode": code}
            await self.command("Input.dispatchKeyEvent", type=kind, **named, **typed)

    async def nodes(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader is told of."""
        found = await self.command("Accessibility.getFullAXTree")
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in found["nodes"]
            if not node["ignored"]
        ]

    async def screenshot(self, path: Path) -> None:
        """The whole page, also what a window does not show."""
        found = await self.command("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        await trio.Path(path).write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[Any]:
        """What the browser reports as an error: exceptions, refusals by the policy, failed loads."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [
            event["params"]
            for event in self._pipe.events
            if event.get("sessionId") == self._session and event["method"] in kinds
        ]


@attrs.define(eq=False)
class Chromium:
    """The browser."""

    _pipe: _Pipe

    async def open_page(self) -> Page:
        context = await self._pipe.command("Target.createBrowserContext", {})
        target = await self._pipe.command("Target.createTarget", {"url": "about:blank", **context})
        attached = await self._pipe.command("Target.attachToTarget", {**target, "flatten": True})
        return Page(self._pipe, attached["sessionId"])


@asynccontextmanager
async def open_chromium(profile: Path) -> AsyncIterator[Chromium]:
    """Start one, with a new profile in this directory, and stop it afterwards."""
    requests, to_browser = os.pipe()
    from_browser, answers = os.pipe()
    options = [*_OPTIONS, f"--user-data-dir={profile}"]
    launch = [sys.executable, "-c", _LAUNCH, str(requests), str(answers), find_chromium(), *options]
    process = subprocess.Popen(  # noqa: ASYNC220  # starts a program, and does not wait for its end
        launch, pass_fds=(requests, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(requests)
    os.close(answers)
    try:
        async with trio.lowlevel.FdStream(to_browser) as ours, trio.lowlevel.FdStream(from_browser) as theirs:
            pipe = _Pipe(ours, theirs)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pipe.read)
                with trio.fail_after(START_TIMEOUT):
                    await pipe.command("Browser.getVersion", {})
                yield Chromium(pipe)
                with trio.move_on_after(END_TIMEOUT):  # it ends its other processes, too, and then the pipe
                    await pipe.command("Browser.close", {})
                    while process.poll() is None:  # noqa: ASYNC110  # another process
                        await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
    finally:
        process.kill()
        process.wait()  # noqa: ASYNC222  # it was killed
