"""The header `Accept` (RFC 9110 §12.5.1): which forms of an answer a client takes."""

from __future__ import annotations

import pytest
from support.front import front_world, modern_request
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_vmcp.serve._accept import prefers_page

JSON_TYPE, STREAM_TYPE = "application/json", "text/event-stream"


@pytest.mark.parametrize(
    ("accept", "forms"),
    [
        ("*/*", {JSON_TYPE, STREAM_TYPE}),
        ("application/json", {JSON_TYPE}),
        ("text/*", {STREAM_TYPE}),
        ("image/png", set()),
        ("application/json, text/event-stream;q=0", {JSON_TYPE}),
        ("application/json; q=0.000, text/event-stream", {STREAM_TYPE}),
        ("*/*, application/json;q=0", {STREAM_TYPE}),
        ("text/*;q=0, */*;q=0.1", {JSON_TYPE}),
        ("text/*;q=0, text/event-stream, */*;q=0", {STREAM_TYPE}),
        ("text/event-stream;q=0, text/*, application/json", {JSON_TYPE}),
        ("*/*;q=0", set()),
        ("Application/JSON;version=1;Q=0, text/event-stream", {STREAM_TYPE}),
        ("application/json;version=1;q=0, application/json, text/*;q=0.001", {JSON_TYPE, STREAM_TYPE}),
        ("application/json, application/json;version=1;q=0", {JSON_TYPE}),
    ],
)
async def test_the_most_specific_range_decides(accept: str, forms: set[str], autojump_clock: MockClock) -> None:
    """And "a value of 0 means 'not acceptable'" (§12.4.2), for clients of either era."""
    async with front_world() as world:
        client = await world.initialize()
        client.headers["accept"] = accept
        reply = await client.ask("ping")
        taken = {reply.headers["content-type"]} if reply.status == 200 else set()
        assert taken == ({JSON_TYPE} & forms or forms)
        listening = client.listen()
        await wait_all_tasks_blocked()
        assert (STREAM_TYPE in forms) == (listening.status == 200)
        message, headers = modern_request("tools/list", {})
        status = (await world.post(message, headers | {"accept": accept})).status
        assert (len(forms) == 2, status) in ((True, 200), (False, 406))


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        (None, False),
        ("", False),
        ("*/*", False),  # curl
        ("application/json", False),
        ("text/html", True),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),  # browsers
        ("TEXT/HTML;charset=utf-8", True),
        ("application/json, text/html", False),
        ("application/json;q=0.5, text/html", True),
        ("application/json, text/html;q=0.9", False),
        ("text/html;q=0", False),
        ("text/html ; Q=0.1", True),
        ("text/html;q=x", True),
        ("text/*", False),
        (",;,q=1;", False),
        ("text/html;level=1;q=0, text/html", True),
    ],
)
def test_browsers_get_the_page(accept: str | None, is_page: bool) -> None:
    """Those that name text/html, and do not rather take JSON. JSON is the default."""
    assert is_page == prefers_page(accept)
