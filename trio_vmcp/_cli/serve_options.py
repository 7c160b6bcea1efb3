"""The options of `trio-vmcp serve`, and what they ask for. Pure."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, TypeAlias, cast

import attrs

from trio_vmcp.routing import Bare, ConflictResolution, Prefix, Priority

__all__ = ["KEYS_VARIABLE", "LEAST_KEY", "ServeOptions", "add_serve_arguments", "is_loopback", "read_keys"]

KEYS_VARIABLE: Final = "TRIO_VMCP_KEYS"
LEAST_KEY: Final = 32  # bytes: as many as the digests made with it have (RFC 2104 §3)
HOST, PORT, PATH = "127.0.0.1", 8000, "/mcp"

Naming: TypeAlias = Literal["prefix", "bare", "priority"]
_NAMINGS: Final[Mapping[Naming, Callable[[], ConflictResolution]]] = {
    "prefix": Prefix,
    "bare": Bare,
    "priority": Priority,
}


@attrs.frozen(kw_only=True)
class ServeOptions:
    """How the servers of a file are served.

    Attributes:
        host, port, path: Of the endpoint; port 0: any that is free.
        allowed_hosts: Further names that requests may have in `Host`.
        redis: Its url; empty: sessions end with this process.
        keys: A file with one key in each line; empty: as the environment says.
        jwt_issuer, jwt_audience, jwks: All three, or none: then there is no authenticator.
        watch: The file whose changes are taken over; empty: none is.
        stdio: One client, on stdin and stdout.
        insecure_no_auth: Any address may be served without an authenticator.
    """

    host: str = HOST
    port: int = PORT
    path: str = PATH
    allowed_hosts: tuple[str, ...] = ()
    redis: str = attrs.field(default="", repr=False)
    keys: str = ""
    instance: str = ""
    naming: Naming = "prefix"
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwks: str = ""
    watch: str = ""
    stdio: bool = False
    insecure_no_auth: bool = False

    @property
    def has_authenticator(self) -> bool:
        return bool(self.jwt_issuer)

    @property
    def conflict_resolution(self) -> ConflictResolution:
        return _NAMINGS[self.naming]()

    @classmethod
    def of(cls, given: argparse.Namespace) -> ServeOptions:
        """
        Raises:
            ValueError: They do not go together; one line.
        """
        tokens = (given.jwt_issuer, given.jwt_audience, given.jwks)
        if any(tokens) and not all(tokens):
            raise ValueError("--jwt-issuer, --jwt-audience and --jwks go together")
        if given.config == "-" and (given.watch or given.stdio):
            raise ValueError("--config - is stdin, which --watch cannot read again and --stdio needs for its client")
        of_http = {"--host": given.host, "--port": given.port, "--path": given.path}
        for name, default in {"--host": HOST, "--port": PORT, "--path": PATH}.items():
            if given.stdio and of_http[name] != default:
                raise ValueError(f"{name} has no effect with --stdio")
        if given.stdio and any(tokens):
            raise ValueError("--jwt-issuer has no effect with --stdio: its one client has started this program")
        options = cls(
            host=given.host,
            port=given.port,
            path=given.path,
            allowed_hosts=tuple(given.allowed_host),
            redis=given.redis or "",
            keys=given.keys or "",
            instance=given.instance or "",
            naming=cast("Naming", given.naming),
            jwt_issuer=given.jwt_issuer or "",
            jwt_audience=given.jwt_audience or "",
            jwks=given.jwks or "",
            watch=given.config if given.watch else "",
            stdio=given.stdio,
            insecure_no_auth=given.insecure_no_auth,
        )
        is_open = not options.has_authenticator and not is_loopback(options.host)
        if is_open and not options.insecure_no_auth:
            raise ValueError(
                f"--host {options.host} is not only for this machine, and there is no authenticator: "
                "use --jwt-issuer, --jwt-audience and --jwks, or say --insecure-no-auth"
            )
        return options


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    def add(name: str, metavar: str, about: str, **more: object) -> None:
        parser.add_argument(name, metavar=metavar, help=about, **more)  # type: ignore[arg-type]  # argparse's own kinds

    about_file = "JSON with mcpServers, as other MCP clients read it; - is stdin"
    add("--config", "FILE", about_file, required=True, type=_given)
    add("--host", "H", f"the address to listen on (default: {HOST})", type=_given, default=HOST)
    add("--port", "P", f"default: {PORT}; 0: any that is free", type=_port, default=PORT)
    add("--path", "PATH", f"of the endpoint (default: {PATH})", type=_path, default=PATH)
    about_host = "another name that clients reach this server by; may be repeated"
    add("--allowed-host", "NAME", about_host, action="append", default=[], type=_given)
    add("--redis", "URL", "keep the sessions in Redis, so that other instances go on with them", type=_given)
    about_keys = f"one key of at least {LEAST_KEY} bytes in each line, the same for all instances; else {KEYS_VARIABLE}"
    add("--keys", "FILE", about_keys, type=_given)
    add("--instance", "NAME", "session ids begin with NAME and a dot, for a balancer", type=_given)
    parser.add_argument("--naming", choices=list(_NAMINGS), default="prefix", help="of tools and prompts")
    add("--jwt-issuer", "URL", "clients need a token of this issuer", type=_given)
    add("--jwt-audience", "A", "that is for this audience", type=_given)
    add("--jwks", "URL|FILE", "and signed by one of these keys", type=_given)
    for name, about in (
        ("--watch", "take changes of FILE over while clients are connected"),
        ("--stdio", "serve one client, on stdin and stdout"),
        ("--insecure-no-auth", "serve any address without asking clients for tokens"),
    ):
        parser.add_argument(name, action="store_true", help=about)


def read_keys(text: str, *, in_lines: bool) -> tuple[bytes, ...]:
    """The keys of a file, or (`in_lines` False) of an environment variable, where blanks divide them.

    Raises:
        ValueError: There is none, or one is too short; says nothing of the keys themselves.
    """
    parts: Sequence[str] = text.splitlines() if in_lines else text.split()
    keys = tuple(part.strip().encode() for part in parts if part.strip())
    if not keys:
        raise ValueError("holds no key")
    for number, key in enumerate(keys, start=1):
        if len(key) < LEAST_KEY:
            raise ValueError(f"key {number} has {len(key)} bytes, and needs at least {LEAST_KEY}")
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it. A name may mean anything, but for "localhost" (RFC 6761 §6.3)."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _given(text: str) -> str:
    """An empty value would count as an option that is not there: no authenticator, say, or no shared storage."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; is the variable set that it comes from?")
    return text


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text[:16]!r} is not a number from 0 to 65535")
    return int(text)


def _path(text: str) -> str:
    if not text.startswith("/") or {"?", "#"} & set(text) or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text[:64]!r} is not a path such as {PATH}")
    return text.rstrip("/") or "/"
