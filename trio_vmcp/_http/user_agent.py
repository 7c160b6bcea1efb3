"""How our requests name their sender (RFC 9110 §10.1.5). Firewalls refuse requests that do not say."""

from importlib import metadata

__all__ = ["USER_AGENT"]

USER_AGENT = b"trio-vmcp/" + metadata.version("trio-vmcp").encode()
