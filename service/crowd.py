"""How many requests of one namespace may be held at once in this process: each waits, or has memory, for long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

from pcct_core.errors import PcctError

Kind: TypeAlias = Literal["one-shot", "wait"]

_SAID: Mapping[Kind, str] = {
    "one-shot": "one-shot requests are being answered (PCCT_MAX_ONESHOTS); wait for one, or use POST /v1/graphs",
    "wait": "requests are waiting or following events (PCCT_MAX_WAITS); end some of them, or ask without Prefer: wait",
}


class TooManyAtOnce(PcctError):
    """The namespace has as many requests of a kind under way as it may."""

    def __init__(self, kind: Kind, most: int) -> None:
        super().__init__(f"{most} of this namespace's {_SAID[kind]}")


class Crowd:
    """Counts requests under way by namespace. most: of each kind in one namespace."""

    def __init__(self, most: Mapping[Kind, int]) -> None:
        self._most = most
        self._present: Counter[tuple[str, Kind]] = Counter()

    @contextmanager
    def present(self, namespace: str, kind: Kind) -> Iterator[None]:
        """Count a request while the block runs; raises TooManyAtOnce."""
        if self._present[namespace, kind] >= self._most[kind]:
            raise TooManyAtOnce(kind, self._most[kind])
        self._present[namespace, kind] += 1
        try:
            yield
        finally:
            self._present[namespace, kind] -= 1
            if not self._present[namespace, kind]:
                del self._present[namespace, kind]
