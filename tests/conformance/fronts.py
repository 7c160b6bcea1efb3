"""The suite's scenarios for servers, and the fronts that they are run against."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
from support.served import serving

from conformance.fixture import ROUND, SuiteBackend, suite_backend
from trio_vmcp.testing import open_loopback

__all__ = ["NEEDED", "OPTIONAL", "Front", "open_front"]

# The front never ends a stream before its response, which this scenario waits for ("not applicable").
OPTIONAL = frozenset(["server-sse-polling"])

_BOTH: Mapping[str, tuple[str, ...]] = {
    "completion-complete": ("completion/complete",),
    "tools-list": (),
    "tools-call-simple-text": ("tools/call test_simple_text",),
    "tools-call-image": ("tools/call test_image_content",),
    "tools-call-audio": ("tools/call test_audio_content",),
    "tools-call-embedded-resource": ("tools/call test_embedded_resource",),
    "tools-call-mixed-content": ("tools/call test_multiple_content_types",),
    "tools-call-error": ("tools/call test_error_handling",),
    "tools-call-with-progress": ("tools/call test_tool_with_progress",),
    "json-schema-2020-12": (),
    "server-sse-multiple-streams": (),
    "resources-list": (),
    "resources-read-text": ("resources/read test://static-text",),
    "resources-read-binary": ("resources/read test://static-binary",),
    "resources-templates-read": ("resources/read test://template/123/data",),
    "prompts-list": (),
    "prompts-get-simple": ("prompts/get test_simple_prompt",),
    "prompts-get-with-args": ("prompts/get test_prompt_with_arguments",),
    "prompts-get-embedded-resource": ("prompts/get test_prompt_with_embedded_resource",),
    "prompts-get-with-image": ("prompts/get test_prompt_with_image",),
    "dns-rebinding-protection": (),
}


def _round(*kinds: str) -> tuple[str, ...]:
    return tuple(f"tools/call {ROUND}{kind}" for kind in kinds)


# By version and scenario: what the backend must have been asked for, or the scenario has shown nothing. For the entries
# of lists no request is needed: the front has none of its own.
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


@attrs.define(eq=False)
class Front:
    """`trio-vmcp serve` over a backend of its own, for one scenario at a time."""

    url: str
    backend: SuiteBackend


@asynccontextmanager
async def open_front(place: Path) -> AsyncIterator[Front]:
    """A front on a free port of loopback, and the backend behind it."""
    backend = suite_backend()
    async with open_loopback(backend) as url, serving(place, {"suite": {"url": url}}, "--naming", "bare") as front:
        yield Front(front, backend)
