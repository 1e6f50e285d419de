import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcct_core.kernels import correlate, kernel_shape, make_scratch
from pcct_core.simd import (
    LANES,
    PAIRS,
    QUERIES,
    SINGLE_ERROR,
    drop_lowest_bit,
    lowest_bit,
    multiply_rows,
    order_rows,
    project_bucket,
    reach_box,
    scan_bucket,
    screen_bucket,
)

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def packed(flags):
    return sum(1 << lane for lane, flag in enumerate(flags) if flag)


def sum_of_squares(differences):
    """Sum over the first axis in order, in the type of the differences."""
    total = np.zeros(differences.shape[1:], differences.dtype)
    for difference in differences:
        total += difference * difference
    return total


@pytest.mark.jitless
@DTYPES
@pytest.mark.parametrize("d", [1, 2, 3, 8, 21])
class TestEveryDimension:
    def test_scan_bucket_computes_every_distance_to_the_bit(self, d, dtype):
        rng = np.random.default_rng(d)
        coords = rng.normal(0, 100, (3, d, LANES)).astype(dtype)
        coords[2, :, 20:] = np.inf
        queries = rng.normal(0, 100, (d, LANES)).astype(dtype)
        ids = rng.permutation(3 * LANES).astype(np.int32)
        ids[2 * LANES + 20 :] = 2**31 - 1
        for bucket, lane in ((0, 0), (1, 31), (2, 7)):
            expected = sum_of_squares(coords[bucket] - queries[:, lane, None])
            first, out = bucket * LANES, np.empty(LANES, dtype)
            own = ids[first : first + LANES]
            for limit, bound in (
                (2**31 - 1, dtype(np.inf)),
                (50, np.sort(expected)[LANES // 2]),
                (0, dtype(np.inf)),
                (99, dtype(0)),
            ):
                mask = scan_bucket(
                    coords.ravel(), first * d, d, queries.ravel(), lane, ids, first, np.int32(limit), dtype(bound), out
                )
                np.testing.assert_array_equal(out, expected)
                assert mask == packed((expected <= bound) & (own < limit))

    def test_reach_box_is_never_above_a_distance_into_the_box(self, d, dtype):
        rng = np.random.default_rng(d)
        for scale, offset in ((1, 0), (1e-3, 1e7), (1e-30, 0)):
            points = (rng.normal(0, 1, (40, d)) * scale + offset).astype(dtype)
            queries = (rng.normal(0, 3, (d, LANES)) * scale + offset).astype(dtype)
            nearest = sum_of_squares(points.T[:, :, None] - queries[:, None, :]).min(axis=0)
            low, high = points.min(axis=0), points.max(axis=0)
            assert reach_box(queries.ravel(), nearest, low, high, 0, d) == 2**LANES - 1

    def test_reach_box_leaves_out_boxes_beyond_the_bound(self, d, dtype):
        rng = np.random.default_rng(d)
        low = rng.normal(0, 1, (3, d)).astype(dtype)
        high = low + rng.random((3, d)).astype(dtype)
        queries = rng.normal(0, 3, (d, LANES)).astype(dtype)
        for node in range(3):
            outside = np.maximum(np.maximum(low[node][:, None] - queries, queries - high[node][:, None]), 0)
            reach = sum_of_squares(outside)
            for bounds in (
                reach,
                np.full(LANES, np.median(reach)),
                np.full(LANES, -1, dtype),
                np.full(LANES, np.inf, dtype),
            ):
                mask = reach_box(queries.ravel(), bounds.astype(dtype), low.ravel(), high.ravel(), node, d)
                assert mask == packed(reach <= bounds)


@pytest.mark.jitless
@DTYPES
def test_order_rows_exchanges_by_distance_then_index(dtype):
    rng = np.random.default_rng(0)
    distances = rng.integers(0, 3, (4, LANES)).astype(dtype)
    distances[1, :3] = np.inf
    ids = rng.permutation(4 * LANES).astype(np.int32).reshape(4, LANES)
    expected = [
        sorted(zip(distances[[1, 3], lane].tolist(), ids[[1, 3], lane].tolist(), strict=True)) for lane in range(LANES)
    ]
    before = distances[[0, 2]].copy()
    order_rows(distances.reshape(-1), ids.reshape(-1), 1, 3)
    found = [
        list(zip(distances[[1, 3], lane].tolist(), ids[[1, 3], lane].tolist(), strict=True)) for lane in range(LANES)
    ]
    assert found == expected
    np.testing.assert_array_equal(distances[[0, 2]], before)


@pytest.mark.jitless
@DTYPES
@pytest.mark.parametrize("count", [1, 5, 64])
def test_project_bucket_adds_inner_products(count, dtype):
    rng = np.random.default_rng(count)
    blocks, queries = rng.normal(size=(3, count, LANES)).astype(dtype), rng.normal(size=(QUERIES, count)).astype(dtype)
    out = rng.normal(size=(QUERIES + 1, LANES)).astype(dtype)
    before = out.copy()
    at, to = tuple(range(0, QUERIES * count, count)), tuple(range(LANES, (QUERIES + 1) * LANES, LANES))
    project_bucket(blocks.ravel(), count * LANES, count, queries.ravel(), at, out.ravel(), to)
    np.testing.assert_allclose(
        out[1:], before[1:] + queries @ blocks[1], rtol=0, atol=1e-4 if dtype == np.float32 else 1e-13
    )
    np.testing.assert_array_equal(out[0], before[0])


@pytest.mark.jitless
@pytest.mark.parametrize("width", [8, 16, 104])
def test_multiply_rows_gives_a_pair_the_same_bits_in_every_company(width):
    rng = np.random.default_rng(width)
    own, others = rng.normal(size=3 * width), rng.normal(size=(9, width))
    out = np.empty(PAIRS)
    found = {}
    for starts in ((0, 1, 2, 3), (8, 8, 5, 0), (3, 2, 1, 0), (7, 6, 5, 4)):
        multiply_rows(own, width, others.ravel(), tuple(start * width for start in starts), width, out)
        for start, product in zip(starts, out, strict=True):
            assert found.setdefault(start, product) == product
            np.testing.assert_allclose(product, own[width : 2 * width] @ others[start], atol=1e-12)
    assert len(found) == 9


@pytest.mark.jitless
@pytest.mark.parametrize("code", range(4))
class TestScreenBucket:
    def squared(self, rng):
        return np.concatenate(
            [10.0 ** rng.uniform(-12, 3, LANES), rng.uniform(0, 60, LANES), [0.0, 1e300, np.inf] + [1e7] * (LANES - 3)]
        )

    def correlations(self, code, squared):
        out = np.empty(LANES)
        correlate(code, np.minimum(squared, 1e6), make_scratch(), out)
        return out

    def test_correlations_are_within_the_error_that_is_allowed_for(self, code):
        rng = np.random.default_rng(code)
        for start in range(0, 3 * LANES, LANES):
            squared = self.squared(rng)
            products = self.correlations(code, squared[start : start + LANES]).astype(np.float32)
            mask = screen_bucket(
                squared, start, products, 0, np.ones(LANES, np.float32), 0, kernel_shape(code), SINGLE_ERROR, 0.0
            )
            assert mask == packed(squared[start : start + LANES] == 0)

    def test_correlations_are_nothing_where_their_exponential_is_clamped(self, code):
        squared = np.geomspace(1e5, 1e306, LANES)
        kept = (np.zeros(LANES, np.float32), 0, np.ones(LANES, np.float32), 0, kernel_shape(code))
        assert screen_bucket(squared, 0, *kept, np.float32(1e-37), 0.0) == 0
        assert screen_bucket(squared, 0, *kept, 0.0, 0.0) == 2**LANES - 1

    def test_keeps_equal_points_whatever_their_products(self, code):
        squared = np.where(np.arange(LANES) % 3 == 0, 0.0, 1.0)
        products = self.correlations(code, squared).astype(np.float32)
        mask = screen_bucket(squared, 0, products, 0, np.ones(LANES, np.float32), 0, kernel_shape(code), 1.0, 0.0)
        assert mask == packed(squared == 0)

    def test_keeps_what_may_reach_the_limit(self, code):
        rng = np.random.default_rng(code)
        squared = rng.uniform(0, 3, 2 * LANES)
        products, roots = rng.normal(size=3 * LANES).astype(np.float32), rng.random(2 * LANES).astype(np.float32)
        residuals = np.abs(self.correlations(code, squared[LANES:]) - products[:LANES])
        for limit, slack in ((1.0, 1e-5), (0.4, 1e-5), (-1.0, 1e-5), (3.0, 0.5)):
            mask = screen_bucket(squared, LANES, products, 0, roots, LANES, kernel_shape(code), limit, slack)
            assert mask == packed(limit * roots[LANES:] - residuals <= slack)

    def test_rules_nothing_out_where_products_overflow(self, code):
        products = np.full(LANES, np.inf, np.float32)
        products[::2] = np.nan
        mask = screen_bucket(
            np.ones(LANES), 0, products, 0, np.ones(LANES, np.float32), 0, kernel_shape(code), 1.0, np.inf
        )
        assert mask == 2**LANES - 1


@pytest.mark.jitless
@given(st.integers(1, 2**32 - 1))
def test_bits_are_walked_from_the_lowest(mask):
    found, left = [], mask
    while left:
        found.append(int(lowest_bit(left)))
        left = int(drop_lowest_bit(left))
    assert found == [bit for bit in range(32) if mask >> bit & 1]
