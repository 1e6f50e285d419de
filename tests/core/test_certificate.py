import math

import numpy as np
import pytest

from pcct_core.certificate import Certificate, audit_size, graph_recall_lower_bound, recall_lower_bound

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


def few_lies(lies, alpha, audits):
    return lies / audits <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / audits)


@pytest.mark.parametrize("lose", [spread, clustered, uneven])
@pytest.mark.parametrize(
    ("rows", "recall", "audited"), [(20_000, 0.995, 700), (3_000, 0.98, 200), (800, 0.99, 600), (800, 0.99, 150)]
)
class TestLies:
    def test_the_bound_lies_no_more_often_than_it_says(self, lose, rows, recall, audited):
        rng = np.random.default_rng(rows)
        losses = lose(rows, round((1 - recall) * rows * K), rng)
        truth, alpha, audits = 1.0 - losses.mean(), 0.05, 300
        lies = sum(
            recall_lower_bound(rng.choice(losses, audited, replace=False), alpha, rows) > truth + 1e-12
            for _ in range(audits)
        )
        assert few_lies(lies, alpha, audits)

    def test_the_bound_on_a_graph_with_exact_rows_lies_no_more_often_than_it_says(self, lose, rows, recall, audited):
        rng = np.random.default_rng(rows + 1)
        losses = lose(rows, round((1 - recall) * rows * K), rng)
        known, alpha, audits, lies = rows // 10, 0.05, 300, 0
        for _ in range(audits):
            drawn = rng.permutation(losses)
            sample, rest = drawn[known : known + audited], drawn[known + audited :]
            truth = 1.0 - rest.sum() / rows
            lies += graph_recall_lower_bound(sample, alpha, rows - known, rows) > truth + 1e-12
        assert few_lies(lies, alpha, audits)


@pytest.mark.parametrize("pool", [7_000, 100_000])
@pytest.mark.parametrize("recall", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.005])
class TestAuditSize:
    def test_an_audit_without_a_miss_reaches_its_recall(self, recall, alpha, pool):
        losses = np.zeros(audit_size(recall, alpha, pool, pool + 1000))
        assert graph_recall_lower_bound(losses, alpha, pool, pool + 1000) >= recall

    def test_is_not_much_larger_than_it_must_be(self, recall, alpha, pool):
        losses = np.zeros(int(audit_size(recall, alpha, pool, pool + 1000) * 0.85))
        assert graph_recall_lower_bound(losses, alpha, pool, pool + 1000) < recall

    def test_leaves_room_for_a_lost_neighbor(self, recall, alpha, pool):
        losses = np.zeros(audit_size(recall, alpha, pool, pool))
        losses[0] = 0.02
        assert graph_recall_lower_bound(losses, alpha, pool, pool) >= recall


@pytest.mark.parametrize("pool", [1, 2, 10, 300])
def test_audit_size_of_a_small_pool_is_at_most_all_of_it(pool):
    size = audit_size(0.999, 0.05, pool, pool)
    assert size == pool
    assert graph_recall_lower_bound(np.zeros(size), 0.05, pool, pool) == 1.0


class TestBound:
    def test_falls_with_every_loss(self):
        losses = np.zeros(500)
        bounds = []
        for row in range(40):
            losses[row % 10] += 0.25
            bounds.append(recall_lower_bound(losses, 0.05, 2000))
        assert (np.diff(bounds) < 0).all()

    def test_rises_with_the_audit_and_with_the_error_allowed(self):
        assert (np.diff([recall_lower_bound(np.zeros(rows), 0.05, 5000) for rows in (1, 10, 100, 1000)]) > 0).all()
        assert (np.diff([recall_lower_bound(np.zeros(100), alpha, 5000) for alpha in (0.001, 0.05, 0.5)]) > 0).all()

    def test_rises_as_the_sample_becomes_the_pool(self):
        bounds = [recall_lower_bound(np.zeros(100), 0.05, pool) for pool in (10_000, 1000, 200, 120, 100)]
        assert (np.diff(bounds) > 0).all()
        assert bounds[-1] == pytest.approx(1.0)

    def test_of_the_whole_pool_is_its_recall(self):
        losses = np.random.default_rng(0).choice([0.0, 0.02, 0.4, 1.0], 400, p=[0.9, 0.06, 0.03, 0.01])
        assert recall_lower_bound(losses, 0.05, 400) == 1.0 - losses.mean()
        assert graph_recall_lower_bound(losses, 0.05, 400, 500) == pytest.approx(1.0)

    def test_equals_the_hypergeometric_bound_where_nothing_is_missed(self):
        pool, drawn, alpha = 500, 120, 0.05
        lost = next(
            lost for lost in range(pool) if math.comb(pool - lost, drawn) / math.comb(pool, drawn) <= alpha * 0.9
        )
        bound = (1.0 - recall_lower_bound(np.zeros(drawn), alpha, pool)) * pool
        assert lost - 1 < bound <= lost

    def test_never_claims_more_than_was_seen(self):
        rng = np.random.default_rng(0)
        for rows in (1, 30, 3000):
            losses = rng.beta(0.1, 2.0, rows)
            for pool in (rows, rows + 1, 10 * rows):
                assert 0.0 <= recall_lower_bound(losses, 0.05, pool) <= 1.0 - losses.mean()

    @pytest.mark.parametrize("rows", [0, 1, 500])
    def test_claims_nothing_when_everything_is_lost_or_nothing_was_seen(self, rows):
        assert recall_lower_bound(np.ones(rows), 0.05, 500) == pytest.approx(0.0, abs=1e-12)
