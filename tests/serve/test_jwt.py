"""Callers with a JWT: which tokens are accepted, and what the others are told."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from support.jwt_issuer import SigningKey, base64url, make_key, make_token, rsa_key, segment

from trio_vmcp import Identity
from trio_vmcp.serve import Unauthenticated
from trio_vmcp.serve._jwks import ALGORITHMS, read_key_set
from trio_vmcp.serve.jwt import JwtAuthenticator

ISSUER, AUDIENCE = "https://issuer.test", "https://front.test/mcp"
NOW = 1_785_000_000.0
KEY = make_key()


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a good token; None removes one."""
    whole = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": NOW, "exp": NOW + 600, **changes}
    return {name: value for name, value in whole.items() if value is not None}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def authenticator(*keys: dict[str, Any], **options: Any) -> JwtAuthenticator:
    """With keys that are given, at `NOW`."""
    given = {"jwks": {"keys": list(keys or (KEY.jwk(),))}, "issuer": ISSUER, "audience": AUDIENCE, "clock": lambda: NOW}
    return JwtAuthenticator(**{**given, **options})


async def refusal(token: str, by: JwtAuthenticator | None = None) -> str:
    """What is wrong with a token; checked: the challenge says the same."""
    with pytest.raises(Unauthenticated) as caught:
        await (by or authenticator()).authenticate(bearer(token))
    error = caught.value
    assert f'Bearer error="invalid_token", error_description="{error.detail}"' == error.challenge
    return error.detail.removeprefix("the token ")


# Tokens that are good


@pytest.mark.parametrize(
    "algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
)
async def test_each_asymmetric_algorithm_is_verified(algorithm: str) -> None:
    """By default all of them. The identity is `iss` and `sub`, and has the token."""
    key = make_key(algorithm)
    token = make_token(key, claims())
    identity = await authenticator(key.jwk()).authenticate(bearer(token))
    assert Identity(issuer=ISSUER, subject="alice") == identity
    assert token == identity.token
    assert "has a wrong signature" == await refusal(
        token.rpartition(".")[0] + "." + base64url(b"\1" * 64), authenticator(key.jwk())
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["https://other.test", AUDIENCE]},
        {"exp": NOW + 0.5},
        {"nbf": NOW},
        {"iat": NOW + 300},  # RFC 7519 §4.1.6 refuses no token for it
        {"iat": None},
        {"scope": "a b", "groups": [{"x": None}]},
        {"sub": "ål/ïce 日本"},
    ],
)
async def test_other_claims_do_not_matter(changes: dict[str, Any]) -> None:
    """An audience among several, times that just fit, claims of the issuer's own."""
    identity = await authenticator().authenticate(bearer(make_token(KEY, claims(**changes))))
    assert changes.get("sub", "alice") == identity.subject


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
async def test_the_scheme_is_read_in_any_case(scheme: str) -> None:
    """RFC 9110 §11.1, with one blank or more behind."""
    token = make_token(KEY, claims())
    assert "alice" == (await authenticator().authenticate({"authorization": f"{scheme} {token}"})).subject


@pytest.mark.parametrize(("leeway", "off"), [(0.0, 0.0), (10.0, 10.0)])
async def test_times_are_compared_with_leeway(leeway: float, off: float) -> None:
    """A token is good before `exp` and from `nbf` on, each by the clock of this machine and the leeway."""
    checked = authenticator(leeway=leeway)
    await checked.authenticate(bearer(make_token(KEY, claims(exp=NOW - off + 0.25, nbf=NOW + off))))
    assert "has expired" == await refusal(make_token(KEY, claims(exp=NOW - off)), checked)
    assert "is not valid yet" == await refusal(make_token(KEY, claims(nbf=NOW + off + 0.25)), checked)


# Requests without a token


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        "Bearer a b",
        "Bearera.b.c",
        "a.b.c",
        "Bearer a.b.c, Bearer a.b.c",
        "Basic YTpi, Bearer a.b.c",
    ],
)
async def test_a_request_without_a_token_gets_a_plain_challenge(value: str | None) -> None:
    """`WWW-Authenticate: Bearer`, without an error code (RFC 6750 §3.1). Two headers that were joined are no token: the
    front and a proxy before it could each take another one.
    """
    headers = {"x-other": "Bearer a.b.c"} if value is None else {"authorization": value}
    with pytest.raises(Unauthenticated, match="the request has no bearer token") as caught:
        await authenticator().authenticate(headers)
    assert "Bearer" == caught.value.challenge


