"""Which parts of what a backend was given are secrets, and in which forms they may come back."""

from __future__ import annotations

import base64

import pytest

from trio_vmcp._protocol.words import blotted, secrets_in, secrets_in_arguments, secrets_of

BASIC = base64.b64encode(b"robot:pa55-w0rd").decode()


@pytest.mark.parametrize(
    ("headers", "query", "text", "shown"),
    [
        ([("authorization", "Bearer t0ken-x")], "", "bad t0ken-x", "bad [authorization]"),
        ([("authorization", f"Basic {BASIC}")], "", f"bad {BASIC}", "bad [authorization]"),
        ([("authorization", f"Basic {BASIC}")], "", "bad robot:pa55-w0rd", "bad [authorization]"),
        ([("authorization", f"Basic {BASIC}")], "", "robot has not pa55-w0rd", "robot has not [authorization]"),
        ([("authorization", "Basic ***")], "", "robot", "robot"),
        ([("authorization", "Basic /////w==")], "", "/////w==", "[authorization]"),
        ([], "key=a%2Fb%2Fc%2Fd", "a%2Fb%2Fc%2Fd or a/b/c/d", "[query] or [query]"),
        ([("user-agent", "robot/1.0")], "", "robot/1.0", "robot/1.0"),
    ],
)
def test_what_a_request_held_of_secrets(headers: list[tuple[str, str]], query: str, text: str, shown: str) -> None:
    """Also the part of a value that a server takes out of its encoding: RFC 7617 §2, RFC 3986 §2.1."""
    assert shown == blotted(text, secrets_of(headers, query))


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--token", "s3cret-x", "--verbose"], {"s3cret-x"}),
        (["--token=s3cret-x"], {"s3cret-x"}),
        (["-e", "API_KEY=s3cret-x", "image:latest"], {"s3cret-x"}),
        (["--header", "Authorization: Bearer s3cret-x"], {"Bearer s3cret-x", "s3cret-x"}),
        (["--header", "Authorization:Bearer s3cret-x"], {"Bearer s3cret-x", "s3cret-x"}),
        (["postgres://robot:s3cret-x@db.test/shop"], {"robot:s3cret-x", "s3cret-x"}),
        (["postgres://robot:s3cret%2Fx@db.test/shop"], {"robot:s3cret%2Fx", "robot:s3cret/x", "s3cret/x"}),
        (["https://mcp.test/mcp?api_key=s3cret-x&region=europe"], {"s3cret-x"}),
        (["https://mcp.test/mcp?region=europe"], set()),
        (["-y", "@shop/token-server", "/srv/shop/files", "--region", "europe"], set()),
        (["--token", "short"], set()),
        (["--token"], set()),
    ],
)
def test_arguments_that_are_secrets_are_told_by_their_names(arguments: list[str], found: set[str]) -> None:
    """Names of packages, paths and other values are words that an error needs."""
    assert found == secrets_in_arguments(arguments)


def test_the_values_given_to_a_program() -> None:
    """A variable names its value; where both hold the same, the name of the variable stands."""
    secrets = secrets_in({"SHOP_KEY": "s3cret-x"}, ["--token", "s3cret-x", "--password", "s3cret-x-and-more"])
    assert "$SHOP_KEY, [argument]" == blotted("s3cret-x, s3cret-x-and-more", secrets)
