import numpy as np
import pytest

from pcct_core.nearest import find_neighbors, find_predecessors
from pcct_core.parallel import Crew
from pcct_core.place import place_points
from pcct_core.spec import Euclidean
from pcct_core.telemetry import Telemetry
from tests import naive
from tests.core import clouds
from tests.core.judge import same_bytes

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def empty_answer(m, k, dtype):
    return np.full((m, k), -9, np.int32), np.full((m, k), -9, dtype)


@DTYPES
def test_find_neighbors_leaves_out_the_point_and_keeps_its_duplicates(dtype):
    X = np.repeat(clouds.uniform(60, 2), 3, axis=0).astype(dtype)
    neighbors, distances = empty_answer(180, 2, dtype)
    with Crew(1) as crew:
        find_neighbors(place_points(X, Euclidean(), crew), 2, neighbors, distances, crew, Telemetry())
    for row in range(180):
        first = row // 3 * 3
        assert neighbors[row].tolist() == [i for i in range(first, first + 3) if i != row]
    assert not distances.any()


@DTYPES
@pytest.mark.parametrize("n", [1, 32, 2047, 2048, 2049, 4097])
def test_find_predecessors_across_the_sizes_where_trees_change(n, dtype):
    X = np.random.default_rng(n).integers(0, 50, (n, 2)).astype(dtype)
    neighbors, distances = empty_answer(n, 6, dtype)
    telemetry = Telemetry()
    with Crew(2) as crew:
        find_predecessors(place_points(X, Euclidean(), crew), 6, neighbors, distances, crew, telemetry)
    expected = naive.vecchia(X, 6)
    same_bytes(neighbors, expected[0])
    same_bytes(distances, expected[1])
    assert set(telemetry.seconds) == {"tree", "search"}
