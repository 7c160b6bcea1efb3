"""`nox -s deploy`: the deployment under load, while an instance is killed. Prints figures, and draws them as a PNG."""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import trio

from deploy.deployment import deploy
from deploy.load import plot


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--backends", type=int, default=10, help="of each session")
    parser.add_argument("--rate", type=float, default=100.0, help="calls a second")
    parser.add_argument("--png", type=Path, default=None, help="where to draw (needs matplotlib)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        run = partial(deploy, sessions=given.sessions, backends=given.backends, rate=given.rate)
        report = trio.run(partial(run, Path(home), seconds=(5.0, 5.0, 5.0)))
    print(report.told())
    if given.png is not None:
        plot(report, given.png)
        print(f"drawn: {given.png}")
    return int(report.sessions_served_afterwards < given.sessions or bool(report.unexpected))


if __name__ == "__main__":
    raise SystemExit(main())
