"""The client that the conformance suite watches: what a program does that uses trio_vmcp, and public names alone.

The suite starts one per scenario, with its server's URL as the last argument and the scenario's name in the
environment. Most of what it checks is what its server sees. It does not look at what became of an answer: that is
asserted here, and the exit status tells.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import attrs
import trio

from trio_vmcp import (
    JSON,
    Backend,
    Bare,
    ClientHandlers,
    FactorySettings,
    ServerRequest,
    Session,
    ToolResult,
    open_session_factory,
)

PATIENCE = (
    20.0  # s, for all of a scenario; less than the suite's own, so that it is this side which says where it hangs
)


@attrs.define
class User:
    """A handler for elicitation: it accepts every form and fills in nothing."""

    asked: trio.Event = attrs.field(factory=trio.Event)
    ready: trio.Event = attrs.field(factory=trio.Event)  # not set: the form stays open

    def handlers(self) -> ClientHandlers:
        return ClientHandlers(sampling=self.sample, elicitation=self.fill_in, roots=self.list_roots)

    async def sample(self, request: ServerRequest) -> JSON:
        return {"role": "assistant", "content": {"type": "text", "text": "hello"}, "model": "none"}

    async def fill_in(self, request: ServerRequest) -> JSON:
        self.asked.set()
        await self.ready.wait()
        return {"action": "accept", "content": {}}

    async def list_roots(self, request: ServerRequest) -> JSON:
        return {"roots": []}


Scenario: TypeAlias = Callable[[Session, User], Awaitable[None]]


async def look_around(session: Session, user: User) -> None:
    """Nothing but what opening a session does: the handshake of the era, and the lists."""


async def add_numbers(session: Session, user: User) -> None:
    expect_text("The sum of 5 and 3 is 8", await session.call_tool("add_numbers", {"a": 5, "b": 3}))


async def accept_defaults(session: Session, user: User) -> None:
    user.ready.set()
    result = await session.call_tool("test_client_elicitation_defaults")
    prefix, _, received = text_of(result).partition(": ")
    expect("Elicitation completed", prefix)
    defaults = {"name": "John Doe", "age": 30, "score": 95.5, "status": "active", "verified": True}
    expect(defaults, json.loads(received))


async def resume_a_stream(session: Session, user: User) -> None:
    expect_text("Reconnection test completed successfully", await session.call_tool("test_reconnection"))


async def call_in_rounds(session: Session, user: User) -> None:
    """With an unrelated call between two rounds of another."""

    async def in_rounds() -> None:
        expect_text("echo-state-ok", await session.call_tool("test_mrtr_echo_state"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_rounds)
        await user.asked.wait()
        expect_text("unrelated-ok", await session.call_tool("test_mrtr_unrelated"))
        user.ready.set()
    expect_text("no-state-ok", await session.call_tool("test_mrtr_no_state"))
    expect_text("no-result-type-test-ok", await session.call_tool("test_mrtr_no_result_type"))


async def use_everything(session: Session, user: User) -> None:
    """Every kind of request that has a standard header of its own, with every name on offer."""
    expect(2, len(session.tools))
    for tool in session.tools:
        expect_text("Headers test completed", await session.call_tool(tool.name))
    expect(2, len(session.resources))
    for resource in session.resources:
        expect((), (await session.read_resource(resource.uri)).contents)
    expect(1, len(session.prompts))
    for prompt in session.prompts:
        expect((), (await session.get_prompt(prompt.name)).messages)


async def replay_calls(session: Session, user: User) -> None:
    calls = json.loads(os.environ["MCP_CONFORMANCE_CONTEXT"])["toolCalls"]
    expect(True, len(calls) > 0)
    for call in calls:
        expect_text("Custom headers test completed", await session.call_tool(call["name"], call["arguments"]))


async def call_usable_tools(session: Session, user: User) -> None:
    """Every tool that the session offers: the ones with an invalid annotation must not be among them."""
    for tool in session.tools:
        expect_text("Tool call received", await session.call_tool(tool.name, {"region": "us-west1"}))
    expect(["valid_tool"], [tool.name for tool in session.tools])


async def keep_a_reference(session: Session, user: User) -> None:
    """A schema with a network `$ref` is offered as it is. The suite sees whether the reference is fetched."""
    (tool,) = session.tools
    expect("lookup_user", tool.name)
    expect({"$ref"}, set(tool.raw["inputSchema"]["properties"]["profile"]))


async def echo_a_schema(session: Session, user: User) -> None:
    (schema,) = [tool.raw["inputSchema"] for tool in session.tools if tool.name == "json_schema_2020_12_tool"]
    expect_text("echoed", await session.call_tool("json_schema_echo", {"schema": schema}))


SCENARIOS: dict[str, Scenario] = {
    "initialize": look_around,
    "tools_call": add_numbers,
    "elicitation-sep1034-client-defaults": accept_defaults,
    "sse-retry": resume_a_stream,
    "request-metadata": look_around,
    "sep-2322-client-request-state": call_in_rounds,
    "http-standard-headers": use_everything,
    "http-custom-headers": replay_calls,
    "http-invalid-tool-headers": call_usable_tools,
    "json-schema-ref-no-deref": keep_a_reference,
    "json-schema-2020-12-preservation": echo_a_schema,
}

ASKING = (accept_defaults, call_in_rounds)


def expect(expected: object, actual: object) -> None:
    if expected != actual:
        raise AssertionError(f"expected {expected!r}, got {actual!r}")


def expect_text(expected: str, result: ToolResult) -> None:
    expect(expected, text_of(result))


def text_of(result: ToolResult) -> str:
    (content,) = result.content
    text: str = content["text"]
    return text


async def main() -> None:
    scenario, url = SCENARIOS[os.environ["MCP_CONFORMANCE_SCENARIO"]], sys.argv[-1]
    user = User()
    # Only what asks its client gets handlers: with them the session tries the handshake era first.
    handlers = user.handlers() if scenario in ASKING else None
    settings = FactorySettings(conflict_resolution=Bare(), min_backends=1, request_timeout=PATIENCE / 2)
    with trio.fail_after(PATIENCE):
        async with (
            open_session_factory(settings=settings, handlers=handlers) as factory,
            factory.open_session([Backend(id="suite", url=url)]) as session,
        ):
            await scenario(session, user)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    trio.run(main)
