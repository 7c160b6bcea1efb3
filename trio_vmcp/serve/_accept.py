"""Which forms of an answer a client takes: the header `Accept` (RFC 9110 §12.5.1)."""

from __future__ import annotations

import functools

from trio_vmcp.serve._asgi import HttpRequest

__all__ = ["accepts", "prefers_page"]


def accepts(request: HttpRequest, *media_types: str) -> bool:
    """Whether a client takes all of these media types, wildcards included; without the header it takes all.

    The most specific range decides, and "a value of 0 means 'not acceptable'" (§12.4.2). Other parameters do not count.
    """
    given = request.headers.get("accept")
    return given is None or _takes_all(given, media_types)


@functools.lru_cache(maxsize=64)  # clients send the same few texts with every request
def _takes_all(accept: str, media_types: tuple[str, ...]) -> bool:
    weights = _weights(accept)
    return all(_weight_of(each, weights) > 0 for each in media_types)


def _weight_of(media_type: str, weights: dict[str, float]) -> float:
    ranges = (media_type, media_type.partition("/")[0] + "/*", "*/*")
    return next((weights[each] for each in ranges if each in weights), 0.0)


def prefers_page(accept: str | None) -> bool:
    """Whether a client would rather have text/html than JSON. Browsers name text/html; programs that take anything get
    JSON.
    """
    weights = _weights(accept or "")
    return weights.get("text/html", 0.0) > weights.get("application/json", 0.0)


def _weights(accept: str) -> dict[str, float]:
    """By media range. Of a range that is there several times, with other parameters, the largest counts."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        media_range, *parameters = (piece.strip() for piece in part.split(";"))
        weight = min((_weight(each) for each in parameters), default=1.0)
        weights[media_range] = max(weight, weights.get(media_range, 0.0))
    return weights


def _weight(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    try:
        return float(value) if name.strip() == "q" else 1.0
    except ValueError:
        return 1.0
