"""API keys: who may call, for what, and in which namespace.

The text of a key is `pcct_ID_SECRET`, shown once. Stored is the SHA-256 of the secret: it has 256 random bits, so there is
nothing to guess from its hash, and the slow salted hashes that passwords need would only slow down each request.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from redis.asyncio import Redis

from pcct_core.errors import InvalidInput
from worker.keys import Keys, checked_namespace

Scope: TypeAlias = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")  # each includes those before it

REMEMBERED_S = 3.0  # a key that was revoked is taken for at most this long: polls must not ask the store twice

_ID_BYTES = 8
_SECRET_BYTES = 32
_TEXT = re.compile(f"pcct_([0-9a-f]{{{2 * _ID_BYTES}}})_([0-9a-f]{{{2 * _SECRET_BYTES}}})")
_MOST_LABEL = 200
_NO_DIGEST = hashlib.sha256(b"").digest()


class InvalidKey(InvalidInput):
    """A key cannot be made as it was asked for."""


@dataclass(frozen=True)
class ApiKey:
    """What is known about a key. digest: SHA-256 of its secret. created_s: Unix time."""

    id: str
    namespace: str
    scope: Scope
    label: str
    created_s: float
    digest: bytes = field(repr=False)

    def allows(self, scope: Scope) -> bool:
        """Return whether the key's scope includes another one."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


class _Remembered(NamedTuple):
    key: ApiKey
    until: float


class ApiKeys:
    """The keys in one store; every method may raise `redis.exceptions.RedisError` when it is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._remembered: dict[bytes, _Remembered] = {}

    async def create(self, namespace: str, scope: str, label: str = "") -> tuple[ApiKey, str]:
        """Make a key; return it and its text, which is nowhere else. Raises InvalidNamespace or InvalidKey."""
        if scope not in SCOPES:
            raise InvalidKey(f"scope is {scope!r}; use one of {', '.join(SCOPES)}")
        if len(label) > _MOST_LABEL or not (label.isprintable()):
            raise InvalidKey(f"the label must be printable, at most {_MOST_LABEL} characters")
        secret = secrets.token_hex(_SECRET_BYTES)
        key = ApiKey(
            secrets.token_hex(_ID_BYTES), checked_namespace(namespace), scope, label, time.time(), _digest(secret)
        )
        fields = {
            "namespace": key.namespace,
            "scope": key.scope,
            "label": key.label,
            "created_s": key.created_s,
            "sha256": key.digest.hex(),
        }
        await cast(Any, self._redis.hset(Keys.api_keys, key.id, json.dumps(fields)))
        return key, f"pcct_{key.id}_{secret}"

    async def list(self) -> list[ApiKey]:
        """Return all keys, oldest first."""
        raw = await cast(Any, self._redis.hgetall(Keys.api_keys))
        return sorted((_key(id.decode(), text) for id, text in raw.items()), key=lambda key: (key.created_s, key.id))

    async def revoke(self, id: str) -> bool:
        """Remove a key; processes that have seen it take it for `REMEMBERED_S` more. False when there was none."""
        return bool(await cast(Any, self._redis.hdel(Keys.api_keys, id)))

    async def find(self, text: str) -> ApiKey | None:
        """Return the key with this text, None when there is none.

        An unknown id and a wrong secret take the same steps, so neither answer nor time tells which it was.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            return None
        id, digest = match[1], _digest(match[2])
        whole = _digest(text)  # not the id: what is remembered must not answer faster for a wrong secret
        remembered = self._remembered.get(whole)
        if remembered is not None and remembered.until > time.monotonic():
            return remembered.key
        raw = await cast(Any, self._redis.hget(Keys.api_keys, id))
        key = _key(id, raw) if raw is not None else None
        if not hmac.compare_digest(_NO_DIGEST if key is None else key.digest, digest) or key is None:
            self._remembered.pop(whole, None)
            return None
        now = time.monotonic()
        self._remembered = {name: entry for name, entry in self._remembered.items() if entry.until > now}
        self._remembered[whole] = _Remembered(key, now + REMEMBERED_S)
        return key


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _key(id: str, text: bytes) -> ApiKey:
    fields = json.loads(text)
    return ApiKey(
        id,
        fields["namespace"],
        fields["scope"],
        fields["label"],
        float(fields["created_s"]),
        bytes.fromhex(fields["sha256"]),
    )
