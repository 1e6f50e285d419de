"""What is known about a graph's exactness, attached to it; and how much a sample of its rows can prove."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Bets on the mean loss being lower than claimed, and how the stake is split over them. The first gains most while nothing
# is missed; the other loses less to a row that misses much.
_BETS = ((1.0, 0.9), (0.3, 0.1))


@dataclass(frozen=True)
class Certificate:
    """How the neighbors were found and what that proves.

    method: "tree" or "dense", which prune only what cannot be a neighbor, or "gated", whose recall is measured.
    dtype:  arithmetic that decided every comparison, "float32" or "float64".
    exact:  True when every row equals brute force in that arithmetic, ties by (distance, index).
    recall, recall_lower, confidence: gated only: share of true neighbors that the gate lets through in the audited rows, and
            what it is at least over all rows, at that confidence.
    audited_queries, missed_neighbors: gated only: rows whose true neighbors were computed, and how many of those the gate
            keeps out. The graph has them: audited rows are exact.
    degenerate_rows: residual metric only: rows whose residual variance is at the floor.
    gate1_candidates, gate1_kept, gate1_pruned: residual metric only: pairs of the rows behind the gate that could be
            neighbors, those that passed it, the others.
    gate1_false_negatives, gate1_widenings: true neighbors that the gate kept out, in the last audit; times it was widened.
    """

    method: str
    dtype: str
    exact: bool = True
    recall: float | None = None
    recall_lower: float | None = None
    confidence: float | None = None
    audited_queries: int | None = None
    missed_neighbors: int | None = None
    degenerate_rows: int | None = None
    gate1_candidates: int | None = None
    gate1_kept: int | None = None
    gate1_pruned: int | None = None
    gate1_false_negatives: int | None = None
    gate1_widenings: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as a JSON object, without what does not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def recall_lower_bound(losses: NDArray[np.float64], alpha: float) -> float:
    """Return a number that the mean of 1 - loss over all rows is at least, except with probability alpha.

    losses: float64 (rows,), the share of true neighbors missing in each row of a uniform sample without replacement.
    Bets: were the mean loss μ or more, each capital Π (1 + λ (μ - loss)) would be at most 1 in expectation (sampling without
    replacement only lowers it: Joag-Dev & Proschan 1983), hence so would their average; by Markov's inequality it exceeds
    1 / alpha with probability at most alpha. Every μ at which it does is ruled out; the capital grows with μ.
    Nothing is assumed about how misses cluster in rows. Source: Waudby-Smith & Ramdas 2024.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _log_capital(losses, middle) >= -math.log(alpha):
            high = middle
        else:
            low = middle
    return 1.0 - high


def audit_size(recall: float, alpha: float) -> int:
    """Return how many rows must be audited for `recall_lower_bound` to reach recall, with 8 % to spare for misses."""
    stake = _BETS[0][1]
    return math.ceil(1.08 * -math.log(alpha * stake) / math.log1p(1.0 - recall))


def _log_capital(losses: NDArray[np.float64], mean: float) -> float:
    with np.errstate(divide="ignore"):
        logs = [math.log(stake) + float(np.log1p(bet * (mean - losses)).sum()) for bet, stake in _BETS]
    return float(np.logaddexp.reduce(logs))
