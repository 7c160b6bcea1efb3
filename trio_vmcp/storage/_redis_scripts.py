"""Rows in Redis, and the scripts that change them: each touches one key, and is one atomic step on the server.

A row is a hash under the prefix and a digest of the session's id, since ids are bearer tokens: `version` in decimal
digits, `data` in JSON. A tombstone is a hash without data at version "deleted". Versions are compared as text, since
Lua's numbers are floats. Redis counts the time to live.
"""

from __future__ import annotations

import hashlib

import attrs

__all__ = ["CREATE", "DELETE", "DONE", "EXISTS", "NO_ROW", "OTHER_VERSION", "REPLACE", "TOUCH", "Script", "row_tag"]

DONE = b"done"
EXISTS = b"exists"
NO_ROW = b"no row"
OTHER_VERSION = b"other version"


@attrs.frozen
class Script:
    """A script in Lua.

    Attributes:
        name: Of the operation, for errors.
        text: KEYS[1] is the row; ARGV its own.
        digest: The name under which Redis keeps the script once it has seen it.
    """

    name: str
    text: str = attrs.field(repr=False)
    digest: str = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


def row_tag(session_id: str) -> str:
    """A session's name in keys and notices: hex SHA-256 of the id."""
    return hashlib.sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()


# pcall: a notice is a hint, and a user of Redis that may not publish is still to write.
_FOUND = "local version = redis.call('HGET', KEYS[1], 'version') "
_NONE_FOUND = "not version or version == 'deleted'"

# ARGV: version, data, ttl in ms.
CREATE = Script(
    "create",
    """
if redis.call('EXISTS', KEYS[1]) == 1 then return 'exists' end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'data', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 'done'
""",
)

# ARGV: expected version, version, data, ttl in ms, channel, notice.
REPLACE = Script(
    "replace",
    f"""
{_FOUND}
if {_NONE_FOUND} then return 'no row' end
if version ~= ARGV[1] then return 'other version' end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'data', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.pcall('PUBLISH', ARGV[5], ARGV[6])
return 'done'
""",
)

# ARGV: expected version or '', ttl in ms.
TOUCH = Script(
    "touch",
    f"""
{_FOUND}
if {_NONE_FOUND} then return 'no row' end
if ARGV[1] ~= '' and version ~= ARGV[1] then return 'other version' end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 'done'
""",
)

# Without DEL: while a cluster moves the slot, a node refuses a script's write to a key that it no longer has, and the
# row would be gone without a tombstone.
# ARGV: expected version or '', ttl in ms, channel, notice.
DELETE = Script(
    "delete",
    f"""
{_FOUND}
if version == 'deleted' then return 'done' end
if version and ARGV[1] ~= '' and version ~= ARGV[1] then return 'other version' end
redis.call('HSET', KEYS[1], 'version', 'deleted')
redis.call('HDEL', KEYS[1], 'data')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.pcall('PUBLISH', ARGV[3], ARGV[4])
return 'done'
""",
)
