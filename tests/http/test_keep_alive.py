"""How long idle connections are used again: by default, by the word of a server, and by experience."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_vmcp._http.keep_alive import BELIEVED, KeepAlive


def told(*headers: bytes) -> float:
    keep_alive = KeepAlive()
    for header in headers:
        keep_alive.note_header(header)
    return keep_alive.expiry(0.0)


def test_without_a_word_the_common_servers_are_assumed() -> None:
    """Servers that say nothing close after 5 s, as a rule: a second of that is left for what is on the way."""
    assert 4.0 == KeepAlive().expiry(0.0)


@pytest.mark.parametrize(
    ("header", "expiry"),
    [
        (b"timeout=5", 4.0),
        (b"timeout=5, max=100", 4.0),
        (b"max=100, timeout=5", 4.0),
        (b"max=100;timeout=5", 4.0),
        (b'Timeout = "5"', 4.0),
        (b"timeout=2", 1.0),
        (b"timeout=1", 0.5),
        (b"timeout=0", 0.0),
        (b"timeout=30", 29.0),
        (b"timeout=75", 59.0),
        (b"timeout=999999999", 59.0),
    ],
)
def test_the_word_of_a_server_holds_with_a_margin(header: bytes, expiry: float) -> None:
    """Shorter and longer than what is assumed, up to a minute."""
    assert expiry == told(header)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"max=100",
        b"timeout",
        b"timeout=",
        b"timeout=x",
        b"timeout=-1",
        b"idle_timeout=9",
        b"timeout=" + b"9" * 5000,
    ],
)
def test_a_header_that_names_no_time_says_nothing(header: bytes) -> None:
    """What was said before holds."""
    assert 4.0 == told(header)
    assert 9.0 == told(b"timeout=10", header)


def test_the_last_word_holds() -> None:
    """A server may be configured anew."""
    assert 1.0 == told(b"timeout=20", b"timeout=2")
    assert 19.0 == told(b"timeout=20", b"timeout=2", b"timeout=20")


def test_the_age_at_which_a_connection_was_found_closed_is_learnt() -> None:
    """With the same margin; the shortest of several; and for ten minutes."""
    keep_alive = KeepAlive()
    keep_alive.note_ended(3.0, 100.0)
    assert 2.0 == keep_alive.expiry(100.0)
    keep_alive.note_ended(2.0, 101.0)
    keep_alive.note_ended(2.5, 102.0)
    assert 1.0 == keep_alive.expiry(102.0) == keep_alive.expiry(102.0 + BELIEVED)
    assert 4.0 == keep_alive.expiry(103.0 + BELIEVED)


def test_experience_counts_for_more_than_a_longer_word() -> None:
    """A balancer may close earlier than the server behind it says."""
    keep_alive = KeepAlive()
    keep_alive.note_header(b"timeout=60")
    keep_alive.note_ended(10.0, 0.0)
    assert 9.0 == keep_alive.expiry(0.0)


def test_a_restart_is_no_timeout() -> None:
    """An end at an age that another connection survived says nothing the first time, nor does an end at once."""
    keep_alive = KeepAlive()
    keep_alive.note_survived(3.0)
    keep_alive.note_ended(2.0, 0.0)
    keep_alive.note_ended(0.1, 0.0)
    assert 4.0 == keep_alive.expiry(0.0)
    keep_alive.note_ended(2.0, 1.0)
    assert 1.0 == keep_alive.expiry(1.0)


@given(st.binary(max_size=40), st.floats(0, 1e6), st.floats(0, 1e6))
def test_the_expiry_is_bounded(header: bytes, age: float, now: float) -> None:
    """Whatever a server says or does."""
    keep_alive = KeepAlive()
    keep_alive.note_header(header)
    keep_alive.note_ended(age, now)
    assert 0.0 <= keep_alive.expiry(now) <= 59.0
