import json

import numpy as np
import pytest

from pcct_core.errors import FileFormatError, InvalidInput
from pcct_core.lookup import GateLookup, learn_lookup


@pytest.fixture
def sample():
    """Local scales of 400 queries, and how much farther each must look."""
    rng = np.random.default_rng(0)
    scales = rng.gamma(4.0, 0.1, 400)
    return scales, 1.0 + rng.exponential(0.5, 400) * scales


class TestLearn:
    def test_every_query_of_the_sample_reaches_what_it_needs(self, sample):
        scales, needed = sample
        lookup = learn_lookup(scales, needed, "rbf", 20)
        assert (lookup.radii(scales) >= 1.1 * needed * scales).all()
        assert (lookup.multiples >= 1.0).all()
        assert (np.diff(lookup.edges) >= 0).all()
        assert np.bincount(lookup.bins(scales)).min() >= 40

    def test_a_bin_heeds_its_neighbors_and_no_others(self):
        scales = np.linspace(0.1, 0.9, 800)
        needed = np.ones(800)
        needed[350] = 7.0  # in the fourth bin of eight
        wide = learn_lookup(scales, needed, "rbf", 20).multiples > 7.0
        np.testing.assert_array_equal(np.flatnonzero(wide), [2, 3, 4])

    @pytest.mark.parametrize("scale", [0.0, 0.3])
    def test_equal_scales_share_one_multiple(self, scale):
        lookup = learn_lookup(np.full(50, scale), np.full(50, 2.0), "rbf", 5)
        assert lookup.radii(np.array([scale]))[0] >= 2.0 * scale

    def test_fewer_queries_than_bins(self):
        lookup = learn_lookup(np.array([0.2, 0.4]), np.array([1.5, 3.0]), "rbf", 5)
        assert (lookup.radii(np.array([0.2, 0.4])) >= [0.3, 1.2]).all()

    def test_multiples_beyond_all_numbers_become_the_largest(self):
        lookup = learn_lookup(np.array([0.0, 1e-310, 1.0]), np.array([1.0, np.inf, 1e308]), "rbf", 5)
        assert np.isfinite(lookup.multiples).all()
        assert np.isfinite(lookup.widened(np.ones(8, bool), 1.3).multiples).all()
        np.testing.assert_array_equal(lookup.radii(np.array([0.0, np.inf])), [0.0, np.inf])

    def test_no_query_with_k_to_choose_from_teaches_that_all_look_at_all(self):
        lookup = learn_lookup(np.empty(0), np.empty(0), "rbf", 5)
        np.testing.assert_array_equal(lookup.radii(np.array([np.inf])), [np.inf])


@pytest.mark.parametrize(
    ("edges", "multiples", "words"),
    [
        ([1.0], [2.0, np.inf], "multiple 1 of a gate lookup is inf"),
        ([1.0], [2.0, np.nan], "multiple 1 of a gate lookup is nan"),
        ([1.0], [2.0, 0.5], "multiple 1 of a gate lookup is 0.5; it must be finite and at least 1"),
        ([np.nan], [2.0, 2.0], "edge 0 of a gate lookup is nan"),
        ([2.0, 1.0], [2.0, 2.0, 2.0], "not in ascending order"),
        ([2.0], [2.0], "one multiple more than edges"),
    ],
)
def test_a_lookup_of_numbers_that_make_none_is_refused(edges, multiples, words):
    with pytest.raises(InvalidInput, match=words):
        GateLookup(np.array(edges), np.array(multiples), "rbf", 5)


class TestUse:
    def test_scales_outside_the_sample_use_the_last_bins(self, sample):
        lookup = learn_lookup(*sample, "rbf", 20)
        np.testing.assert_array_equal(lookup.bins(np.array([0.0, 1e9, np.inf])), [0, 7, 7])
        radii = lookup.radii(np.array([0.0, 1e9, np.inf]))
        np.testing.assert_array_equal(radii, [0.0, lookup.multiples[-1] * 1e9, np.inf])

    def test_widened_changes_the_marked_bins_alone(self, sample):
        lookup = learn_lookup(*sample, "rbf", 20)
        before = lookup.multiples.copy()
        wider = lookup.widened(np.arange(8) == 3, 1.3)
        np.testing.assert_array_equal(lookup.multiples, before)
        np.testing.assert_allclose(wider.multiples / before, np.where(np.arange(8) == 3, 1.3, 1.0))
        assert wider.edges is lookup.edges

    @pytest.mark.parametrize(
        ("kernel", "k", "fits"), [("rbf", 20, True), ("rbf", 5, True), ("rbf", 21, False), ("matern12", 20, False)]
    )
    def test_fits_its_kernel_and_no_more_neighbors(self, sample, kernel, k, fits):
        assert learn_lookup(*sample, "rbf", 20).fits(kernel, k) is fits


class TestJson:
    def test_round_trip(self, sample):
        lookup = learn_lookup(*sample, "matern32", 20)
        again = GateLookup.from_json(json.loads(json.dumps(lookup.to_json())))
        np.testing.assert_allclose(again.edges, lookup.edges, rtol=1e-5)
        np.testing.assert_allclose(again.multiples, lookup.multiples, rtol=1e-5)
        assert (again.kernel, again.k) == ("matern32", 20)
        assert again.to_json() == lookup.to_json()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"version": 2}, "version 2, this release reads 1; learn it anew"),
            ({"edges": [1.0]}, "no valid edges and multiples"),
            ({"multiples": [0.5] * 8}, "no valid edges and multiples"),
            ({"multiples": [float("nan")] * 8}, "no valid edges and multiples"),
            ({"multiples": [float("inf")] * 8}, "no valid edges and multiples: multiple 0 of a gate lookup is inf"),
            ({"multiples": [2.0] * 3 + [-2.0] + [2.0] * 4}, "multiple 3 of a gate lookup is -2.0; it must be finite"),
            ({"edges": [3.0, 2.0, 1.0, 4.0, 5.0, 6.0, 7.0]}, "no valid edges and multiples"),
            ({"edges": [float("nan")] * 7}, "edge 0 of a gate lookup is nan"),
            ({"edges": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, float("inf")]}, "edge 6 of a gate lookup is inf"),
            ({"edges": [-1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]}, "edge 0 of a gate lookup is -1.0"),
            ({"edges": [[1.0] * 7]}, "no valid edges and multiples"),
            ({"multiples": [10**400] * 8}, "not readable"),
            ({"edges": ["wide"] * 7}, "not readable"),
            ({"multiples": None}, "not readable|no valid"),
            ({"k": "many"}, "not readable"),
        ],
    )
    def test_what_makes_no_lookup_is_refused(self, sample, change, words):
        with pytest.raises(FileFormatError, match=words):
            GateLookup.from_json(learn_lookup(*sample, "rbf", 20).to_json() | change)

    @pytest.mark.parametrize("field", ["version", "kernel", "k", "edges", "multiples"])
    def test_missing_fields_are_refused(self, sample, field):
        data = learn_lookup(*sample, "rbf", 20).to_json()
        del data[field]
        with pytest.raises(FileFormatError, match="learn it anew"):
            GateLookup.from_json(data)
