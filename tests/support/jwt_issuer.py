"""An issuer of JWTs: keys, tokens that are put together by hand (also wrong ones), and a server of the key set."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import attrs
import trio
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

from trio_vmcp.testing import Reply, Request, serve_http

__all__ = ["KeyServer", "SigningKey", "base64url", "make_key", "make_token", "segment"]

HASHES: Mapping[str, Callable[[], Any]] = {"256": SHA256, "384": SHA384, "512": SHA512}
CURVES: Mapping[str, tuple[str, type[ec.EllipticCurve]]] = {
    "ES256": ("P-256", ec.SECP256R1),
    "ES384": ("P-384", ec.SECP384R1),
    "ES512": ("P-521", ec.SECP521R1),
}


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, size: int = 0) -> str:
    return base64url(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def segment(content: object) -> str:
    """A part of a token: JSON, or text as it is."""
    return base64url(content.encode() if isinstance(content, str) else json.dumps(content).encode())


@attrs.frozen(eq=False)
class SigningKey:
    """A key pair of one algorithm.

    Attributes:
        key_id: None: the key and its tokens have no `kid`.
    """

    algorithm: str
    key_id: str | None
    private: Any = attrs.field(repr=False)

    def jwk(self, **more: Any) -> dict[str, Any]:
        """The public key as an entry of a key set. None removes a member."""
        entry = {"use": "sig", "alg": self.algorithm, "kid": self.key_id, **self._numbers(), **more}
        return {name: value for name, value in entry.items() if value is not None}

    def _numbers(self) -> dict[str, Any]:
        public = self.private.public_key()
        if isinstance(self.private, rsa.RSAPrivateKey):
            numbers = public.public_numbers()
            return {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            numbers, size = public.public_numbers(), (public.key_size + 7) // 8
            x, y = number(numbers.x, size), number(numbers.y, size)
            return {"kty": "EC", "crv": CURVES[self.algorithm][0], "x": x, "y": y}
        curve = "Ed25519" if isinstance(self.private, ed25519.Ed25519PrivateKey) else "Ed448"
        return {"kty": "OKP", "crv": curve, "x": base64url(public.public_bytes_raw())}

    def sign(self, data: bytes) -> bytes:
        digest = HASHES.get(self.algorithm[2:], SHA256)()
        if isinstance(self.private, rsa.RSAPrivateKey):
            pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
            signature = self.private.sign(data, pss if self.algorithm.startswith("PS") else padding.PKCS1v15(), digest)
        elif isinstance(self.private, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(digest)))
            size = (self.private.key_size + 7) // 8
            signature = r.to_bytes(size, "big") + s.to_bytes(size, "big")
        else:
            signature = self.private.sign(data)
        return bytes(signature)


@lru_cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)  # takes 0.1 s


def make_key(algorithm: str = "ES256", key_id: str | None = "k1", *, private: Any = None) -> SigningKey:
    """A new key, except for RSA: there all share one, unless `private` is given."""
    if private is None and algorithm in CURVES:
        private = ec.generate_private_key(CURVES[algorithm][1]())
    elif private is None:
        private = ed25519.Ed25519PrivateKey.generate() if algorithm == "EdDSA" else rsa_key()
    return SigningKey(algorithm, key_id, private)


def make_token(
    key: SigningKey,
    claims: object,
    *,
    header: Mapping[str, Any] | str | None = None,
    sign: Callable[[bytes], bytes] | None = None,
) -> str:
    """A signed token.

    Args:
        claims: An object, or the text of one.
        header: The whole header, or what is added to that of the key; None removes a member.
    """
    if not isinstance(header, str):
        whole = {"typ": "JWT", "alg": key.algorithm, "kid": key.key_id, **(header or {})}
        header = json.dumps({name: value for name, value in whole.items() if value is not None})
    signed = f"{segment(header)}.{segment(claims)}"
    return f"{signed}.{base64url((sign or key.sign)(signed.encode()))}"


@attrs.define(eq=False)
class KeyServer:
    """A `StreamServer` with the key set of an issuer.

    Attributes:
        keys: Its entries.
        headers: Of every answer.
        latency: s, before each answer.
        answer: In place of the key set: status and body. "hang": no answer. "refuse": no connection.
        requests: Those that came.
    """

    keys: list[dict[str, Any]]
    headers: list[tuple[str, str]] = attrs.field(factory=list)
    latency: float = 0.5
    answer: tuple[int, bytes] | str | None = None
    requests: list[Request] = attrs.field(factory=list)

    async def accept(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.answer == "refuse":
            raise ConnectionRefusedError(111, "refused")

    async def serve_connection(self, stream: trio.abc.Stream) -> None:
        await serve_http(stream, self._serve)

    async def _serve(self, request: Request, reply: Reply) -> None:
        self.requests.append(request)
        await trio.sleep(self.latency)
        if isinstance(self.answer, str):
            await reply.hang()
        elif self.answer is None:
            await reply.respond(200, json.dumps({"keys": self.keys}).encode(), self.headers)
        else:
            status, body = self.answer
            await reply.respond(status, body, self.headers)
