"""Where a Redis is, and how to connect to it: what a url says. No error and no repr shows the url or its password."""

from __future__ import annotations

import ssl
from typing import Any, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

import attrs

__all__ = ["RedisAddress", "read_url"]

_DEFAULT_PORT = 6379
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_FALSE = ("false", "0", "no")


@attrs.frozen
class RedisAddress:
    """A place, and what the connection to it needs.

    Attributes:
        path: Of a unix socket; then there is no host and port.
        tls: None: no TLS.
    """

    host: str = "localhost"
    port: int = _DEFAULT_PORT
    path: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    tls: ssl.SSLContext | None = attrs.field(default=None, repr=False)

    def __str__(self) -> str:
        if self.path is not None:
            return f"Redis at {self.path!r}"
        return f"Redis at {self.host!r}, port {self.port}"


def read_url(url: str, *, cluster: bool) -> RedisAddress:
    """`redis://[user][:password]@host:port/db`, `rediss://…` for TLS, `unix://[user][:password]@/path?db=0`.

    User, password, host and path are percent-decoded. TLS trusts what the system trusts, and checks the host's name;
    `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_check_hostname=false` and `ssl_cert_reqs=none` change that.

    Raises:
        ValueError: Says what is wrong, and shows neither url nor password.
    """
    if not isinstance(url, str):
        raise ValueError(f"the url of a Redis is a str, not a {type(url).__name__}")
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORT
    except ValueError:
        _refuse("has a host or port that cannot be read (a '/', '#', '?' or '[' in a password is percent-encoded)")
    if parts.scheme not in ("redis", "rediss", "unix"):
        _refuse("does not begin with redis://, rediss:// or unix://")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    tls = _read_tls(options) if parts.scheme == "rediss" else None
    place: dict[str, Any] = {"host": unquote(parts.hostname or "localhost"), "port": port}
    if parts.scheme == "unix":
        if cluster or not parts.path or parts.hostname:
            _refuse("is that of a unix socket: unix:///path, without a host, and not for cluster=True")
        place = {"path": unquote(parts.path)}
    db = _read_db(options.pop("db", "" if parts.scheme == "unix" else parts.path.strip("/")))
    if cluster and db:
        _refuse("names a database, and a cluster has none but 0")
    if options or parts.fragment:
        unknown = ", ".join(sorted(map(repr, options))) or "a fragment"
        _refuse(f"has what is not known: {unknown}; known are 'db' and, for rediss://, {', '.join(_TLS_OPTIONS)}")
    username, password = (unquote(text) if text else None for text in (parts.username, parts.password))
    return RedisAddress(**place, db=db, username=username, password=password, tls=tls)


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"the url of the Redis {what}") from None


def _read_db(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        _refuse("names a database that is not a whole number")
    return int(text[:10])


def _read_tls(options: dict[str, str]) -> ssl.SSLContext:
    given = {name: options.pop(name) for name in _TLS_OPTIONS if name in options}
    try:
        context = ssl.create_default_context(cafile=given.get("ssl_ca_certs"))
        if "ssl_certfile" in given:
            context.load_cert_chain(given["ssl_certfile"], given.get("ssl_keyfile"))
    except OSError as exc:  # of which ssl.SSLError is one
        raise ValueError(f"the certificates that the url of the Redis names cannot be read: {exc.strerror}") from exc
    required = given.get("ssl_cert_reqs", "required")
    if required not in ("required", "optional", "none"):
        _refuse("has a ssl_cert_reqs that is not 'required', 'optional' or 'none'")
    if required == "none" or given.get("ssl_check_hostname", "true").lower() in _FALSE:
        context.check_hostname = False
    if required == "none":
        context.verify_mode = ssl.CERT_NONE
    return context
