"""Which proxy the connections to an origin go through, and what requests look like there. Pure.

An origin of https is reached through a tunnel (CONNECT, RFC 9110 §9.3.6). A request to an origin of http is sent to the
proxy with its whole URL (RFC 9112 §3.2.2: "a client MUST send the target URI in absolute-form"), not through a tunnel:
proxies refuse CONNECT to other ports than 443, as a rule.

No RFC describes the variables of the environment. They are read as curl and CPython's `urllib.request` do: a name in
lower case wins, an empty value is none, and an entry of NO_PROXY stands for a host and everything below it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import unquote, unquote_to_bytes

import attrs

from trio_vmcp._http.origin import MOST_PORT, Origin
from trio_vmcp._http.user_agent import USER_AGENT
from trio_vmcp._protocol.words import quoted, secrets_of, words_in

__all__ = ["Proxies", "Proxy", "ProxyProblem", "choose_proxies"]

_PORTS = {"http": 80, "https": 443}
_URL = re.compile(
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?(?:(?P<userinfo>[^/?#]*)@)?"
    r"(?P<host>[a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{0,5}))?/?",
    re.IGNORECASE,
)
_SHOWN = re.compile(r"(?:[a-z][a-z0-9+.-]*://)?", re.IGNORECASE)
_SHOWN_HOST = re.compile(r"(?:[a-z0-9._~-]{1,100}|\[[0-9a-f:.]{1,50}\])(?::[0-9]{1,5}(?![^/?#]))?", re.IGNORECASE)
_LEAST_SECRET = 3  # characters; the words of a proxy would be unreadable without every shorter text


class ProxyProblem(Exception):
    """A proxy is in the way. The text names it and holds no credentials; a cause follows it."""


@attrs.frozen
class Proxy:
    """An HTTP proxy.

    Attributes:
        origin: Where it listens; of https: TLS to the proxy itself, too.
        authorization: The value of `Proxy-Authorization` (RFC 9110 §11.7.2); empty: none.
        knob: Where it is set.
    """

    origin: Origin
    knob: str = "proxy"
    authorization: bytes = attrs.field(default=b"", repr=False)
    _secrets: tuple[str, ...] = attrs.field(default=(), repr=False, alias="secrets")

    @property
    def name(self) -> str:
        """For texts, without credentials."""
        return _name(f"{self.origin.scheme}://{_authority(self.origin)}", self.knob)

    def connect_request(self, target: Origin) -> bytes:
        authority = _authority(target)
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        return "\r\n".join(lines).encode() + b"\r\nUser-Agent: %s\r\n%s\r\n" % (USER_AGENT, self._credentials)

    def forwarded(self, message: bytes, target: Origin) -> bytes:
        """A request to an origin of http, as this proxy takes it."""
        verb, _, rest = message.partition(b" ")
        path, _, rest = rest.partition(b" ")
        line_end, _, rest = rest.partition(b"\r\n")
        authority = _authority(target).removesuffix(":80").encode()
        return b"%s http://%s%s %s\r\n%s%s" % (verb, authority, path, line_end, self._credentials, rest)

    def refusal(self, verb: str, status: int, media_type: str, body: bytes) -> ProxyProblem:
        """The proxy's answer to a request that it did not pass on."""
        secrets = secrets_of([("proxy-authorization", self.authorization.decode())], "")
        secrets |= {secret: "[proxy-authorization]" for secret in self._secrets if len(secret) >= _LEAST_SECRET}
        words = quoted(words_in(body, media_type, secrets))
        return ProxyProblem(f"{self.name} answered {verb!r} with HTTP {status}{words}")

    @property
    def _credentials(self) -> bytes:
        return b"Proxy-Authorization: %s\r\n" % self.authorization if self.authorization else b""


@attrs.frozen
class Proxies:
    """The proxies of a transport.

    Attributes:
        by_scheme: For origins of http, and for those of https; a text: why there is none.
        exempt: The entries of NO_PROXY, in lower case.
    """

    by_scheme: Mapping[str, Proxy | str]
    exempt: tuple[str, ...] = ()

    def of(self, origin: Origin) -> Proxy | None:
        """The proxy for an origin; None: a direct connection.

        Raises:
            ProxyProblem: The environment names one that cannot be used.
        """
        found = self.by_scheme.get(origin.scheme)
        if found is None or _is_exempt(origin, self.exempt):
            return None
        if isinstance(found, str):
            raise ProxyProblem(found)
        return found


