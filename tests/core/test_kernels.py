import numpy as np
import pytest

from pcct_core.kernels import correlate, exponentiate, make_scratch
from pcct_core.simd import LANES
from pcct_core.spec import KERNELS
from tests import naive


def in_lanes(evaluate, values):
    """Call evaluate(32 values, out) for all values, any number of them."""
    padded = np.zeros(-(-len(values) // LANES) * LANES)
    padded[: len(values)] = values
    out = np.full(len(padded), np.nan)
    for first in range(0, len(padded), LANES):
        evaluate(padded[first : first + LANES], out[first : first + LANES])
    return out[: len(values)]


def exponentials(values):
    scratch = make_scratch()

    def evaluate(exponents, out):
        scratch.exponents[:] = exponents
        exponentiate(scratch, out)

    return in_lanes(evaluate, values)


def correlations(kernel, squared):
    scratch = make_scratch()
    return in_lanes(lambda part, out: correlate(list(KERNELS).index(kernel), part, scratch, out), squared)


def units_off(found, true):
    """How far found is from true, in units in the last place of true."""
    return np.abs(found - true) / np.spacing(np.abs(true).astype(np.float64))


@pytest.mark.jitless
class TestExponentiate:
    def test_is_within_its_promise_everywhere(self):
        halves = (np.arange(0, 2040) + 0.5) * -np.log(2) / 2  # where the remainder is largest, and where it is smallest
        x = np.concatenate([-np.geomspace(1e-300, 708, 1500), -np.linspace(0, 3, 500), halves, np.nextafter(halves, 0)])
        x = x[x >= -708]
        assert units_off(exponentials(x), np.exp(x.astype(np.longdouble))).max() <= 1.1

    def test_nothing_and_almost_nothing(self):
        np.testing.assert_array_equal(exponentials(np.array([0.0, -0.0, -5e-324, -1e-300, -1e-17])), 1.0)

    def test_below_its_lowest_stays_positive_and_normal(self):
        x = np.array([-708.0, np.nextafter(-708.0, -np.inf), -745.2, -1e6, -1e300, -np.inf])
        found = exponentials(x)
        np.testing.assert_array_equal(found, found[0])
        assert np.finfo(float).tiny < found[0] < 1e-300


@pytest.mark.parametrize("kernel", list(KERNELS))
class TestCorrelate:
    @pytest.mark.jitless
    def test_equals_numpy(self, kernel):
        r = np.concatenate([[0.0], np.geomspace(1e-12, 30, 999)])
        found = correlations(kernel, r**2)
        expected = naive.covariance(np.sqrt(r**2)[:, None], np.zeros((1, 1)), kernel)[:, 0]
        assert units_off(found, expected).max() <= 4

    @pytest.mark.jitless
    def test_is_nothing_for_points_that_are_too_far_for_their_exponential(self, kernel):
        # Without the compiler NumPy tells that the factor beside the exponential, which counts for nothing there, overflows.
        with np.errstate(over="ignore", invalid="ignore"):
            found = correlations(kernel, np.concatenate([np.geomspace(1e6, 1e308, 300), [np.finfo(float).max / 4]]))
        np.testing.assert_array_equal(found, 0.0)

    def test_decreases_from_one_to_nothing(self, kernel):
        found = correlations(kernel, np.concatenate([[0.0], np.geomspace(1e-3, 1e7, 400), [np.inf]])[:-1])
        assert found[0] == 1.0
        assert (np.diff(found) <= 1e-15).all()
        assert 0.0 <= found[-1] < 1e-290
