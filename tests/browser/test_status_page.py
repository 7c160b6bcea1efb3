"""The page of `/status` in a real browser: it shows what is, live, on a phone and on a desktop, in light and dark, by
keyboard and to a screen reader. In real time, over loopback.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from browser.chromium import Page, open_chromium
from support.front import FrontWorld, LegacyClient, front_world, modern_request
from support.harness import echo_backend, slow_backend

from trio_vmcp import FactorySettings, Identity
from trio_vmcp.serve import ServeSettings, Unauthenticated
from trio_vmcp.serve.server import serve_front
from trio_vmcp.testing import ScriptedBackend, Status

PHONE, DESKTOP = (390, 844), (1280, 800)
HOSTILE = b"broken: <img src=x onerror=document.title='CANARY'><script>document.title='CANARY'</script> "
FACTORY = FactorySettings(session_init_timeout=1, reconnect_delay=0.2, reconnect_max_delay=0.2)
ROWS = "[...document.querySelectorAll('tbody tr')]"
CONDITIONS = "[...document.querySelectorAll('.condition')]"
SIGN = "each.querySelector('use').href.baseVal"
ASKED = "performance.getEntriesByType('resource').filter((each) => each.initiatorType === 'fetch').length"
# px: where the widest element ends, or what overflows one.
RIGHTMOST = """
Math.max(...[...document.body.querySelectorAll("*")].map((each) => {
  const box = each.getBoundingClientRect();
  return Math.max(box.right, box.left + each.scrollWidth);
}))
"""
PRESS = "document.getElementById('pause').click()"
# What follows comes while an answer is under way.
THEN = "await new Promise((done) => setTimeout(done));"
# A headless browser never hides a page.
HIDE = """
Object.defineProperty(document, "hidden", {{value: {}, configurable: true}});
document.dispatchEvent(new Event("visibilitychange"));
"""

# The lowest ratio of contrast between a text and what is behind it: WCAG 2.2, 1.4.3 (4.5 for text of this size).
LEAST_CONTRAST = """
(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (element) => {
    const own = channels(getComputedStyle(element).backgroundColor);
    return own.length === 3 || own[3] > 0 || !element.parentElement ? own : ground(element.parentElement);
  };
  const ratio = (element) => {
    const both = [channels(getComputedStyle(element).color), ground(element)].map(luminance).sort((a, b) => b - a);
    return (both[0] + 0.05) / (both[1] + 0.05);
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim() !== "");
  const texts = [...document.body.querySelectorAll("*")].filter((each) => hasText(each) && each.checkVisibility());
  return Math.min(...texts.map(ratio));
})()
"""


@attrs.define(eq=False)
class Seen:
    """A page of a front, and the front."""

    world: FrontWorld
    client: LegacyClient
    page: Page
    url: str
    serving: trio.CancelScope

    async def rows(self) -> list[str]:
        """The text of each backend's row, in one line."""
        texts: list[str] = await self.page.evaluate(f"{ROWS}.map((row) => row.innerText.replace(/\\s+/g, ' '))")
        return texts

    async def asked(self) -> int:
        """How often the page has asked for the status."""
        return int(await self.page.evaluate(ASKED))

    async def asks_again(self, before: int) -> int:
        """The page asks once more, at once."""
        await self.page.wait(f"{ASKED} > {before}", within=1.9)
        return before + 1

    async def asks_no_more(self) -> int:
        """How often it has asked, for longer than its pace."""
        await trio.sleep(0.5)  # for an answer that is under way
        asked = await self.asked()
        await trio.sleep(2.5)
        assert asked == await self.asked()
        return asked

    async def call_five_times(self, name: str) -> None:
        for _ in range(5):
            await self.client.ask("tools/call", {"name": name, "arguments": {}})