def choose_proxies(proxy: str | None, environment: Mapping[str, str]) -> Proxies | None:
    """The proxies that a setting means; None: none.

    Args:
        proxy: "http://user:password@host:port" for all origins; "env": as the environment says.

    Raises:
        ValueError: It is neither. The text shows no credentials.
    """
    if proxy is None:
        return None
    if not isinstance(proxy, str):
        raise ValueError(f"proxy is {type(proxy).__name__}, not str")
    if proxy != "env":
        one = _read_proxy(proxy, "proxy")
        if one is None:
            raise ValueError(f"proxy {_shown(proxy)!r} is neither 'env' nor http://host:port or https://host:port")
        return Proxies(dict.fromkeys(_PORTS, one))
    by_scheme: dict[str, Proxy | str] = {}
    for scheme in _PORTS:
        for name in (f"{scheme}_proxy", "all_proxy"):
            value = _variable(name, environment)
            if value:
                one = _read_proxy(value if "://" in value else f"http://{value}", name.upper())
                by_scheme[scheme] = one or f"{_name(_shown(value), name.upper())} is neither of http nor of https"
                break
    exempt = re.split(r"[\s,]+", _variable("no_proxy", environment).lower())
    return Proxies(by_scheme, tuple(filter(None, exempt))) if by_scheme else None


def _variable(name: str, environment: Mapping[str, str]) -> str:
    return environment.get(name, environment.get(name.upper(), "")).strip()


def _name(url: str, knob: str) -> str:
    return f"the proxy {url!r} ({knob})"


def _read_proxy(text: str, knob: str) -> Proxy | None:
    match = _URL.fullmatch(text)
    scheme = (match["scheme"] or "").lower() if match else ""
    if match is None or scheme not in _PORTS:
        return None
    port = int(match["port"] or _PORTS[scheme])
    if not 0 < port <= MOST_PORT:
        return None
    origin = Origin(scheme, match["host"].strip("[]").lower(), port)
    if not match["userinfo"]:
        return Proxy(origin, knob)
    user, _, password = match["userinfo"].partition(":")
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)  # RFC 7617 §2
    secrets = (password, unquote(password)) if password else (user, unquote(user))
    return Proxy(origin, knob, b"Basic " + base64.b64encode(pair), secrets)


def _shown(text: str) -> str:
    """Scheme, host and port, as far as they are readable: what else is there may be a secret."""
    scheme = _SHOWN.match(text)
    assert scheme is not None
    rest = text[scheme.end() :].rpartition("@")[2]
    host = _SHOWN_HOST.match(rest)
    return scheme[0] + (host[0] if host else "…")


def _authority(origin: Origin) -> str:
    """Host and port, without the zone of an address, which means something on this machine only (RFC 6874 §4)."""
    host = origin.host.partition("%")[0]
    return f"[{host}]:{origin.port}" if ":" in host else f"{host}:{origin.port}"


def _is_exempt(origin: Origin, entries: tuple[str, ...]) -> bool:
    host = origin.host.partition("%")[0].rstrip(".").lower()
    return any(entry == "*" or _is_meant(host, origin.port, entry) for entry in entries)


def _is_meant(host: str, port: int, entry: str) -> bool:
    """Whether an entry of NO_PROXY means this host: by its name, a domain above it, its address or a network
    (RFC 4632) that the address is in, and by its port, where the entry has one. Names are not resolved.
    """
    name, wanted = _without_port(entry)
    if wanted and wanted != str(port):
        return False
    address = _address(host)
    if address is not None:
        network = _network(name)
        return network is not None and address in network
    domain = name.removeprefix("*").strip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _without_port(entry: str) -> tuple[str, str]:
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        return name, rest.removeprefix(":")
    if entry.count(":") == 1:
        name, _, port = entry.partition(":")
        return name, port
    return entry, ""  # more colons: an IPv6 address


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _network(name: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(name, strict=False)
    except ValueError:
        return None
