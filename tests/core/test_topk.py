import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcct_core.simd import LANES
from pcct_core.topk import NO_ID, clear_best, make_best, merge_rows, settle, sort_rows, write_rows

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def draw_rows(rng, rows, dtype):
    """Rows of candidates with many equal distances and distinct indices in each lane."""
    distances = rng.integers(0, max(2, rows // 3), (rows, LANES)).astype(dtype)
    ids = np.argsort(rng.random((rows, LANES)), axis=0).astype(np.int32)
    return distances, ids


def pairs(distances, ids, lane):
    return list(zip(distances[:, lane].tolist(), ids[:, lane].tolist(), strict=True))


@DTYPES
@pytest.mark.parametrize("size", [1, 2, 16, 64, 256])
def test_sort_rows_sorts_every_lane_by_distance_then_index(size, dtype):
    distances, ids = draw_rows(np.random.default_rng(size), size + 3, dtype)
    expected = [sorted(pairs(distances[2:-1], ids[2:-1], lane)) for lane in range(LANES)]
    around = distances[[0, 1, -1]].copy()
    sort_rows(distances.reshape(-1), ids.reshape(-1), 2, size)
    assert [pairs(distances[2:-1], ids[2:-1], lane) for lane in range(LANES)] == expected
    np.testing.assert_array_equal(distances[[0, 1, -1]], around)


@pytest.mark.jitless
@DTYPES
@pytest.mark.parametrize("size", [1, 16, 64])
def test_merge_rows_keeps_the_lowest_of_both(size, dtype):
    distances, ids = draw_rows(np.random.default_rng(size), 2 * size, dtype)
    flat = distances.reshape(-1), ids.reshape(-1)
    expected = [sorted(pairs(distances, ids, lane))[:size] for lane in range(LANES)]
    sort_rows(*flat, 0, size)
    sort_rows(*flat, size, size)
    merge_rows(*flat, size, size)
    assert [pairs(distances[:size], ids[:size], lane) for lane in range(LANES)] == expected


@pytest.mark.jitless
@given(
    k=st.sampled_from([1, 2, 15, 16, 17, 33, 100]),
    lanes=st.integers(1, LANES),
    rounds=st.integers(1, 4),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 9),
)
def test_settle_keeps_the_k_best_of_every_query(k, lanes, rounds, dtype, seed):
    rng = np.random.default_rng(seed)
    best = make_best(k, np.empty(0, dtype))
    clear_best(best, lanes)
    offered = [[] for _ in range(LANES)]
    for turn in range(rounds):
        for lane in range(lanes):
            count = int(rng.integers(0, best.room + 1))
            for place, distance in enumerate(rng.integers(0, 40, count)):
                offered[lane].append((float(distance), turn * 1000 + place))
                at = (best.size + place) * LANES + lane
                best.distances[at], best.ids[at] = offered[lane][-1]
            best.counts[lane] = count
        front = settle(best, lanes)
        assert not best.counts.any()
        check_front(front, [sorted(each)[:k] for each in offered[:lanes]], best, k)
    check_answer(best, offered, lanes, k, dtype)


def check_front(front, kept, best, k):
    """The front and the bounds let in everything that ties with a k-th best, and everything while there are fewer."""
    last = [each[k - 1] if len(each) == k else (np.inf, NO_ID) for each in kept]
    assert front.distance == max(distance for distance, _ in last)
    assert front.index == max(index for _, index in last)
    assert front.bound == best.bounds[: len(kept)].max()
    for bound, (distance, _) in zip(best.bounds, last, strict=False):
        assert distance * distance <= bound <= distance * distance * 1.001 + 1e-30


def check_answer(best, offered, lanes, k, dtype):
    neighbors = np.full((LANES + 1, k), -7, np.int32)
    distances = np.full((LANES + 1, k), -7, dtype)
    rows = np.arange(LANES, dtype=np.int32) + 1
    write_rows(best, lanes, rows, neighbors, distances)
    for lane in range(lanes):
        expected = (sorted(offered[lane]) + [(np.inf, -1)] * k)[:k]
        assert list(zip(distances[lane + 1].tolist(), neighbors[lane + 1].tolist(), strict=True)) == expected
    untouched = [0, *range(lanes + 1, LANES + 1)]
    assert (neighbors[untouched] == -7).all()


@pytest.mark.jitless
@DTYPES
def test_clear_best_opens_the_queries_that_are_there(dtype):
    best = make_best(5, np.empty(0, dtype))
    clear_best(best, 3)
    assert np.isinf(best.bounds[:3]).all()
    assert (best.bounds[3:] < 0).all()
    assert np.isinf(best.distances).all()
    assert (best.ids == NO_ID).all()


@DTYPES
def test_settle_bound_admits_every_square_whose_root_rounds_to_the_kth_distance(dtype):
    best = make_best(1, np.empty(0, dtype))
    rng = np.random.default_rng(0)
    smallest = float(np.finfo(dtype).smallest_subnormal)
    squares = np.concatenate([rng.random(300), rng.random(300) * 1e-37, np.arange(1, 200) * smallest]).astype(dtype)
    for square in squares:
        clear_best(best, 1)
        best.distances[best.size * LANES], best.ids[best.size * LANES] = np.sqrt(square), 0
        best.counts[0] = 1
        settle(best, 1)
        above = square
        while np.sqrt(above) <= np.sqrt(square) and above < 3 * square + 9 * dtype(smallest):
            assert above <= best.bounds[0]
            above = np.nextafter(above, dtype(np.inf))
