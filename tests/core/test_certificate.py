import math

import numpy as np
import pytest
from scipy.special import betaincinv

from pcct_core.certificate import Certificate, audit_rate, most_missed

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
    """Missed neighbors by row, of a graph that misses some here and there."""
    return np.bincount(rng.choice(rows * K, misses, replace=False) // K, minlength=rows)


def clustered(rows, misses, rng):
    """Of a graph that misses all neighbors of a few rows."""
    missed = np.zeros(rows, int)
    missed[rng.choice(rows, misses // K, replace=False)] = K
    return missed


def early(rows, misses, rng):
    """Of a graph that misses in the first rows, whose few pairs are drawn more often than they must be."""
    missed = np.zeros(rows, int)
    missed[: misses // 2] = 2
    return missed


def found(missed, pairs, rate, rng):
    """Return how many missed pairs an audit finds: by row, ceil(rate * pairs) draws of one of so many pairs."""
    return int(rng.binomial(np.ceil(rate * pairs).astype(int), missed / pairs).sum())


@pytest.mark.parametrize("lose", [spread, clustered, early])
@pytest.mark.parametrize("alpha", [0.3, 0.05, 0.01])
@pytest.mark.parametrize(("rows", "misses", "rate"), [(4_000, 80, 0.05), (4_000, 800, 0.003), (500, 40, 0.3)])
def test_the_bound_lies_no_more_often_than_it_says(lose, alpha, rows, misses, rate):
    rng = np.random.default_rng(rows + misses)
    pairs, audits = np.arange(rows) + 2 * K, 2000
    missed = lose(rows, misses, rng)
    lies = sum(most_missed(found(missed, pairs, rate, rng), rate, alpha) < missed.sum() for _ in range(audits))
    assert lies / audits <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / audits)


@pytest.mark.parametrize("alpha", [0.5, 0.2, 0.05, 0.005])
@pytest.mark.parametrize("allowed", [5, 100, 3000.5])
class TestAuditRate:
    def test_an_audit_with_one_miss_proves_what_was_asked(self, alpha, allowed):
        rate = audit_rate(allowed, alpha)
        assert most_missed(0, rate, alpha) < most_missed(1, rate, alpha) == pytest.approx(allowed)
        assert most_missed(2, rate, alpha) > allowed

    def test_falls_with_the_error_and_with_the_misses_allowed(self, alpha, allowed):
        rate = audit_rate(allowed, alpha)
        assert audit_rate(allowed, alpha / 2) > rate
        assert audit_rate(allowed * 2, alpha) == pytest.approx(rate / 2)


class TestMostMissed:
    def test_of_nothing_found_is_the_rule_of_three(self):
        assert most_missed(0, 1.0, 0.05) == pytest.approx(-math.log(0.05))

    def test_is_never_less_than_what_was_found_stands_for(self):
        for count in range(50):
            for alpha in (0.9, 0.5, 0.05):
                assert count == 0 or most_missed(count, 0.01, alpha) >= (count + 1) / 0.01

    def test_equals_the_binomial_bound_where_draws_are_rare(self):
        draws, population, alpha = 100_000, 5_000_000, 0.05
        for count in (0, 1, 7):
            exact = binom_upper(count, draws, alpha) * population
            assert exact <= most_missed(count, draws / population, alpha) <= 1.01 * exact


def binom_upper(count, draws, alpha):
    """The probability at which so few successes come with probability alpha."""
    return float(betaincinv(count + 1, draws - count, 1 - alpha))
