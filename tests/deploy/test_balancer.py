"""Two instances behind HAProxy, one of which is killed under load: no session is lost."""

from __future__ import annotations

from pathlib import Path

from deploy.deployment import deploy

SESSIONS, BACKENDS, RATE = 20, 3, 40.0


async def test_killing_an_instance_costs_no_session(tmp_path: Path) -> None:
    """Calls in flight on it fail, and no others; every session goes on, at once, on the instance that is left."""
    report = await deploy(tmp_path, sessions=SESSIONS, backends=BACKENDS, rate=RATE, seconds=(1.0, 2.0, 1.0))
    assert SESSIONS == report.sessions_served_afterwards
    assert set() == report.unexpected
    assert report.ok > 50
    assert {"b"} == {
        call.instance for call in report.calls if call.is_ok and report.killed_at < call.at < report.back_at
    }
    assert any(call.at > report.killed_at and call.instance == "b" for call in report.moves)
