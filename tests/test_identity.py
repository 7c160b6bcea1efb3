"""The identity of a session: its valid fields, the binding that the metadata keeps, and the callers that it fits."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_vmcp.identity import Identity, bind, is_bound_to, process_keys, same_principal

KEYS = (b"this year's key", b"last year's key")
ALICE = Identity(issuer="https://idp.example", subject="alice", token="secret-token")

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
identities = st.builds(Identity, issuer=text, subject=text, token=st.just("secret-token"))
principals = st.none() | identities


@pytest.mark.parametrize("field", ["issuer", "subject"])
@pytest.mark.parametrize("value", ["", "a\0b", "\ud800", None, b"bytes", 7])
def test_a_principal_is_two_texts(field: str, value: Any) -> None:
    """Empty, NUL, a lone surrogate or another type is a ValueError that names the field."""
    with pytest.raises(ValueError, match=rf"^identity {field} "):
        Identity(**{"issuer": "i", "subject": "s", field: value})


@pytest.mark.parametrize("value", [None, b"secret", {"secret": "secret"}, "secret \ud800"])
def test_a_bad_token_is_refused_unseen(value: Any) -> None:
    """A token that is not text is a ValueError; neither its text nor its context shows the token."""
    with pytest.raises(ValueError, match=r"^identity token ") as caught:
        Identity(issuer="i", subject="s", token=value)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_an_identity_needs_no_token() -> None:
    """The token is empty by default."""
    assert Identity(issuer="i", subject="s").token == ""


def test_a_token_is_neither_shown_nor_compared() -> None:
    """An identity with a refreshed token is the same principal, and no repr shows a token."""
    refreshed = attrs.evolve(ALICE, token="another-token")
    assert refreshed == ALICE
    assert hash(refreshed) == hash(ALICE)
    assert "Identity(issuer='https://idp.example', subject='alice')" == repr(ALICE)


def test_an_identity_does_not_change() -> None:
    """An identity is frozen, so that it stays the one that was verified."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        ALICE.subject = "mallory"  # type: ignore[misc]


@given(principals, principals)
def test_the_same_principal_is_equality(a: Identity | None, b: Identity | None) -> None:
    """Two identities are the same principal if issuer and subject are equal; None is the same as None only."""
    assert (a == b) == same_principal(a, b)
    assert same_principal(a, a)


@given(principals, principals)
def test_a_binding_fits_its_own_principal_alone(owner: Identity | None, caller: Identity | None) -> None:
    """The binding of an anonymous session fits anonymous callers; that of a principal fits this principal."""
    binding = bind(owner, KEYS)
    assert is_bound_to(binding, owner, KEYS)
    assert (owner == caller) == is_bound_to(binding, caller, KEYS)


@pytest.mark.parametrize(("issuer", "subject"), [("a", "bc"), ("abc", "d"), ("ab", "cd"), ("c", "ab")])
def test_no_two_principals_are_encoded_alike(issuer: str, subject: str) -> None:
    """The boundary between issuer and subject is part of the digest."""
    binding = bind(Identity(issuer="ab", subject="c"), KEYS)
    assert not is_bound_to(binding, Identity(issuer=issuer, subject=subject), KEYS)


def test_a_binding_is_a_keyed_digest() -> None:
    """The digest begins with its scheme, and cannot be computed without the key.

    Its bytes are pinned: rows of live sessions hold them, so another encoding must take another scheme.
    """
    principal = b"".join(
        [(19).to_bytes(8, "big"), b"https://idp.example", (5).to_bytes(8, "big"), b"alice"],
    )
    assert "v1:" + hmac.digest(KEYS[0], principal, "sha256").hex() == bind(ALICE, KEYS)


def test_keys_can_be_rotated() -> None:
    """The first key makes bindings, all keys verify them, and a binding of a removed key fits no caller."""
    of_last_year = bind(ALICE, KEYS[1:])
    assert is_bound_to(of_last_year, ALICE, KEYS)
    assert bind(ALICE, KEYS) == bind(ALICE, KEYS[:1])
    assert not is_bound_to(of_last_year, ALICE, KEYS[:1])


@given(st.text(), principals)
def test_a_binding_of_another_origin_fits_no_caller(binding: str, caller: Identity | None) -> None:
    """A stored row may hold anything, lone surrogates and the empty text included."""
    assert not is_bound_to(binding, caller, KEYS)


@pytest.mark.parametrize(
    ("binding", "caller"),
    [
        pytest.param(bind(ALICE, KEYS[:1]), ALICE, id="first key"),
        pytest.param(bind(ALICE, KEYS[1:]), ALICE, id="last key"),
        pytest.param(bind(ALICE, KEYS), Identity(issuer="i", subject="s"), id="stranger"),
        pytest.param(bind(ALICE, KEYS), None, id="nobody on a bound session"),
        pytest.param(None, ALICE, id="somebody on an anonymous session"),
        pytest.param(None, None, id="anonymous"),
        pytest.param("", ALICE, id="unknown id"),
    ],
)
def test_a_check_does_the_same_work_for_every_caller(
    binding: str | None, caller: Identity | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every key is tried, in constant time each, so that the time tells a caller nothing about the session."""
    digests: list[bytes] = []
    compared: list[int] = []
    real_new, real_compare = hmac.new, hmac.compare_digest

    def counting_new(key: bytes, *rest: Any) -> hmac.HMAC:
        digests.append(key)
        return real_new(key, *rest)

    def counting_compare(a: bytes, b: bytes) -> bool:
        compared.append(len(b))  # if the lengths differ, compare_digest reads all of the second
        return real_compare(a, b)

    monkeypatch.setattr(hmac, "new", counting_new)
    monkeypatch.setattr(hmac, "compare_digest", counting_compare)
    is_bound_to(binding, caller, KEYS)
    assert list(KEYS) == digests
    assert [len("v1:") + 64] * len(KEYS) == compared


def test_one_random_key_per_process() -> None:
    """Without `identity_keys` there is one random key of 32 bytes, the same for the whole process."""
    (key,) = process_keys()
    assert 32 == len(key)
    assert process_keys() is process_keys()


@pytest.mark.parametrize("caller", [ALICE, None])
def test_without_a_key_nothing_is_bound(caller: Identity | None) -> None:
    """Binding without a key is an error that names the setting, not an unkeyed digest."""
    no_keys: Sequence[bytes] = ()
    with pytest.raises(ValueError, match="identity_keys"):
        bind(caller, no_keys)
