"""The errors of authenticators: their fields and texts, and copies of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from trio_vmcp import VmcpError
from trio_vmcp.serve import AuthenticatorUnavailable, Unauthenticated


def test_the_challenge_of_a_request_without_credentials_is_plain() -> None:
    """`Bearer` alone: RFC 6750 §3.1 wants no error code for a request that has no credentials."""
    error = Unauthenticated("the request has no credentials")
    assert ("the request has no credentials", "Bearer") == (str(error), error.challenge)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize(
    "error",
    [Unauthenticated("expired", 'Bearer error="invalid_token"'), AuthenticatorUnavailable("away", retry_after=2.5)],
    ids=lambda error: type(error).__name__,
)
def test_errors_can_be_pickled_and_copied(error: VmcpError, make: Callable[[VmcpError], VmcpError]) -> None:
    """Type, text and fields are the same afterwards."""
    other = make(error)
    assert (type(error), str(error), repr(error)) == (type(other), str(other), repr(other))
    fields = ("detail", "challenge") if isinstance(error, Unauthenticated) else ("detail", "retry_after")
    assert [getattr(error, name) for name in fields] == [getattr(other, name) for name in fields]
