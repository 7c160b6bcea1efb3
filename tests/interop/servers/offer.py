"""What every Python server here offers, through whichever SDK: each kind of capability, and of answer."""

import base64
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import anyio
from typing_extensions import TypedDict  # typing has its own, which pydantic refuses before Python 3.12

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class City(TypedDict):
    name: str
    inhabitants: int
    twins: list[str]


def port_argument() -> int:
    return int(sys.argv[1])


# Not postponed annotations: the SDKs look for their own Context class in a tool's signature, and each has another.
def offer_everything(server: Any, context_class: type, image: Callable[..., Any]) -> None:
    waits = {"begun": 0, "cancelled": 0}

    @server.tool()
    def echo(message: str) -> str:
        """Say the message again."""
        return message

    @server.tool()
    def add(a: int, b: int = 1) -> int:
        """Add two numbers."""
        return a + b

    @server.tool()
    def city(name: str) -> City:
        """Describe a city."""
        return City(name=name, inhabitants=1_234_567, twins=["Málaga", "北京"])

    @server.tool()
    def pixel() -> Any:
        """A very small image."""
        return image(data=PIXEL, format="png")

    @server.tool()
    def fail(why: str) -> str:
        """Never works."""
        raise ValueError(f"refused: {why}")

    @server.tool()
    async def count(to: int, ctx: context_class) -> str:  # type: ignore[valid-type]
        """Report progress at every step."""
        for step in range(1, to + 1):
            await ctx.report_progress(step, to, f"step {step}")  # type: ignore[attr-defined]
        return f"counted to {to}"

    @server.tool()
    async def visit(url: str) -> str:
        """Fetch a page, once."""
        page = urlsplit(url)
        async with await anyio.connect_tcp(page.hostname or "", page.port or 80) as stream:
            await stream.send(f"GET {page.path} HTTP/1.0\r\n\r\n".encode())
            return (await stream.receive()).decode()

    @server.tool()
    async def wait() -> str:
        """Never answers, and notices when it is cancelled."""
        waits["begun"] += 1
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            waits["cancelled"] += 1
            raise
        return "unreachable"

    @server.tool()
    def waits_so_far() -> dict[str, int]:
        """How often `wait` was begun and cancelled."""
        return waits

    @server.resource("note://today", mime_type="text/plain", title="Today's note")
    def note() -> str:
        """A text."""
        return "first line\nsecond line ☕\u2028still the second"

    @server.resource("data://pixel", mime_type="image/png")
    def data() -> bytes:
        """A blob."""
        return PIXEL

    @server.resource("greeting://{name}")
    def greeting(name: str) -> str:
        """A greeting for any name but one."""
        if name == "nobody":
            raise ValueError("nobody is there")
        return f"Hello, {name}!"

    @server.prompt(title="Review")
    def review(code: str, style: str = "kind") -> str:
        """Ask for a review."""
        return f"Please give a {style} review of:\n{code}"


def offer_toggle(
    server: Any, context_class: type, remove: Callable[[str], None], tell: Callable[[Any], Awaitable[None]]
) -> None:
    """A tool that comes and goes while the server runs.

    Args:
        remove: Takes a tool away.
        tell: Sends `list_changed` by the SDK's own means, given the context of the call that toggles the tool.
    """
    watchers: list[Any] = []
    is_there = False

    def extra() -> str:
        """Here today."""
        return "gone tomorrow"

    @server.tool()
    async def watch(ctx: context_class) -> str:  # type: ignore[valid-type]
        """From now on this session gets `list_changed`, also for a toggle in another session."""
        watchers.append(ctx.session)  # type: ignore[attr-defined]
        return "watching"

    @server.tool()
    async def toggle(ctx: context_class) -> bool:  # type: ignore[valid-type]
        """Offer `extra`, or do so no more. Returns whether it is there now."""
        nonlocal is_there
        is_there = not is_there
        if is_there:
            server.tool(name="extra")(extra)
        else:
            remove("extra")
        for session in list(watchers):
            try:
                with anyio.fail_after(1):
                    await session.send_tool_list_changed()
            except Exception:  # noqa: BLE001  # it has ended, and each SDK has an error of its own for that
                watchers.remove(session)
        await tell(ctx)
        return is_there
