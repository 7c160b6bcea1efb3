"""The servers run once for all tests, each started by the first test that asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import TypeAlias

import pytest
from interop.fleet import Server, running

UrlOf: TypeAlias = Callable[[Server], str]


@pytest.fixture(scope="session")
def url_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UrlOf]:
    logs = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:

        @cache
        def started(server: Server) -> str:
            return stack.enter_context(running(server, logs / f"{server.name}.log")).url

        yield started
