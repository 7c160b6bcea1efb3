"""HAProxy and nginx in front of the front, each with the configuration beside this file."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs
from interop.fleet import HERE, POLL_INTERVAL, START_TIMEOUT, free_port

__all__ = ["PROXIES", "serve_proxy"]

NGINX = ("nginx", "-p", "{place}", "-c", "{file}", "-e", "stderr")


@attrs.frozen
class Proxy:
    """A Debian package, its configuration, and the command that runs it."""

    package: str
    template: str
    command: tuple[str, ...]
    tuning: str = ""


PROXIES = {
    "haproxy": Proxy("haproxy", "haproxy.cfg", ("haproxy", "-db", "-q", "-f", "{file}")),
    # By its defaults nginx speaks HTTP/1.0 and collects a response before it passes that on.
    "nginx-defaults": Proxy("nginx-light", "nginx.conf", NGINX),
    "nginx": Proxy(
        "nginx-light",
        "nginx.conf",
        NGINX,
        'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;',
    ),
}


@contextmanager
def serve_proxy(name: str, url: str, place: Path) -> Iterator[str]:
    """The url of an endpoint by way of a proxy."""
    proxy, port, target = PROXIES[name], free_port(), urlsplit(url)
    _install(proxy.command[0], proxy.package)
    file = place / proxy.template
    text = (HERE / proxy.template).read_text()
    for place_holder, value in {"@PORT@": port, "@FRONT@": target.port, "@TUNING@": proxy.tuning}.items():
        text = text.replace(place_holder, str(value))
    file.write_text(text)
    with (place / "proxy.log").open("wb") as log:
        process = subprocess.Popen([part.format(place=place, file=file) for part in proxy.command], stderr=log)
    try:
        _wait_until_listening(process, port, place / "proxy.log")
        yield f"http://127.0.0.1:{port}{target.path}"
    finally:
        process.terminate()
        process.wait()


def _install(program: str, package: str) -> None:
    """As in a container of CI. RUNLEVEL=1: Debian's script then starts no service."""
    if shutil.which(program):
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    subprocess.run(["apt-get", "update", "-q"], check=True, env=environment)
    subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends", package], check=True, env=environment)


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(int(START_TIMEOUT / POLL_INTERVAL)):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            try:
                status = process.wait(POLL_INTERVAL)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError(f"{process.args!r} ended with status {status}:\n{log.read_text()}") from None
        else:
            return
    raise RuntimeError(f"{process.args!r} does not listen after {START_TIMEOUT} s:\n{log.read_text()}")
