"""Random draws that nobody can foresee who does not know the input and the secret: the lessons of a gate and its audit.

The seed is a keyed hash of the points and the specification, so the same input gives the same draws. Lessons and every audit
read a stream of their own. Draws inside a kernel come from a counter: number i of row r is a function of (stream, r, i), so an
audit of any length takes no memory, and threads cannot change it.
Sources: RFC 7693 (BLAKE2); Salmon, Moraes, Dror, Shaw 2011 (Philox4x32-10); Lemire 2019, section 4 (a word to an index).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pcct_core.jit import inner
from pcct_core.spec import GraphSpec

_ROUNDS = 10
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_NONE = np.uint64(0)


@dataclass(frozen=True)
class Draws:
    """The draws of one build. seed: 32 bytes. origin: what certificates say of it, "public" or "secret:" and a hash."""

    seed: bytes
    origin: str

    def stream(self, name: str) -> np.uint64:
        """Return the key of a stream, independent of those of all other names."""
        digest = hashlib.blake2b(name.encode(), key=self.seed, digest_size=8, person=b"pcct stream").digest()
        return np.uint64(int.from_bytes(digest, "little"))

    def choose(self, name: str, count: int, n: int) -> NDArray[np.int64]:
        """Return `count` different numbers below n, int64, or all n in any order where count is larger."""
        generator = np.random.Generator(np.random.Philox(key=int(self.stream(name))))
        return generator.permutation(n)[:count]


def seed_draws(points: NDArray[Any], spec: GraphSpec, secret: bytes | None) -> Draws:
    """Return the draws of a build of spec on points, (n, d) C-contiguous, as they came in.

    secret: any bytes, which the seed then depends on; without one whoever has the points can compute all draws.
    """
    key = b"" if secret is None else hashlib.blake2b(secret, person=b"pcct secret").digest()
    digest = hashlib.blake2b(key=key, digest_size=32, person=b"pcct draws")
    wanted = spec.canonical()
    # Lengths stand before what they measure, so that no two inputs give the same bytes.
    digest.update(f"{len(wanted)} {points.dtype.str} {points.shape} ".encode() + wanted)
    digest.update(memoryview(cast(Any, points)).cast("B"))
    origin = "public"
    if secret is not None:
        origin = f"secret:{hashlib.blake2b(secret, digest_size=8, person=b'pcct secret id').hexdigest()}"
    return Draws(digest.digest(), origin)


@inner
def draw_words(key, row, block):
    """Return two uint64 words: number `block` of a row in the stream `key`; row, block: integers below 2^32."""
    a, b, c, d = philox(key, np.uint64(block), np.uint64(row), _NONE, _NONE)
    return (a << _HALF) | b, (c << _HALF) | d


@inner
def philox(key, a, b, c, d):
    """Return the four 32-bit words of Philox4x32-10 at a counter of four, all as uint64; key: uint64, low word first."""
    low, high = key & _LOW, key >> _HALF
    for _ in range(_ROUNDS):
        first, second = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c
        a, b, c, d = (second >> _HALF) ^ b ^ low, second & _LOW, (first >> _HALF) ^ d ^ high, first & _LOW
        low, high = (low + _WEYL[0]) & _LOW, (high + _WEYL[1]) & _LOW
    return a, b, c, d


@inner
def index_below(word, count):
    """Return a uint64 word as an index below count, 1 ≤ count ≤ 2^31: the high part of their product.

    No index comes more or less often than another by more than a part in 2^33, which `certificate.audit_rate` covers.
    """
    many = np.uint64(count)
    return np.int64(((word >> _HALF) * many + (((word & _LOW) * many) >> _HALF)) >> _HALF)