# Tokens that are bad


OTHER = make_key()
RSA = make_key("RS256", "rsa")


def hs256(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda data: hmac.digest(secret, data, "sha256")


def public_texts(key: SigningKey) -> list[bytes]:
    """What a careless verifier may take for an HMAC's secret."""
    public = key.private.public_key()
    return [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(key.jwk()).encode(),
        b"",
    ]


def tampered(claim: str, value: object) -> str:
    """With another claim than was signed."""
    header, _, signature = make_token(KEY, claims()).split(".")
    return f"{header}.{segment(claims(**{claim: value}))}.{signature}"


def unsigned(algorithm: object) -> str:
    return f"{segment({'alg': algorithm, 'kid': 'k1'})}.{segment(claims())}."


BAD_TOKENS: list[tuple[str, str]] = [
    # claims
    ("is of another issuer", make_token(KEY, claims(iss="https://issuer.test/"))),
    ("is of another issuer", make_token(KEY, claims(iss="https://issuer.tes"))),
    ("is of another issuer", make_token(KEY, claims(iss="HTTPS://issuer.test"))),
    ("is of another issuer", make_token(KEY, claims(iss=[ISSUER]))),
    ("is for another audience", make_token(KEY, claims(aud="https://front.test"))),
    ("has no claim 'aud'", make_token(KEY, claims(aud=[]))),
    ("is for another audience", make_token(KEY, claims(aud=[[AUDIENCE]]))),
    ("is for another audience", make_token(KEY, claims(aud={AUDIENCE: 1}))),
    *((f"has no claim '{name}'", make_token(KEY, claims(**{name: None}))) for name in ("exp", "iss", "aud", "sub")),
    ("has no claim 'exp'", make_token(KEY, json.dumps(claims() | {"exp": None}))),
    ("has expired", make_token(KEY, claims(exp=NOW))),
    ("has expired", make_token(KEY, claims(exp=0))),
    ("has expired", make_token(KEY, claims(exp=-(10**300)))),
    ("is not valid yet", make_token(KEY, claims(nbf=NOW + 1))),
    ("has a time that is no number", make_token(KEY, claims(exp=str(NOW + 600)))),
    ("has a time that is no number", make_token(KEY, claims(exp=True))),
    ("has a time that is no number", make_token(KEY, claims(exp=[]))),
    ("has a time that is no number", make_token(KEY, json.dumps(claims(exp=0)).replace('"exp": 0', '"exp": 1e999'))),
    ("has a time that is no number", make_token(KEY, json.dumps(claims(exp=0)).replace('"exp": 0', '"exp": NaN'))),
    ("has a time that is no number", make_token(KEY, claims(exp=10**400))),
    ("has a time that is no number", make_token(KEY, claims(nbf="0"))),
    ("has a subject that names no principal", make_token(KEY, claims(sub=""))),
    ("has a subject that names no principal", make_token(KEY, claims(sub="a\0b"))),
    ("has a subject that names no principal", make_token(KEY, claims(sub="\ud800"))),
    ("is no valid JWT", make_token(KEY, claims(sub=7))),
    ("is no valid JWT", make_token(KEY, claims(sub=["alice"]))),
    ("is no valid JWT", make_token(KEY, [1])),
    ("is no valid JWT", make_token(KEY, "no JSON")),
    ("is no valid JWT", make_token(KEY, "\x00")),
    ("is no valid JWT", make_token(KEY, "[" * 8000)),
    # signatures
    ("has a wrong signature", make_token(KEY, claims(), sign=OTHER.sign)),
    ("has a wrong signature", make_token(KEY, claims(), sign=lambda data: KEY.sign(data + b" "))),
    ("has a wrong signature", make_token(KEY, claims(), sign=lambda data: b"\0" * 64)),  # CVE-2022-21449
    ("has a wrong signature", tampered("sub", "root")),
    ("has a wrong signature", tampered("exp", NOW + 1e6)),
    ("is no signed JWT", f"{segment({'alg': 'ES256', 'kid': 'k1'})}.{segment(claims())}."),
    # algorithms
    *(("is no signed JWT", unsigned(name)) for name in ("none", "None", "ES256", "", None)),
    *(
        ("is signed with an algorithm that is not allowed", make_token(KEY, claims(), header={"alg": name}))
        for name in ("none", "NONE", "es256", "HS256", "RS1", "", 7, ["ES256"], {"a": 1}, True)
    ),
    *(
        (
            "is signed with an algorithm that is not allowed",
            make_token(key, claims(), header={"alg": "HS256"}, sign=hs256(text)),
        )
        for key in (KEY, RSA)
        for text in public_texts(key)
    ),
    ("is signed with a key that is unknown", make_token(make_key("ES384"), claims())),  # a key of this id, not for it
    ("is signed with a key that is unknown", make_token(RSA, claims(), header={"alg": "PS256"})),  # pinned by the set
    # keys
    ("is signed with a key that is unknown", make_token(KEY, claims(), header={"kid": "k2"})),
    ("is signed with a key that is unknown", make_token(KEY, claims(), header={"kid": ""})),
    ("has a wrong signature", make_token(OTHER, claims(), header={"jwk": OTHER.jwk()})),  # RFC 7515 §4.1.3
    ("has a wrong signature", make_token(OTHER, claims(), header={"jku": "https://issuer.test/k", "x5u": "https://x"})),
    # headers
    *(  # RFC 7515 §4.1.11: none is understood
        ("is no signed JWT", make_token(KEY, claims(), header={"crit": crit, "b64": True, "exp": NOW}))
        for crit in (["exp"], ["b64"], [], "b64", 7)
    ),
    ("is no signed JWT", make_token(KEY, claims(), header={"b64": False})),  # RFC 7797 §3
    ("is no signed JWT", make_token(KEY, claims(), header={"kid": 7})),
    ("is no signed JWT", make_token(KEY, claims(), header="[]")),
    ("is no signed JWT", make_token(KEY, claims(), header="null")),
    ("is no signed JWT", make_token(KEY, claims(), header='{"alg": "ES256"')),
    ("is no signed JWT", make_token(KEY, claims(), header="[" * 8000)),
    (
        "is no signed JWT",
        make_token(KEY, claims(), header='{"alg": "ES256", "kid": "\udce4"}'.replace("\udce4", "\x01")),
    ),
    # texts
    ("is no signed JWT", "garbage"),
    ("is no signed JWT", "a.b"),
    ("is no signed JWT", "a.b.c"),
    ("is no signed JWT", "a.b.c.d.e"),  # an encrypted one (RFC 7516 §7.1)
    ("is no signed JWT", "..."),
    ("is no signed JWT", make_token(KEY, claims()) + "."),
    ("is no signed JWT", make_token(KEY, claims()) + ",x"),
    ("is no signed JWT", "ä.ö.ü"),
    ("is over 16384 bytes", make_token(KEY, claims(more="x" * 12_500))),
    ("is over 16384 bytes", "a" * 1_000_000),
]


@pytest.mark.parametrize(
    ("problem", "token"), [pytest.param(*bad, id=f"{number}: {bad[0]}") for number, bad in enumerate(BAD_TOKENS)]
)
async def test_a_bad_token_is_refused(problem: str, token: str) -> None:
    """With `invalid_token`, and a description that is fixed text."""
    assert problem == await refusal(token, authenticator(KEY.jwk(), RSA.jwk()))


async def test_a_token_up_to_the_limit_is_read() -> None:
    """16 KiB, scheme included."""
    token = make_token(KEY, claims(more="x" * 11_900))
    assert 16_000 < len(token) < 16_384
    assert "alice" == (await authenticator().authenticate(bearer(token))).subject


async def test_only_the_algorithms_that_are_given_are_allowed() -> None:
    """Another one is refused, whatever the key set says."""
    only = authenticator(KEY.jwk(), RSA.jwk(), algorithms=["RS256"])
    assert "alice" == (await only.authenticate(bearer(make_token(RSA, claims())))).subject
    assert "is signed with an algorithm that is not allowed" == await refusal(make_token(KEY, claims()), only)


GOOD = {name: make_token(KEY, claims(sub=name)) for name in ("alice", "bob")}
PARTS = [part for token in GOOD.values() for part in token.split(".")]


def principal_of(value: str) -> str | None:
    """None: refused."""

    async def main() -> str | None:
        try:
            return (await authenticator().authenticate({"authorization": value})).subject
        except Unauthenticated as error:
            challenges.append(error.challenge)
            return None

    challenges: list[str] = []
    subject = trio.run(main)
    assert [] == [text for text in challenges if not re.fullmatch(r"[\x20-\x7e]+", text)]
    return subject


@given(st.data())
@settings(max_examples=30)
def test_no_change_of_a_token_makes_it_that_of_another_principal(data: st.DataObject) -> None:
    """Characters exchanged, left out or put in, or parts of two tokens put together."""
    token = GOOD["alice"]
    start = data.draw(st.integers(0, len(token)), "start")
    end = data.draw(st.integers(start, min(len(token), start + 3)), "end")
    between = data.draw(st.text("abcXYZ019-_.= \t\x00é", max_size=3), "between")
    assert principal_of(f"Bearer {token[:start]}{between}{token[end:]}") in (None, "alice")
    mixed = ".".join(data.draw(st.lists(st.sampled_from(PARTS), min_size=2, max_size=4), "parts"))
    assert principal_of(f"Bearer {mixed}") == next((name for name, good in GOOD.items() if good == mixed), None)


@given(st.text() | st.from_regex(r"\ABearer [A-Za-z0-9_=.-]{0,80}\Z"))
@settings(max_examples=30)
def test_any_header_is_read_or_refused(value: str) -> None:
    """No other error comes of it, and the challenge is one line of ASCII."""
    assert principal_of(value) is None


VALUES = st.sampled_from(
    [None, True, 7, 1.5, "", "é", "AQAB", [], ["verify"], [[]], {}, {"kty": "EC"}, *KEY.jwk().values()]
)
ENTRIES = VALUES | st.dictionaries(st.sampled_from([*KEY.jwk(), "n", "e", "d", "k", "key_ops", "x5c"]), VALUES)


@given(changes=ENTRIES, more=st.lists(ENTRIES, max_size=3))
@settings(max_examples=50)
def test_any_key_set_is_read(changes: Any, more: list[Any]) -> None:
    """An entry that cannot be read, or is changed until it cannot, costs itself. What is read is a public key."""
    entry = {**KEY.jwk(), **changes} if isinstance(changes, dict) else changes
    keys = read_key_set({"keys": [entry, *more, RSA.jwk()]}, ALGORITHMS).keys
    assert "rsa" == keys[-1].key_id
    assert all(key.algorithms <= {*ALGORITHMS} for key in keys)


# Keys


UNKNOWN = "is signed with a key that is unknown"


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (KEY.jwk(use="enc"), UNKNOWN),
        (KEY.jwk(use=["sig"]), UNKNOWN),
        (KEY.jwk(key_ops=["encrypt"]), UNKNOWN),
        (KEY.jwk(key_ops="verify"), UNKNOWN),
        (KEY.jwk(alg="ES384"), UNKNOWN),
        (KEY.jwk(alg="HS256"), UNKNOWN),
        (KEY.jwk(alg=["ES256"]), UNKNOWN),
        (KEY.jwk(kid="other"), UNKNOWN),
        (KEY.jwk(kid=None), UNKNOWN),
        (KEY.jwk(kid=1), UNKNOWN),
        (KEY.jwk(kty="oct", k=base64url(b"secret")), UNKNOWN),
        (KEY.jwk(kty=["EC"]), UNKNOWN),
        (KEY.jwk(kty=None), UNKNOWN),
        (KEY.jwk(crv="P-384"), UNKNOWN),
        (KEY.jwk(crv="secp256k1"), UNKNOWN),
        (KEY.jwk(x="AAAA"), UNKNOWN),
        (KEY.jwk(x=7), UNKNOWN),
        (KEY.jwk(y=OTHER.jwk()["y"]), UNKNOWN),  # no point of the curve
        (KEY.jwk(use=None, alg=None), None),
        (KEY.jwk(key_ops=["verify"]), None),
        (KEY.jwk(x5c=["CANARY"], x5u="https://issuer.test/c", more={}), None),
        (KEY.jwk(d=base64url(b"1" * 32)), None),  # of a private key: not read
    ],
)
async def test_a_key_is_used_for_what_it_is_for(entry: dict[str, Any], problem: str | None) -> None:
    """`use`, `key_ops`, `alg` and `kid` (RFC 7517 §4) must fit; a key that cannot be read costs itself."""
    by = authenticator(entry, OTHER.jwk(kid="spare"))
    token = make_token(KEY, claims())
    if problem is None:
        assert "alice" == (await by.authenticate(bearer(token))).subject
    else:
        assert problem == await refusal(token, by)


