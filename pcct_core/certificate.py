"""What is known about a graph's exactness, attached to it; and how much a sample of its pairs can prove."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_SPARE = 1  # misses that an audit may find and still prove the recall it was made for


@dataclass(frozen=True)
class Certificate:
    """How the neighbors were found and what that proves.

    method: "tree" or "dense", which prune only what cannot be a neighbor, or "gated", whose recall is measured.
    dtype:  arithmetic that decided every comparison, "float32" or "float64".
    exact:  True when every row equals brute force in that arithmetic, ties by (distance, index).
    recall, recall_lower, confidence: gated only: the graph's recall as the audited pairs estimate it, and what it is at least,
            at that confidence.
    audited_pairs, audited_queries, missed_neighbors: gated only: random pairs beyond the gates that were measured, rows that
            they belong to, and how many of them were true neighbors.
    degenerate_rows: residual metric only: rows whose residual variance is at the floor.
    gate1_candidates, gate1_kept, gate1_pruned: residual metric only: pairs of the rows behind the gate that could be
            neighbors, those that passed it, the others.
    gate1_false_negatives, gate1_widenings: true neighbors that the last audit found beyond the gate; times it was widened.
    tolerance: residual metric only: squared distances that differ by more are ordered rightly, whatever the pair; those that
            float64 cannot tell apart are equal, and go by index (see `residual`). Recall is counted so.
    draws:  gated only: what lessons and audits were drawn by: "public", which anybody who has the points can compute, or
            "secret:" and a hash of the secret. The recall is promised for points that were not arranged by somebody who
            knew the draws.
    """

    method: str
    dtype: str
    exact: bool = True
    recall: float | None = None
    recall_lower: float | None = None
    confidence: float | None = None
    audited_pairs: int | None = None
    audited_queries: int | None = None
    missed_neighbors: int | None = None
    degenerate_rows: int | None = None
    gate1_candidates: int | None = None
    gate1_kept: int | None = None
    gate1_pruned: int | None = None
    gate1_false_negatives: int | None = None
    gate1_widenings: int | None = None
    tolerance: float | None = None
    draws: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as a JSON object, without what does not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def most_missed(found: int, rate: float, alpha: float) -> float:
    """Return a number that the missed pairs are at most, except with probability alpha.

    found: missed pairs among those drawn. rate: how often each pair that could be a missed one is drawn at least, on average,
    independently of the others.
    Where pairs lie must not depend on the draws: see `draws`.
    Were there more than b, more than rate · b of them would be drawn on average. What is found is a sum of independent
    zeros and ones, so at most h of them come less often than of a Poisson number with that mean, if it is h + 1 or more, or
    h = 0 (Hoeffding 1956, theorem 4; Anderson & Samuels 1967). Nothing is assumed about where misses lie.
    """
    from scipy.special import gammaincinv  # half a second to load, which exact graphs need not wait for

    mean = float(gammaincinv(found + 1, 1.0 - alpha))
    return (mean if found == 0 else max(mean, found + 1.0)) / rate


def audit_rate(allowed: float, alpha: float) -> float:
    """Return how often each pair must be drawn for `most_missed` to be at most `allowed` with one missed pair found."""
    # No rounding may make it a little less, nor that some pairs are drawn less often by a part in 2^33.
    return most_missed(_SPARE, 1.0, alpha) * (1.0 + 1e-9) / allowed
