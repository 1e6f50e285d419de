"""One record per build: what was asked, how long each phase took, what was counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Telemetry:
    """Times and counts of one build.

    seconds: wall time by phase, in seconds. counts: numbers by name (points, neighbors, threads, ...).
    """

    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall time spent inside the block to `seconds[name]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return {"seconds": {k: round(v, 6) for k, v in self.seconds.items()}, "counts": dict(self.counts)}