async def test_a_symmetric_key_of_the_set_is_never_used() -> None:
    """Not even if its token names it and the algorithm: every reader of the key set could sign with it."""
    secret = b"s" * 32
    entry = {"kty": "oct", "k": base64url(secret), "alg": "HS256", "kid": "k1", "use": "sig"}
    token = make_token(KEY, claims(), header={"alg": "HS256"}, sign=hs256(secret))
    by = authenticator(entry, OTHER.jwk())
    assert "is signed with an algorithm that is not allowed" == await refusal(token, by)


async def test_a_short_rsa_key_is_not_used() -> None:
    """RFC 7518 §3.3: 2048 bits or more."""
    short = make_key("RS256", private=rsa_key(1024))
    assert UNKNOWN == await refusal(make_token(short, claims()), authenticator(short.jwk(), OTHER.jwk()))


async def test_a_token_without_a_key_id_needs_a_set_with_one_key_that_fits() -> None:
    """Others of the set may be for other algorithms. With two that fit, none is used."""
    token = make_token(KEY, claims(), header={"kid": None})
    assert "alice" == (await authenticator(KEY.jwk(), RSA.jwk()).authenticate(bearer(token))).subject
    assert "alice" == (await authenticator(KEY.jwk(kid=None)).authenticate(bearer(token))).subject
    assert UNKNOWN == await refusal(token, authenticator(KEY.jwk(), OTHER.jwk(kid="k2")))
    assert UNKNOWN == await refusal(token, authenticator(RSA.jwk()))
    assert "has a wrong signature" == await refusal(token, authenticator(OTHER.jwk()))


