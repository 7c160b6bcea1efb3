"""Sealed texts: what opens them, what does not, and for how long."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from trio_vmcp.serve.sealing import MAX_SEALED_LENGTH, BadSeal, Sealer

OLD, NEW, OTHER = (secrets.token_bytes(32) for _ in range(3))
BOUND = b"alice\0tools/call"
MOST_PAYLOAD = 49_115  # bytes: what is left of 64 KiB of base64url
SEALER = Sealer([NEW])


@attrs.define
class Clock:
    now: float = 1_785_000_000.25

    def __call__(self) -> float:
        return self.now


def seal(payload: bytes = b"state", *, bound_to: bytes = BOUND, sealer: Sealer = SEALER) -> str:
    return sealer.seal(payload, bound_to=bound_to, lifetime=600)


def refusal(text: str, *, bound_to: bytes = BOUND, sealer: Sealer = SEALER) -> str:
    """The text of the error."""
    with pytest.raises(BadSeal) as caught:
        sealer.unseal(text, bound_to=bound_to)
    return str(caught.value)


FOREIGN = "the sealed text was not sealed here for this use"


@given(payload=st.binary(max_size=300), bound_to=st.binary(max_size=100))
def test_a_sealed_payload_comes_back(payload: bytes, bound_to: bytes) -> None:
    """What `seal` was given, from a text that fits into a URL and a header."""
    text = seal(payload, bound_to=bound_to)
    assert payload == SEALER.unseal(text, bound_to=bound_to)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", text)


@given(payload=st.binary(max_size=60), data=st.data())
def test_a_text_with_any_bit_changed_is_refused(payload: bytes, data: st.DataObject) -> None:
    """Whichever character is another, whatever takes its place, and also where base64 has unused bits."""
    text = seal(payload)
    place = data.draw(st.integers(0, len(text) - 1), "place")
    other = data.draw(st.characters().filter(lambda char: char != text[place]), "character")
    assert FOREIGN == refusal(text[:place] + other + text[place + 1 :])


def test_every_change_of_the_last_character_is_refused() -> None:
    """With two of three lengths some bits of the last character mean nothing to a decoder."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/="
    for size in range(3):
        text = seal(b"x" * size)
        for char in alphabet.replace(text[-1], ""):
            assert FOREIGN == refusal(text[:-1] + char)


@given(st.text(max_size=200) | st.from_regex(r"\A[A-Za-z0-9_-]{0,120}\Z"))
def test_any_other_text_is_refused(text: str) -> None:
    """By the one error, whatever the characters."""
    assert FOREIGN == refusal(text)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-1],
        lambda text: text[1:],
        lambda text: text + "A",
        lambda text: text + "=",
        lambda text: text + "\n",
        lambda text: f" {text}",
        lambda text: text + text,
        lambda text: "A" * (MAX_SEALED_LENGTH + 4),
        lambda text: "AQ",
        lambda text: "AQ" + "A" * 20,
        lambda text: text + "\ud800",
    ],
)
def test_a_text_that_is_cut_or_longer_is_refused(change: Callable[[str], str]) -> None:
    """One text opens, and no variant of its spelling."""
    assert FOREIGN == refusal(change(seal()))


@given(bound_to=st.binary(max_size=40).filter(lambda bound_to: bound_to != BOUND))
def test_a_text_is_refused_for_another_use(bound_to: bytes) -> None:
    """For other bytes than it is bound to, be they longer, shorter or empty."""
    assert FOREIGN == refusal(seal(), bound_to=bound_to)


def test_another_key_does_not_open() -> None:
    """Nor does it tell that the text is one of other keys."""
    assert FOREIGN == refusal(seal(), sealer=Sealer([OTHER]))


def test_keys_can_be_replaced_one_after_the_other() -> None:
    """The first key seals; each of them opens."""
    old, both, new = Sealer([OLD]), Sealer([NEW, OLD]), Sealer([NEW])
    assert b"state" == both.unseal(seal(sealer=old), bound_to=BOUND)
    assert b"state" == new.unseal(seal(sealer=both), bound_to=BOUND)
    assert FOREIGN == refusal(seal(sealer=both), sealer=old)