async def serve(world: FrontWorld, port: int) -> tuple[str, trio.CancelScope]:
    """The address of the page, and what ends the server."""
    scope = trio.CancelScope()

    async def run(task_status: trio.TaskStatus[str]) -> None:  # noqa: ASYNC114, ASYNC128  # `serve_front` calls it
        with scope:
            await serve_front(world.app, ServeSettings(), host="127.0.0.1", port=port, task_status=task_status)

    endpoint: str = await world.nursery.start(run)
    return endpoint.removesuffix("/mcp") + "/status", scope


@asynccontextmanager
async def seen(
    profile: Path,
    *backends: ScriptedBackend,
    size: tuple[int, int] = DESKTOP,
    scheme: str = "light",
    headers: Mapping[str, str] = {},
    **options: Any,
) -> AsyncIterator[Seen]:
    """The page over these backends, with one session of a legacy client."""
    async with front_world(*backends, factory=FACTORY, **options) as world, open_chromium(profile) as chromium:
        client = await world.initialize(headers=headers)
        url, serving = await serve(world, 0)
        page = await chromium.open_page()
        if headers:
            await page.command("Network.enable")
            await page.command("Network.setExtraHTTPHeaders", headers=dict(headers))
        await page.show(url, width=size[0], height=size[1], scheme=scheme, is_phone=size == PHONE)
        await page.wait(f"{ROWS}.length > 0")
        yield Seen(world, client, page, url, serving)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
async def test_it_shows_states_and_failures(
    size: tuple[int, int], scheme: str, tmp_path: Path, artefacts: Path
) -> None:
    """Readable at both sizes and in both schemes: nothing scrolls sideways, the contrast is enough, each state has a
    sign and a word, and a screen reader finds headings and tables. What a backend says is text and nothing else.
    """
    broken = echo_backend()
    broken.fail("initialize", Status(500, HOSTILE + b"unbroken" * 20, {"content-type": "text/plain"}))
    backends = (echo_backend("both"), slow_backend(), broken, echo_backend())
    async with seen(tmp_path, *backends, size=size, scheme=scheme) as it:
        await it.client.result("tools/call", {"name": "a_echo", "arguments": {}})
        it.client.start("tools/call", {"name": "b_slow", "arguments": {}})
        message, headers = modern_request("tools/call", {"name": "a_echo", "arguments": {}})
        assert 200 == (await it.world.post(message, headers)).status
        backends[3].crash()
        await it.call_five_times("d_echo")
        await it.page.wait(f"{ROWS}.length === 8 && {ROWS}.some((row) => row.innerText.includes('unreachable'))")
        texts = [text for text in await it.rows() if text.startswith("c ")]
        assert 2 == len(texts)
        assert all("rejected: answered 'initialize' with HTTP 500" in text and "<script>" in text for text in texts)
        assert 0 == await it.page.evaluate("document.images.length")
        assert "CANARY" not in await it.page.evaluate("document.title")
        signs = await it.page.evaluate(f"{CONDITIONS}.map((each) => [each.innerText, {SIGN}])")
        signs = [(text.split()[0], sign) for text, sign in signs]
        assert {"ready", "degraded"} <= {word for word, _ in signs} <= {"ready", "degraded", "recovering"}
        assert all(f"#sign-{word}" == sign for word, sign in signs)
        assert await it.page.evaluate(RIGHTMOST) <= size[0] == await it.page.evaluate("innerWidth")
        assert await it.page.evaluate(LEAST_CONTRAST) >= 4.5
        nodes = await it.page.nodes()
        roles = [role for role, _ in nodes]
        assert (2, 10) == (roles.count("table"), roles.count("row"))
        assert {"Now", "Sessions", "trio-vmcp 0.1.0"} <= {name for role, name in nodes if role == "heading"}
        assert ("columnheader", "Latest failure") in nodes
        assert [] == it.page.complaints()
        await it.page.screenshot(artefacts / f"status-{size[0]}x{size[1]}-{scheme}.png")


