"""Text fit to be shown: without secrets of the configuration, and without what a terminal would obey.

Text from backends is untrusted, and any text may repeat a secret of the configuration: everything that is shown or
written as JSON goes through one `Sanitizer`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import attrs

from trio_vmcp._client.channels.process import given_environment
from trio_vmcp._protocol.words import names_secret, secrets_in_arguments
from trio_vmcp.models import Backend

__all__ = ["Sanitizer"]

# C0 and C1 (escape sequences), line separators, marks that reorder text ("Trojan Source", CVE-2021-42574), and lone
# surrogates, which no output can encode.
_UNSAFE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORTEST_SECRET: Final = 6  # replacing shorter ones would remove ordinary words from the output
_AS_RECEIVED: Final = frozenset({"result", "definition", "resources", "resource_templates"})
_OURS: Final = frozenset({"error", "failure", "address", "skipped"})


@attrs.frozen
class Sanitizer:
    """Makes text fit to be shown.

    Secrets of the configuration are replaced wherever they appear (a backend may repeat a token in its error), and
    control characters, which a terminal would obey, are shown as escapes.
    """

    secrets: tuple[str, ...] = attrs.field(default=(), repr=False)

    @classmethod
    def of(cls, backends: Sequence[Backend]) -> Sanitizer:
        found: set[str] = set()
        for backend in backends:
            for name, value in (*backend.headers.items(), *given_environment(os.environ, backend).items()):
                if names_secret(name):
                    found |= {value, value.partition(" ")[2]}  # of "Bearer xyz" a backend may repeat "xyz" alone
            parts = urlsplit(backend.url)
            userinfo = parts.netloc.rpartition("@")[0]
            found |= {userinfo, userinfo.partition(":")[2]}
            found |= {value for name, value in parse_qsl(parts.query) if names_secret(name)}
            found |= secrets_in_arguments(backend.args)
        found = {secret for secret in found if len(secret) >= _SHORTEST_SECRET}
        return cls(tuple(sorted(found, key=len, reverse=True)))  # longest first: a secret may contain a shorter one

    def line(self, text: str, limit: int = 500) -> str:
        """The text as one line of at most `limit` characters; a longer one ends in an ellipsis."""
        line = _escape(" ".join(self._blot(text).split()))
        return line if len(line) <= limit else line[: limit - 3] + "..."

    def block(self, text: str) -> str:
        """The text with its line breaks."""
        return _escape(self._blot(text).replace("\r\n", "\n"))

    def document(self, value: Any, *, is_ours: bool = False) -> Any:
        """The document of --json. Errors and addresses are without secrets; what a backend has sent as a result or a
        definition stays as it came, for programs read it. `json` escapes control characters itself.
        """
        match value:
            case str():
                return self._blot(value) if is_ours else value
            case dict():
                return {
                    key: item if key in _AS_RECEIVED else self.document(item, is_ours=is_ours or key in _OURS)
                    for key, item in value.items()
                }
            case list() | tuple():
                return [self.document(item, is_ours=is_ours) for item in value]
            case _:
                return value

    def _blot(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "[secret]")
        return text


def _escape(text: str) -> str:
    return _UNSAFE.sub(lambda match: repr(match[0])[1:-1], text)
