"""What is known about a graph's exactness, attached to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Certificate:
    """How the neighbors were found and what that proves.

    method: "tree" or "dense", the search that made the graph; both prune only what cannot be a neighbor.
    dtype:  arithmetic that decided every comparison, "float32" or "float64".
    exact:  True when every row equals brute force in that arithmetic, ties by (distance, index).
    """

    method: str
    dtype: str
    exact: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as a JSON object."""
        return asdict(self)
