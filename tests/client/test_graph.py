import numpy as np
import pytest

from pcct_client import Graph


@pytest.fixture
def vecchia():
    return Graph(
        neighbors=np.array([[-1, -1], [0, -1], [1, 0]], np.int32),
        distances=np.array([[np.inf, np.inf], [1.0, np.inf], [0.5, 2.0]]),
        order=np.array([2, 0, 1]),
        id="0123456789abcdef" * 4,
        dataset="d",
        spec={"kind": "vecchia", "k": 2, "metric": {"type": "euclidean"}},
        certificate={"exact": True},
    )


def test_in_original_index_names_dataset_rows(vecchia):
    graph = vecchia.in_original_index()
    assert graph.neighbors.tolist() == [[2, -1], [0, 2], [-1, -1]]
    assert graph.distances.tolist() == [[1.0, np.inf], [0.5, 2.0], [np.inf, np.inf]]
    assert graph.order is None
    assert graph.neighbors.dtype == np.int32
    assert graph.in_original_index() is graph


def test_save_writes_what_np_load_reads(vecchia, tmp_path):
    vecchia.save(tmp_path / "graph")
    with np.load(tmp_path / "graph") as saved:
        assert set(saved) == {"neighbors", "distances", "order"}
        np.testing.assert_array_equal(saved["order"], vecchia.order)
    vecchia.in_original_index().save(tmp_path / "graph.npz")
    with np.load(tmp_path / "graph.npz") as saved:
        assert set(saved) == {"neighbors", "distances"}


def test_repr_is_short(vecchia):
    assert repr(vecchia) == "Graph(vecchia, n=3, k=2, euclidean, id=0123456789ab…)"
