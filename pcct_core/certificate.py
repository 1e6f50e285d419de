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
    recall, recall_lower, confidence: gated only: the graph's recall as the audited rows estimate it, and what it is at least,
            at that confidence.
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


def recall_lower_bound(losses: NDArray[np.float64], alpha: float, pool: int) -> float:
    """Return a number that the mean of 1 - loss over a pool of rows is at least, except with probability alpha.

    losses: float64 (rows,), the share of true neighbors missing in each row of a uniform sample of the pool, in the order
    drawn, without replacement. pool: how many rows it was drawn from.
    Bets: were the mean loss μ or more, what is left to lose before draw t would average m = (pool μ - losses so far) /
    (pool - t + 1) or more, so each capital Π (1 + λ (m - loss) / (1 - m)), λ ≤ 1, would be at most 1 in expectation, and
    hence their average; by Markov's inequality it exceeds 1 / alpha with probability at most alpha. Every μ at which it does
    is ruled out; the capital grows with m, and m with μ. With λ = 1 and nothing missed this is the hypergeometric bound.
    The mean of a whole pool is known.
    Nothing is assumed about how misses cluster in rows. Source: Waudby-Smith & Ramdas 2020, section 3.
    """
    if len(losses) == pool:
        return 1.0 - float(losses.mean())
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _log_capitals(losses, middle, pool)[-1] >= -math.log(alpha):
            high = middle
        else:
            low = middle
    return 1.0 - max(high, float(losses.mean()) if len(losses) else 1.0)


def graph_recall_lower_bound(losses: NDArray[np.float64], alpha: float, pool: int, rows: int) -> float:
    """Return a number that the recall of a graph is at least, except with probability alpha.

    Of the graph's `rows` all are exact but those of the pool that the sample left out; other arguments as in
    `recall_lower_bound`.
    """
    left = (1.0 - recall_lower_bound(losses, alpha, pool)) * pool - float(losses.sum())
    return 1.0 - max(0.0, left) / rows


def audit_size(recall: float, alpha: float, pool: int, rows: int) -> int:
    """Return how many rows of the pool to sample for `graph_recall_lower_bound` to reach recall, with 8 % to spare for misses.

    At most the whole pool.
    """
    mean = min(1.0, (1.0 - recall) * rows / pool)
    enough = _log_capitals(np.zeros(pool), mean, pool) >= -math.log(alpha)
    return min(pool, math.ceil(1.08 * int(np.argmax(enough)))) if enough.any() else pool


def _log_capitals(losses: NDArray[np.float64], mean: float, pool: int) -> NDArray[np.float64]:
    """Return the logarithm of the capital before the first draw and after each, inf once the mean is impossible."""
    drawn = np.arange(len(losses))
    left = pool * mean - np.cumsum(losses) + losses
    expected = np.clip(left / (pool - drawn), 0.0, 1.0)
    capitals = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for bet, stake in _BETS:
            gains = np.log1p(bet * (expected - losses) / (1.0 - expected))
            gains[expected == 1.0] = np.where(losses[expected == 1.0] < 1.0, np.inf, 0.0)
            capital = math.log(stake) + np.cumsum(np.concatenate(([0.0], gains)))
            capitals.append(np.where(np.isnan(capital), -np.inf, capital))
        return np.logaddexp(*capitals)