def test_without_keys_the_process_has_one() -> None:
    """Sealers of one process open each other's texts, and no text of a sealer with keys."""
    assert b"state" == Sealer().unseal(seal(sealer=Sealer()), bound_to=BOUND)
    assert FOREIGN == refusal(seal(), sealer=Sealer())


@pytest.mark.parametrize(("after", "opens"), [(0.0, True), (9.998, True), (10.0, False), (1e9, False), (-1e6, True)])
def test_a_text_opens_until_its_lifetime_is_over(after: float, opens: bool) -> None:
    """By the wall clock of the instance that opens."""
    clock = Clock()
    sealer = Sealer([NEW], clock=clock)
    text = sealer.seal(b"state", bound_to=BOUND, lifetime=10)
    clock.now += after
    if opens:
        assert b"state" == sealer.unseal(text, bound_to=BOUND)
    else:
        assert "the sealed text has expired" == refusal(text, sealer=sealer)


def test_no_two_texts_are_equal() -> None:
    """Each has a nonce of its own: with the same nonce twice, AES-GCM gives its key away."""
    texts = {seal() for _ in range(200)}
    assert 200 == len(texts)
    assert 200 == len({text[:17] for text in texts})  # version and nonce


def test_the_payload_cannot_be_read() -> None:
    """No part of it, nor of what it is bound to, is in the text."""
    text = seal(b"CANARY" * 20, bound_to=b"CANARY")
    assert b"CANARY" not in base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def seal_by_hand(payload: bytes, version: bytes = b"\x01") -> str:
    """As the documentation of the module says, until the year 2286."""
    expiry = (10_000_000_000_000).to_bytes(8, "big")  # ms
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"trio_vmcp.serve.sealing 1").derive(NEW)
    data = version + b"n" * 12 + AESGCM(derived).encrypt(b"n" * 12, expiry + payload, BOUND)
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def test_the_format_is_the_documented_one() -> None:
    """Instances of several versions share keys. A text of another version is refused."""
    assert b"state" == SEALER.unseal(seal_by_hand(b"state"), bound_to=BOUND)
    assert FOREIGN == refusal(seal_by_hand(b"state", b"\x02"))


def test_a_text_over_the_limit_is_not_read() -> None:
    """Neither decoded nor opened, so that its length costs nothing."""
    assert FOREIGN == refusal(seal_by_hand(b"x" * (MOST_PAYLOAD + 1)))


def test_the_largest_payload_fits_and_one_byte_more_does_not() -> None:
    """A text has at most 64 KiB; the error names the limit."""
    text = seal(b"x" * MOST_PAYLOAD)
    assert len(text) <= MAX_SEALED_LENGTH < len(text) + 2
    assert b"x" * MOST_PAYLOAD == SEALER.unseal(text, bound_to=BOUND)
    with pytest.raises(ValueError, match=f"{MOST_PAYLOAD + 1} bytes are too many to seal; the limit is {MOST_PAYLOAD}"):
        seal(b"x" * (MOST_PAYLOAD + 1))


def test_a_lifetime_may_be_under_a_second() -> None:
    """Over 0 s is enough."""
    assert b"state" == SEALER.unseal(SEALER.seal(b"state", bound_to=BOUND, lifetime=0.9), bound_to=BOUND)


@pytest.mark.parametrize("lifetime", [0, -1, float("nan"), float("inf"), 1e10])
def test_a_lifetime_that_is_none_is_refused(lifetime: float) -> None:
    """It is over 0 and at most 366 days."""
    with pytest.raises(ValueError, match=r"is not over 0 s and at most 3\.16224e\+07 s"):
        SEALER.seal(b"", bound_to=b"", lifetime=lifetime)


@pytest.mark.parametrize("keys", [[b"good", b""], ["text"], b"one", [b""]])
def test_a_key_that_is_none_is_refused(keys: Any) -> None:
    """An empty key would seal nothing; a text or a single key in place of several is a mistake."""
    with pytest.raises(ValueError, match="a key for sealing is not non-empty bytes"):
        Sealer(keys)


def test_keys_are_in_no_repr() -> None:
    """A repr gets into logs."""
    assert "CANARY" not in repr(Sealer([b"CANARY" * 6]))
