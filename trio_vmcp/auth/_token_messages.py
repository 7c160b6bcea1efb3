"""OAuth 2.0's client credentials grant in bytes, by `oauthlib`. Imported only by functions, since the extra `oauth` may
not be installed.

Sources: RFC 6749 §4.4 (the grant), §5 (the answers); RFC 8707 (resource).
"""

from __future__ import annotations

import re

from oauthlib.oauth2 import BackendApplicationClient, OAuth2Error

from trio_vmcp.auth._tokens import TokenGrant, TokenRefusal

__all__ = ["read_token_response", "token_request_body"]

MOST_TOKEN_BYTES = 64 * 1024  # of an answer; parsing more would delay all other tasks
MOST_LIFETIME = 366 * 86400  # s; a longer lifetime is cut to this
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")
# RFC 6749 §4.1.2.1 and §5.2, RFC 8707 §2. Other codes are not repeated in errors: they may hold anything.
_TEMPORARY = ("server_error", "temporarily_unavailable")
_CODES = (
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "access_denied",
    "invalid_target",
    *_TEMPORARY,
)


def token_request_body(
    client_id: str, client_secret: str | None, *, scope: str, audience: str | None, resource: str | None
) -> bytes:
    """The form that asks for a token (RFC 6749 §4.4.2).

    Args:
        client_secret: None: neither the secret nor the client's id is in the form.
    """
    in_form = client_secret is not None
    body: str = BackendApplicationClient(client_id).prepare_request_body(
        scope=scope or None,
        include_client_id=in_form,
        client_secret=client_secret,
        audience=audience,
        resource=resource,
    )
    return body.encode()


def read_token_response(status: int, body: bytes) -> TokenGrant | TokenRefusal:
    """The meaning of the token endpoint's answer. Of its text only the error codes of the standards are repeated."""
    temporary = status >= 500 or status in (408, 429)
    try:
        if len(body) > MOST_TOKEN_BYTES:
            return TokenRefusal(f"answered with over {MOST_TOKEN_BYTES} bytes where a token was asked for", temporary)
        parsed = BackendApplicationClient("").parse_request_body_response(body.decode())
        expires_in = parsed.get("expires_in")
        lifetime = None if expires_in is None else float(min(max(int(expires_in), 0), MOST_LIFETIME))
    except OAuth2Error as error:
        if error.error in _CODES:
            temporary = temporary or error.error in _TEMPORARY
            return TokenRefusal(f"refused a token: {error.error!r}, HTTP {status}", temporary)
        return TokenRefusal(f"answered HTTP {status} and no token", temporary)
    except Exception:  # noqa: BLE001  # no JSON, wrong types …; without the error, in which oauthlib quotes the answer
        return TokenRefusal(f"answered HTTP {status} and what is no token", temporary)
    if not 200 <= status < 300:
        return TokenRefusal(f"answered HTTP {status} where a token was asked for", temporary)
    token, kind = parsed.get("access_token"), parsed.get("token_type")
    if str(kind or "bearer").lower() != "bearer":
        return TokenRefusal("issued a token that is no bearer token", is_temporary=False)
    if not isinstance(token, str) or not _VISIBLE_ASCII.fullmatch(token):
        return TokenRefusal("issued a token that no header can carry", is_temporary=False)
    return TokenGrant(token, lifetime)
