"""A real HAProxy in front of the instances."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.redis_server import free_port

CONFIGURATION = Path(__file__).with_name("haproxy.cfg")


def find_haproxy() -> str:
    """The program, which is installed where it is missing, as in a container of CI."""
    if not shutil.which("haproxy"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-q"], check=True, env=environment)
        subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends", "haproxy"], check=True, env=environment)
    found = shutil.which("haproxy")
    assert found is not None
    return found


@contextmanager
def serve_haproxy(port_a: int, port_b: int) -> Iterator[str]:
    """The url of the balancer; it takes a moment to listen."""
    port = free_port()
    environment = {**os.environ, "PORT": str(port), "PORT_A": str(port_a), "PORT_B": str(port_b)}
    command = [find_haproxy(), "-db", "-q", "-f", str(CONFIGURATION)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