async def test_keys_that_share_an_id_are_alternatives() -> None:
    """RFC 7517 §4.5. A token may be signed with any of them, and the claims are checked all the same."""
    by = authenticator(OTHER.jwk(), KEY.jwk(), RSA.jwk(kid="k1"))
    for key in (KEY, OTHER, attrs.evolve(RSA, key_id="k1")):
        assert "alice" == (await by.authenticate(bearer(make_token(key, claims())))).subject
        assert "has expired" == await refusal(make_token(key, claims(exp=NOW - 1)), by)
        assert "is of another issuer" == await refusal(make_token(key, claims(iss="x")), by)
    assert "has a wrong signature" == await refusal(make_token(make_key(), claims()), by)


# What is kept as verified


@attrs.define
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


async def test_a_token_that_was_verified_expires_all_the_same() -> None:
    """By the wall clock, whether it was verified before or not; it never comes back."""
    clock = Clock()
    by = authenticator(clock=clock, leeway=10)
    token = make_token(KEY, claims(exp=NOW + 100))
    for seconds in (0, 50, 109.75):
        clock.now = NOW + seconds
        assert "alice" == (await by.authenticate(bearer(token))).subject
    clock.now = NOW + 110
    assert "has expired" == await refusal(token, by)
    assert "has expired" == await refusal(token, by)


