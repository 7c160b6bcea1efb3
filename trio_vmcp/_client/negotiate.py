"""The description of this client in a handshake, and the checks of the server's answer."""

from __future__ import annotations

import json
from importlib import metadata as distribution
from typing import Any
from weakref import WeakValueDictionary

from trio_vmcp._client.channels.channel import Channel
from trio_vmcp._protocol.eras import LEGACY_VERSIONS
from trio_vmcp._protocol.json_slices import encode_in_steps
from trio_vmcp._protocol.methods import INITIALIZE
from trio_vmcp.errors import BackendProtocolError, MessageTooLarge
from trio_vmcp.models import JSON

__all__ = ["CLIENT_INFO", "declared_capabilities", "negotiated"]

CLIENT_INFO = {"name": "trio-vmcp", "version": distribution.version("trio-vmcp")}
# As JSON. Capabilities are stored in the metadata: one backend must not make the row too large to be written.
MAX_CAPABILITIES_BYTES = 64 * 1024
_encoder = json.JSONEncoder(separators=(",", ":"))


class _Capabilities(dict[str, Any]):
    """A dict that can be referred to weakly. A copy is a plain one."""

    __slots__ = ("__weakref__",)

    def __reduce__(self) -> tuple[type, tuple[JSON]]:
        return dict, (dict(self),)


# By their text: many sessions have the same, which are held once, for as long as a client or a row has them.
_known: WeakValueDictionary[str, _Capabilities] = WeakValueDictionary()


def negotiated(channel: Channel, result: JSON) -> tuple[str, JSON]:
    """The protocol version and the server capabilities in an answer to `initialize`.

    Raises:
        BackendProtocolError: This client does not speak the version, or the capabilities are no object.
        MessageTooLarge: As in `declared_capabilities`.
    """
    version = result.get("protocolVersion")
    if version not in LEGACY_VERSIONS:
        shown = repr(channel.blot(version)[:40]) if isinstance(version, str) else "no version"
        raise BackendProtocolError(
            channel.backend_id, f"answered {INITIALIZE!r} with {shown}; we speak {LEGACY_VERSIONS}"
        )
    return version, declared_capabilities(channel.backend_id, INITIALIZE, result)


def declared_capabilities(backend_id: str, method: str, result: JSON) -> JSON:
    """The capabilities that a server declares in its answer to `method`; equal ones are the same object.

    Raises:
        BackendProtocolError: The capabilities are no object.
        MessageTooLarge: Over MAX_CAPABILITIES_BYTES.
    """
    capabilities = result.get("capabilities")
    if capabilities is None:
        capabilities = {}
    if not isinstance(capabilities, dict):
        raise BackendProtocolError(backend_id, f"answered {method!r} with capabilities that are no object")
    size, pieces = 0, []
    for piece in encode_in_steps(_encoder, capabilities):  # no more of them than the limit takes
        size += len(piece)
        if size > MAX_CAPABILITIES_BYTES:
            raise MessageTooLarge(backend_id, f"declares capabilities of over {MAX_CAPABILITIES_BYTES} bytes")
        pieces.append(piece)
    return _known.setdefault("".join(pieces), _Capabilities(capabilities))
