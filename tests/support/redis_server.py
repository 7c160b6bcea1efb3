"""A real redis-server for tests: started on a unix socket or a free port of loopback, stopped by its process id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import attrs

APPEND_ONLY = ("--appendonly", "yes", "--appendfsync", "everysec")


def find_redis_server() -> str:
    """The program, which is installed where it is missing, as in a container of CI."""
    if not shutil.which("redis-server"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-q"], check=True, env=environment)
        command = ["apt-get", "install", "-qy", "--no-install-recommends", "redis-server"]
        subprocess.run(command, check=True, env=environment)
    found = shutil.which("redis-server")
    assert found is not None
    return found


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@attrs.define(eq=False)
class RedisServer:
    """One redis-server, which can be frozen, killed and started again on its data.

    Attributes:
        home: An empty directory: of the socket, and of what Redis keeps.
        port: 0: only the socket.
    """

    home: Path
    port: int = 0
    options: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.home / "s"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}" if self.port else f"unix://{self.socket}"

    def start(self) -> None:
        """Returns when Redis accepts connections, with what it had kept."""
        assert self._process is None
        command = (find_redis_server(), "--port", str(self.port), "--unixsocket", str(self.socket), "--save", "")
        place = ("--dir", str(self.home), "--bind", "127.0.0.1")
        self._process = subprocess.Popen([*command, *place, *self.options], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        lines = []
        with self._process.stdout:  # Redis ignores that its log is read by nothing from then on
            for line in self._process.stdout:
                lines.append(line.decode())
                if b"eady to accept connections" in line:
                    return
        raise AssertionError("redis-server did not start: " + "".join(lines))

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, also while it is frozen."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def ask(self, *command: str | bytes) -> bytes:
        """The answer to a command, as its bytes: by a socket of its own."""
        with closing(socket.socket(socket.AF_UNIX)) as stream:
            stream.settimeout(5)
            stream.connect(str(self.socket))
            parts = [part.encode() if isinstance(part, str) else part for part in command]
            request = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
            stream.sendall(b"*%d\r\n%s" % (len(parts), request))
            return stream.recv(1 << 20)


@contextmanager
def serve_redis(home: Path, *options: str, port: int = 0) -> Iterator[RedisServer]:
    server = RedisServer(home, port, options)
    try:
        server.start()
        yield server
    finally:
        server.kill()
