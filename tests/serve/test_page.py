"""The page of `/status`: its files as browsers get them. How it looks and behaves is in tests/browser."""

from __future__ import annotations

import re

import pytest
from support.front import FrontWorld, Received, front_world
from trio.testing import MockClock

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
FILES = {"/status": "text/html", "/status.css": "text/css", "/status.js": "text/javascript"}


async def get(world: FrontWorld, path: str) -> Received:
    found = await world.request("GET", headers=BROWSER, path=path)
    assert 200 == found.status, found.body
    return found


async def test_a_program_gets_json_and_a_browser_the_page(autojump_clock: MockClock) -> None:
    """At one address, so caches must tell them apart (RFC 9110 §12.5.5)."""
    async with front_world() as world:
        page, document = await get(world, "/status"), await world.request("GET", path="/status")
        assert ("text/html; charset=utf-8", "application/json") == (
            page.headers["content-type"],
            document.headers["content-type"],
        )
        assert {"accept"} == {page.headers["vary"], document.headers["vary"]}


@pytest.mark.parametrize("path", FILES)
async def test_nothing_runs_in_the_page_but_its_own_files(path: str, autojump_clock: MockClock) -> None:
    """The policy allows no other host, no script within the page, and no frame around it; types are not guessed."""
    async with front_world() as world:
        found = await get(world, path)
        assert f"{FILES[path]}; charset=utf-8" == found.headers["content-type"]
        rules = dict(rule.split(" ", 1) for rule in found.headers["content-security-policy"].split("; "))
        assert "'none'" == rules.pop("default-src") == rules.pop("frame-ancestors") == rules.pop("form-action")
        assert "'none'" == rules.pop("base-uri")
        assert {"script-src": "'self'", "style-src": "'self'", "connect-src": "'self'", "img-src": "data:"} == rules
        assert ("nosniff", "no-referrer", "no-store") == tuple(
            found.headers[name] for name in ("x-content-type-options", "referrer-policy", "cache-control")
        )


async def test_the_files_name_each_other_without_a_directory(autojump_clock: MockClock) -> None:
    """So the page works under another application, too. No other host is named, and no text is parsed as HTML."""
    async with front_world() as world:
        texts = {path: (await get(world, path)).body.decode() for path in FILES}
        page, script = texts["/status"], texts["/status.js"]
        named = re.findall(r'(?:src|href)="([^"#]*)"', page)
        assert {"status.css", "status.js"} == {name for name in named if not name.startswith("data:")}
        assert [] == re.findall(r" style=| on[a-z]+=|<script>|<style", page)
        assert 'new URL("status", import.meta.url)' in script
        assert [] == re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
        hosts = set(re.findall(r"https?://([^/\"']*)", "".join(texts.values())))
        assert {"www.w3.org"} == hosts  # names a namespace


async def test_the_script_finds_what_it_looks_for(autojump_clock: MockClock) -> None:
    """Each id that the script names is in the page, once."""
    async with front_world() as world:
        page, script = [(await get(world, path)).body.decode() for path in ("/status", "/status.js")]
        ids = re.findall(r'\bid="([^"]*)"', page)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'\bat\("([^"]*)"\)', script)) <= set(ids)
        assert {"sign-ready", "sign-connecting", "sign-recovering", "sign-degraded", "sign-stopped"} <= set(ids)
