"""The suite's scenarios for servers, and the front that each of them is run against, over a backend of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from conformance.fixture import ROUND, SuiteBackend, suite_backend
from trio_vmcp import Backend, Bare, FactorySettings, open_session_factory, open_session_manager
from trio_vmcp.serve import asgi_app
from trio_vmcp.testing import open_loopback

__all__ = ["NEEDED", "OPTIONAL", "open_front"]

# The front never ends a stream before its response, which this scenario waits for ("not applicable").
OPTIONAL = frozenset(["server-sse-polling"])

_BOTH: Mapping[str, tuple[str, ...]] = {
    "completion-complete": ("completion/complete",),
    "tools-list": ("tools/list",),
    "tools-call-simple-text": ("tools/call test_simple_text",),
    "tools-call-image": ("tools/call test_image_content",),
    "tools-call-audio": ("tools/call test_audio_content",),
    "tools-call-embedded-resource": ("tools/call test_embedded_resource",),
    "tools-call-mixed-content": ("tools/call test_multiple_content_types",),
    "tools-call-error": ("tools/call test_error_handling",),
    "tools-call-with-progress": ("tools/call test_tool_with_progress",),
    "json-schema-2020-12": ("tools/list",),
    "server-sse-multiple-streams": (),
    "resources-list": ("resources/list",),
    "resources-read-text": ("resources/read test://static-text",),
    "resources-read-binary": ("resources/read test://static-binary",),
    "resources-templates-read": ("resources/read test://template/123/data",),
    "prompts-list": ("prompts/list",),
    "prompts-get-simple": ("prompts/get test_simple_prompt",),
    "prompts-get-with-args": ("prompts/get test_prompt_with_arguments",),
    "prompts-get-embedded-resource": ("prompts/get test_prompt_with_embedded_resource",),
    "prompts-get-with-image": ("prompts/get test_prompt_with_image",),
    "dns-rebinding-protection": (),
}


def _round(*kinds: str) -> tuple[str, ...]:
    return tuple(f"tools/call {ROUND}{kind}" for kind in kinds)


# By version and scenario: what the backend must have been asked for, or the scenario has shown nothing.
NEEDED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "2025-11-25": {
        "server-initialize": (),
        "server-session-lifecycle": (),
        "logging-set-level": ("logging/setLevel info",),
        "ping": (),
        **_BOTH,
        "tools-call-with-logging": ("tools/call test_tool_with_logging",),
        "tools-call-sampling": ("tools/call test_sampling",),
        "tools-call-elicitation": ("tools/call test_elicitation",),
        "elicitation-sep1034-defaults": ("tools/call test_elicitation_sep1034_defaults",),
        "elicitation-sep1330-enums": ("tools/call test_elicitation_sep1330_enums",),
        "resources-subscribe": ("resources/subscribe test://watched-resource",),
        "resources-unsubscribe": ("resources/unsubscribe test://watched-resource",),
    },
    "2026-07-28": {
        "server-stateless": (
            "tools/call test_missing_capability",
            "tools/call test_logging_tool",
            "tools/call test_trigger_tool_change",
            "tools/call test_trigger_prompt_change",
        ),
        **_BOTH,
        "sep-2164-resource-not-found": (),
        "caching": (),
        "http-header-validation": (),
        "http-custom-header-server-validation": ("tools/call test_mirrored_argument",),
        "input-required-result-basic-elicitation": _round("elicitation"),
        "input-required-result-basic-sampling": _round("sampling"),
        "input-required-result-basic-list-roots": _round("list_roots"),
        "input-required-result-request-state": _round("request_state"),
        "input-required-result-multiple-input-requests": _round("multiple_inputs"),
        "input-required-result-multi-round": _round("multi_round"),
        "input-required-result-missing-input-response": _round("elicitation"),
        "input-required-result-non-tool-request": ("prompts/get test_input_required_result_prompt",),
        "input-required-result-result-type": _round("elicitation"),
        "input-required-result-unsupported-methods": (),
        "input-required-result-tampered-state": _round("tampered_state"),
        "input-required-result-capability-check": _round("capabilities"),
        "input-required-result-ignore-extra-params": _round("elicitation"),
        "input-required-result-validate-input": (),
    },
}


@asynccontextmanager
async def open_front() -> AsyncIterator[tuple[str, SuiteBackend]]:
    """A front on a free port of loopback, and the backend behind it."""
    backend, settings = suite_backend(), FactorySettings(conflict_resolution=Bare(), min_backends=1)
    config = Config()
    config.bind, config.loglevel = ["127.0.0.1:0"], "WARNING"
    async with (
        open_loopback(backend) as url,
        open_session_factory(settings=settings) as factory,
        open_session_manager(factory, [Backend(id="suite", url=url)]) as manager,
        trio.open_nursery() as nursery,
    ):
        app: Any = asgi_app(manager)  # hypercorn's types describe each message; ours are of ASGI
        run = partial(serve, app, config, shutdown_trigger=trio.sleep_forever)
        (bound,) = await nursery.start(run)
        yield f"{bound}/mcp", backend
        nursery.cancel_scope.cancel(reason="the scenario has ended")
