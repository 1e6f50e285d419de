import hashlib
import io

import numpy as np
import pytest

import pcct_core as pc
from pcct_core.columns import read_order
from pcct_core.spec import Stored, store_order
from tests.core import clouds
from tests.core.judge import same_bytes, same_graphs

ORDER = np.array([3, 0, 4, 1, 2])


def uploaded_id(column):
    """Return the id that a dataset of this column has: the hash of what np.save writes."""
    file = io.BytesIO()
    np.save(file, np.asarray(column, np.float64).reshape(-1, 1))
    return hashlib.sha256(file.getvalue()).hexdigest()


@pytest.mark.parametrize(
    "values",
    [
        ORDER,
        ORDER.tolist(),
        tuple(ORDER),
        ORDER.astype(np.uint8),
        ORDER.astype(np.float32),
        ORDER[:, None],
        ORDER[::-1][::-1],
    ],
)
def test_store_order_names_an_order_as_its_upload_does(values):
    stored = store_order(values)
    assert stored.id == uploaded_id(ORDER)
    same_bytes(read_order(stored, 5), ORDER)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, 1, 2, 5, 9], "entry 3 of the order is 5, and rows are whole numbers from 0 to 4"),
        ([1, 2, 3, 4, 5], "entry 4 of the order is 5.*subtract 1 from orders that count from 1"),
        ([0, -1, 1], "entry 1 of the order is -1"),
        ([0, 1.5, 1], r"entry 1 of the order is 1\.5"),
        ([2, 1, 0, 1, 2], "entry 3 of the order is 1, which entry 1 is already"),
        ([0, np.nan, 1], "entry 1 of the order is nan"),
        ([[0, 1], [1, 0]], r"shape \(2, 2\)"),
        (["a", "b"], "no number"),
        (np.ma.array([0, 1], mask=[0, 1]), "row 1 is masked"),
    ],
)
def test_store_order_names_the_first_entry_that_is_wrong(values, said):
    with pytest.raises(pc.InvalidSpec, match=said) as caught:
        store_order(values)
    assert caught.value.field == "order"


def test_read_order_refuses_what_does_not_fit_the_points():
    stored = store_order(ORDER)
    for bad, said in (
        (stored, "5 entries for 6 points"),
        (Stored(stored.id), "not at hand"),
        (Stored(stored.id, np.zeros((6, 2))), "2 columns"),
        (Stored(stored.id, np.zeros((6, 1), np.float32)), "entry 1 of the order is 0, which entry 0 is already"),
    ):
        with pytest.raises(pc.InvalidSpec, match=said) as caught:
            read_order(bad, 6)
        assert caught.value.field == "order"


@pytest.mark.parametrize("metric", ["euclidean", "haversine", "cosine"])
def test_an_order_of_your_own_is_the_order_of_the_graph(metric):
    X = 1 + clouds.half_duplicates(200, 2)
    order = np.random.default_rng(0).permutation(len(X))
    graph = pc.vecchia_graph(X, 7, order, metric)
    same_bytes(graph.order, order)
    same_bytes(graph.neighbors, pc.vecchia_graph(X[order], 7, "given", metric).neighbors)
    same_graphs(pc.build_graph(X, graph.spec), graph)
    same_graphs(pc.build_graph(X, {"kind": "vecchia", "k": 7, "order": order.tolist(), "metric": metric}), graph)
    wanted = pc.GraphSpec.from_json(graph.spec.to_json()).with_arrays(
        {graph.spec.order.id: order[:, None].astype(float)}
    )
    same_graphs(pc.build_graph(X, wanted), graph)


def test_an_order_of_your_own_orders_residual_graphs():
    X = clouds.uniform(150, 2)
    order = np.random.default_rng(1).permutation(len(X))
    metric = {"type": "residual", "kernel": "matern52", "lengthscale": 0.3, "inducing": X[:9]}
    graph = pc.vecchia_graph(X, 5, order, metric)
    same_bytes(graph.neighbors, pc.vecchia_graph(X[order], 5, "given", metric).neighbors)
