import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcct_core.simd import LANES, drop_lowest_bit, lowest_bit, order_rows, reach_box, scan_bucket

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
@given(st.integers(1, 2**32 - 1))
def test_bits_are_walked_from_the_lowest(mask):
    found, left = [], mask
    while left:
        found.append(int(lowest_bit(left)))
        left = int(drop_lowest_bit(left))
    assert found == [bit for bit in range(32) if mask >> bit & 1]