async def test_it_is_live(tmp_path: Path) -> None:
    """A backend that dies shows so within a pace, and when it is back; the changes are told to screen readers. The row
    is the same element all the time, so that a selection stays.
    """
    backend = echo_backend()
    async with seen(tmp_path, backend, echo_backend()) as it:
        await it.page.evaluate(f"window.first = {ROWS}[0]")
        assert "All backends are ready." == await it.page.evaluate("document.getElementById('summary').innerText")
        backend.crash()
        await it.call_five_times("a_echo")
        await it.page.wait("first.innerText.includes('unreachable')")
        assert "1 not ready · trio-vmcp" == await it.page.evaluate("document.title")
        assert (await it.rows())[1].startswith("b ready")
        backend.restart()
        await it.page.wait("first.innerText.includes('ready') && first.innerText.includes('earlier:')")
        log = await it.page.evaluate("document.querySelector('[role=log]').innerText")
        assert "a of session #" in log
        assert "→ ready" in log
        assert await it.page.evaluate(f"first === {ROWS}[0]")
        await it.client.delete()
        await it.page.wait("!document.getElementById('none').hidden")


async def test_it_rests_while_it_is_paused_or_hidden(tmp_path: Path) -> None:
    """By keyboard alone: the button is the first stop, and is seen to have the focus."""
    async with seen(tmp_path) as it:
        await it.page.press("Tab", 9)
        assert "pause" == await it.page.evaluate("document.activeElement.id")
        assert ["solid", "3px"] == await it.page.evaluate(
            "(({outlineStyle, outlineWidth}) => [outlineStyle, outlineWidth])(getComputedStyle(document.activeElement))"
        )
        await it.page.press(" ", 32, " ")
        assert "true" == await it.page.evaluate("document.activeElement.getAttribute('aria-pressed')")
        asked = await it.asks_no_more()
        await it.page.press(" ", 32, " ")
        asked = await it.asks_again(asked)
        await it.page.evaluate(PRESS)
        await it.page.evaluate(f"(async () => {{ {PRESS}; {THEN} {PRESS}; }})()")
        assert asked + 1 == await it.asks_no_more()
        await it.page.evaluate(f"(async () => {{ {PRESS}; {THEN} {HIDE.format('true')} }})()")
        assert asked + 2 == await it.asks_no_more()
        await it.page.evaluate(HIDE.format("false"))
        await it.asks_again(asked + 2)


async def test_it_says_that_the_server_is_away(tmp_path: Path) -> None:
    """The last state stays to be seen, with what is wrong above it; and goes on when the server is back."""
    async with seen(tmp_path) as it:
        it.serving.cancel()
        await it.page.wait("!document.getElementById('problem').hidden")
        assert "No answer of the server" in await it.page.evaluate("document.getElementById('problem').innerText")
        assert "not known" == await it.page.evaluate("document.getElementById('server').innerText")
        assert 1 == len(await it.rows())
        it.world.app.is_draining = False
        await serve(it.world, int(it.url.split(":")[2].partition("/")[0]))
        await it.page.wait("document.getElementById('problem').hidden")
        assert "takes requests" == await it.page.evaluate("document.getElementById('server').innerText")


class OneToken:
    """An authenticator that knows one token."""

    async def authenticate(self, headers: Mapping[str, str]) -> Identity:
        if headers.get("authorization") != "Bearer good":
            raise Unauthenticated("the token is none")
        return Identity(issuer="https://issuer.test", subject="operator", token="good")


async def test_it_works_with_credentials(tmp_path: Path) -> None:
    """Such as a proxy or an extension of the browser adds. When they end, the page says why it has no answer."""
    good = {"authorization": "Bearer good"}
    async with seen(tmp_path, headers=good, authenticator=OneToken()) as it:
        await it.page.command("Network.setExtraHTTPHeaders", headers={})
        await it.page.wait("document.getElementById('problem').innerText.includes('HTTP 401')")
        await it.page.command("Network.setExtraHTTPHeaders", headers=good)
        await it.page.wait("document.getElementById('problem').hidden")
