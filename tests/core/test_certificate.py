import math

import numpy as np
import pytest

from pcct_core.certificate import Certificate, audit_size, recall_lower_bound

K = 20


def test_to_json_says_method_type_and_exactness():
    assert Certificate("tree", "float32").to_json() == {"method": "tree", "dtype": "float32", "exact": True}


def test_to_json_says_what_was_audited():
    certificate = Certificate("gated", "float64", exact=False, recall=1.0, gate1_false_negatives=0)
    assert certificate.to_json() == {
        "method": "gated",
        "dtype": "float64",
        "exact": False,
        "recall": 1.0,
        "gate1_false_negatives": 0,
    }


def spread(rows, misses, rng):
    """Losses of a graph that misses neighbors here and there."""
    missed = np.zeros(rows * K)
    missed[rng.choice(rows * K, misses, replace=False)] = 1
    return missed.reshape(rows, K).mean(axis=1)


def clustered(rows, misses, rng):
    """Losses of a graph that misses all neighbors of a few rows."""
    losses = np.zeros(rows)
    losses[rng.choice(rows, misses // K, replace=False)] = 1.0
    return losses


def uneven(rows, misses, rng):
    """Losses of a graph that misses half in a few rows, and the same number of neighbors here and there."""
    losses = spread(rows, misses // 2, rng)
    losses[rng.choice(rows, misses // K, replace=False)] = 0.5
    return losses


@pytest.mark.parametrize("lose", [spread, clustered, uneven])
@pytest.mark.parametrize(("rows", "recall", "audited"), [(20_000, 0.995, 700), (3_000, 0.98, 200), (800, 0.99, 600)])
def test_the_bound_lies_no_more_often_than_it_says(lose, rows, recall, audited):
    rng = np.random.default_rng(rows)
    losses = lose(rows, round((1 - recall) * rows * K), rng)
    truth, alpha, audits = 1.0 - losses.mean(), 0.05, 300
    lies = sum(
        recall_lower_bound(rng.choice(losses, audited, replace=False), alpha) > truth + 1e-12 for _ in range(audits)
    )
    assert lies / audits <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / audits)


@pytest.mark.parametrize("recall", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.005])
class TestAuditSize:
    def test_an_audit_without_a_miss_reaches_its_recall(self, recall, alpha):
        assert recall_lower_bound(np.zeros(audit_size(recall, alpha)), alpha) >= recall

    def test_is_not_much_larger_than_it_must_be(self, recall, alpha):
        assert recall_lower_bound(np.zeros(int(audit_size(recall, alpha) * 0.85)), alpha) < recall

    def test_leaves_room_for_a_lost_neighbor(self, recall, alpha):
        losses = np.zeros(audit_size(recall, alpha))
        losses[0] = 0.02
        assert recall_lower_bound(losses, alpha) >= recall


class TestBound:
    def test_falls_with_every_loss(self):
        losses = np.zeros(500)
        bounds = []
        for row in range(40):
            losses[row % 10] += 0.25
            bounds.append(recall_lower_bound(losses, 0.05))
        assert (np.diff(bounds) < 0).all()

    def test_rises_with_the_audit_and_with_the_error_allowed(self):
        assert (np.diff([recall_lower_bound(np.zeros(rows), 0.05) for rows in (1, 10, 100, 1000)]) > 0).all()
        assert (np.diff([recall_lower_bound(np.zeros(100), alpha) for alpha in (0.001, 0.05, 0.5)]) > 0).all()

    def test_never_claims_more_than_was_seen(self):
        rng = np.random.default_rng(0)
        for rows in (1, 30, 3000):
            losses = rng.beta(0.1, 2.0, rows)
            assert 0.0 <= recall_lower_bound(losses, 0.05) <= 1.0 - losses.mean()

    @pytest.mark.parametrize("rows", [0, 1, 500])
    def test_claims_nothing_when_everything_is_lost_or_nothing_was_seen(self, rows):
        assert recall_lower_bound(np.ones(rows), 0.05) == pytest.approx(0.0, abs=1e-12)