async def test_two_principals_are_never_mixed_up() -> None:
    """Each token has its own identity and token, the first time and each time after; nor does the place of a token or
    the case of a subject matter.
    """
    by = authenticator()
    tokens = {name: make_token(KEY, claims(sub=name)) for name in ("alice", "bob", "Alice", "alice ", "al")}
    for _ in range(3):
        for name, token in tokens.items():
            identity = await by.authenticate(bearer(token))
            assert (name, token) == (identity.subject, identity.token)
    header, body, _ = tokens["alice"].split(".")
    for name in ("bob", "Alice"):
        assert "has a wrong signature" == await refusal(f"{header}.{body}.{tokens[name].rpartition('.')[2]}", by)


async def test_tokens_that_are_kept_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the limit, the token that was used longest ago is verified anew: here it is not valid yet by then, since
    the wall clock was put back.
    """
    monkeypatch.setattr("trio_vmcp.serve.jwt.MOST_VERIFIED", 2)
    clock = Clock()
    by = authenticator(clock=clock)
    tokens = {name: make_token(KEY, claims(sub=name, nbf=NOW)) for name in "abc"}
    for name in "abac":
        await by.authenticate(bearer(tokens[name]))
    clock.now = NOW - 1
    for name in "ac":
        assert name == (await by.authenticate(bearer(tokens[name]))).subject
    assert "is not valid yet" == await refusal(tokens["b"], by)
