"""`PcctNeighborsTransformer` computing in this process, beside scikit-learn's own; tests/integration has it on a service."""

import importlib
import pickle
import re
import socket
import subprocess
import sys

import joblib
import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.cluster import DBSCAN, SpectralClustering
from sklearn.datasets import make_blobs
from sklearn.manifold import TSNE, Isomap
from sklearn.neighbors import KNeighborsTransformer, RadiusNeighborsTransformer
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import pcct_client.sklearn
from pcct_client import MissingExtra, ServerUnavailable
from pcct_client.sklearn import EARTH_RADIUS_KM, PcctNeighborsTransformer, PcctRadiusNeighborsTransformer
from pcct_core import points as core_points

RNG = np.random.default_rng(3)


def on_grid(points):
    """Return the points on a grid so coarse that all squares and products of them, and their sums, are exact.

    scikit-learn compares many neighbors by matrix products, whose rounding depends on the processor: here there is none.
    """
    return np.round(points * 2.0**20) / 2.0**20


X, Q = on_grid(RNG.normal(size=(400, 2))), on_grid(RNG.normal(size=(70, 2)))
PLACES, ASKED = (RNG.uniform([-1.5, -3.1], [1.5, 3.1], (size, 2)) for size in (400, 70))
WIDTHS = np.array([0.3, 2.0])


def same_graph(ours, theirs):
    assert type(ours) is type(theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours.indptr, theirs.indptr)
    np.testing.assert_array_equal(ours.indices, theirs.indices)
    np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-12, atol=1e-12)


@parametrize_with_checks(
    [
        PcctNeighborsTransformer(),
        PcctNeighborsTransformer(mode="connectivity", n_neighbors=2),
        PcctRadiusNeighborsTransformer(radius=2.5),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("n_neighbors", [1, 5, 399])
@pytest.mark.parametrize("mode", ["distance", "connectivity"])
@pytest.mark.parametrize(
    ("points", "asked", "metric", "params", "theirs"),
    [
        (X, Q, "euclidean", None, {}),
        (X, Q, "minkowski", None, {}),
        (X, Q, "sqeuclidean", None, {"metric": "sqeuclidean"}),
        (X.astype(np.float32), Q.astype(np.float32), "l2", None, {}),
        (X, Q, "euclidean", {"lengthscale": 4.0}, {"metric_params": {"w": np.full(2, 1 / 16)}}),
        (X, Q, "euclidean", {"lengthscale": WIDTHS}, {"metric_params": {"w": WIDTHS**-2}}),
        (X, Q, "seuclidean", {"V": WIDTHS}, {"metric": "seuclidean", "metric_params": {"V": WIDTHS}}),
        (X, Q, "cosine", None, {"metric": "cosine"}),
        (PLACES, ASKED, "haversine", None, {"metric": "haversine"}),
    ],
)
def test_graphs_are_those_of_scikit_learn(points, asked, metric, params, theirs, mode, n_neighbors):
    ours = PcctNeighborsTransformer(mode=mode, n_neighbors=n_neighbors, metric=metric, metric_params=params)
    theirs = KNeighborsTransformer(mode=mode, n_neighbors=n_neighbors, **theirs)
    # For many neighbors of float32 points, scikit-learn rounds its distances to float32; pcct does not.
    exact = points.astype(np.float64)
    same_graph(ours.fit_transform(points), theirs.fit_transform(exact))
    same_graph(ours.transform(asked), theirs.transform(asked.astype(np.float64)))
    same_graph(ours.transform(points[:9]), theirs.transform(exact[:9]))


def by_column(graph):
    """Return the graph with the entries of each row in the order of columns, as it has them."""
    graph.sort_indices()
    return graph


@pytest.mark.parametrize("mode", ["distance", "connectivity"])
@pytest.mark.parametrize(
    ("points", "asked", "metric", "radii", "params"),
    [
        (X, Q, "euclidean", (0, 0.3, 9.0), None),
        (X, Q, "l2", (0.3,), None),
        (X, Q, "sqeuclidean", (0, 0.25, 81.0), None),
        (X, Q, "seuclidean", (0.3,), {"V": WIDTHS}),
        (X, Q, "cosine", (1e-3, 1.5), None),
        (PLACES, ASKED, "haversine", (0, 0.2, 3.0), None),
    ],
)
def test_radius_graphs_are_those_of_scikit_learn(points, asked, metric, radii, params, mode):
    for radius in radii:
        wanted = {"mode": mode, "radius": radius, "metric": metric, "metric_params": params}
        ours, theirs = PcctRadiusNeighborsTransformer(**wanted), RadiusNeighborsTransformer(**wanted, algorithm="brute")
        graph = ours.fit_transform(points)
        assert 0 <= graph.data.min() <= graph.data.max() <= (radius if mode == "distance" else 1)
        same_graph(by_column(graph), by_column(theirs.fit_transform(points)))
        same_graph(by_column(ours.transform(asked)), by_column(theirs.transform(asked)))
        same_graph(by_column(ours.transform(points[:9])), by_column(theirs.transform(points[:9])))


def test_a_radius_includes_its_end_in_the_unit_of_the_metric():
    lattice = np.array([[i, j] for i in range(5) for j in range(5)], float)
    squares = np.square(lattice[:, None] - lattice).sum(axis=2)
    for radius in (0, 1, 2, 4, 5, 8, 9.5):
        graph = PcctRadiusNeighborsTransformer(radius=radius, metric="sqeuclidean").fit_transform(lattice)
        np.testing.assert_array_equal(graph.toarray(), np.where(squares <= radius, squares, 0))
        assert graph.nnz == (squares <= radius).sum()
        rooted = PcctRadiusNeighborsTransformer(radius=np.sqrt(radius), mode="connectivity").fit_transform(lattice)
        np.testing.assert_array_equal(rooted.toarray(), squares <= radius)


def test_squares_are_sums_not_roots_squared_again():
    near = np.array([[0.0, 0.0], [0.1, 0.3], [0.3, 0.1 + 2**-55], [0.2, 0.7]])
    graph = PcctNeighborsTransformer(n_neighbors=3, metric="sqeuclidean").fit_transform(near)
    for row in range(4):
        entries = graph.indices[graph.indptr[row] : graph.indptr[row + 1]]
        sums = np.square(near[entries] - near[row])
        np.testing.assert_array_equal(graph.data[graph.indptr[row] : graph.indptr[row + 1]], sums[:, 0] + sums[:, 1])


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("neighbors.tests.test_graph", "test_transformer_result", ()),
        ("neighbors.tests.test_graph", "test_explicit_diagonal", ()),
        ("neighbors.tests.test_graph", "test_graph_feature_names_out", (PcctNeighborsTransformer,)),
        ("neighbors.tests.test_graph", "test_graph_feature_names_out", (PcctRadiusNeighborsTransformer,)),
        *(
            ("neighbors.tests.test_neighbors_pipeline", f"test_{name}", ())
            for name in (
                "spectral_clustering",
                "spectral_embedding",
                "dbscan",
                "isomap",
                "lof_novelty_false",
                "lof_novelty_true",
                "kneighbors_regressor",
            )
        ),
        ("manifold.tests.test_isomap", "test_pipeline_with_nearest_neighbors_transformer", (np.float64,)),
    ],
)
@pytest.mark.filterwarnings("ignore:Array is not symmetric", "ignore:A column-vector y was passed")
def test_scikit_learns_own_tests_pass_with_our_transformers(monkeypatch, module, name, arguments):
    theirs = importlib.import_module(f"sklearn.{module}")
    for home in (theirs, getattr(theirs, "neighbors", theirs)):
        monkeypatch.setattr(home, "KNeighborsTransformer", PcctNeighborsTransformer, raising=False)
        monkeypatch.setattr(home, "RadiusNeighborsTransformer", PcctRadiusNeighborsTransformer, raising=False)
    getattr(theirs, name)(*arguments)


@pytest.mark.parametrize(
    ("mode", "consumer", "result"),
    [
        ("distance", DBSCAN(eps=2.5, metric="precomputed"), "labels_"),
        ("distance", Isomap(n_neighbors=8, metric="precomputed"), "embedding_"),
        (
            "distance",
            TSNE(metric="precomputed", init="random", perplexity=4, max_iter=300, random_state=0),
            "embedding_",
        ),
        ("connectivity", SpectralClustering(3, affinity="precomputed_nearest_neighbors", random_state=0), "labels_"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_made_of_the_graph_is_the_same(mode, consumer, result):
    # TSNE makes a large difference of one in the last bit of a distance.
    blobs = on_grid(make_blobs(150, n_features=3, cluster_std=4.0, random_state=0)[0])
    made = []
    for transformer in (PcctNeighborsTransformer, KNeighborsTransformer):
        pipeline = make_pipeline(transformer(mode=mode, n_neighbors=15), clone(consumer)).fit(blobs)
        made.append(getattr(pipeline[-1], result))
    assert len(np.unique(made[0])) > 1
    np.testing.assert_allclose(made[0], made[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["distance", "connectivity"])
def test_the_diagonal_is_there_among_many_equal_rows(mode):
    same = np.ones((50, 2))
    graph = PcctNeighborsTransformer(mode=mode, n_neighbors=3).fit_transform(same)
    rows, columns = graph.nonzero() if mode == "connectivity" else (np.repeat(np.arange(50), 4), graph.indices)
    assert set(zip(range(50), range(50), strict=True)) <= set(zip(rows.tolist(), columns.tolist(), strict=True))


def test_ties_go_to_the_lower_row():
    lattice = np.array([[0.0], [1.0], [-1.0], [2.0], [-2.0]])
    graph = PcctNeighborsTransformer(n_neighbors=3).fit_transform(lattice)
    assert graph.indices[:4].tolist() == [0, 1, 2, 3]


def test_one_sample_has_itself_alone():
    graph = PcctNeighborsTransformer(mode="connectivity", n_neighbors=1).fit_transform([[1.0, 2.0]])
    assert graph.toarray().tolist() == [[1.0]]


def test_the_fitted_object_is_pickled_and_cloned_and_keeps_its_points():
    points = X.copy()
    fitted = PcctNeighborsTransformer(n_neighbors=4, metric="euclidean", metric_params={"lengthscale": WIDTHS}).fit(
        points
    )
    before = fitted.transform(Q)
    points[:] = 0.0
    same_graph(pickle.loads(pickle.dumps(fitted)).transform(Q), before)
    same_graph(fitted.transform(Q), before)
    assert clone(fitted).get_params()["n_neighbors"] == 4
    assert fitted.get_feature_names_out()[0] == "pcctneighborstransformer0"
    assert len(fitted.get_feature_names_out()) == fitted.n_samples_fit_ == 400


def test_columns_of_a_frame_are_remembered():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["east", "north"])
    fitted = PcctNeighborsTransformer().fit(frame)
    assert fitted.feature_names_in_.tolist() == ["east", "north"]
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.transform(frame.rename(columns={"east": "west"}))


def test_neighbors_and_mode_may_change_after_fit():
    fitted = PcctNeighborsTransformer(n_neighbors=4).fit(X).set_params(n_neighbors=2, mode="connectivity")
    same_graph(fitted.transform(Q), KNeighborsTransformer(n_neighbors=2, mode="connectivity").fit(X).transform(Q))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mode": "weights"}, "mode is 'weights'; use one of distance, connectivity"),
        ({"n_neighbors": 0}, "n_neighbors is 0; use a whole number of at least 1"),
        ({"n_neighbors": True}, "n_neighbors is True"),
        ({"n_neighbors": 2.5}, "n_neighbors is 2.5"),
        (
            {"n_jobs": 0},
            "n_jobs is 0; use a whole number of at least 1, None or -1 for one per core, -2 for all cores but",
        ),
        ({"n_jobs": -1.0}, "n_jobs is -1.0; use a whole number"),
        ({"algorithm": "annoy"}, "algorithm is 'annoy'; use one of auto, ball_tree, kd_tree, brute"),
        ({"leaf_size": 0}, "leaf_size is 0; use a whole number of at least 1"),
        ({"metric": "minkowski", "p": 1}, "p is 1; use 2, the only minkowski metric here"),
        ({"p": -1}, "p is -1; use 2"),
        ({"metric": "sqeuclidean", "metric_params": {"V": 1}}, "unknown metric_params 'V'; sqeuclidean has none"),
        ({"metric": "manhattan"}, "metric is 'manhattan'; use one of euclidean,"),
        ({"metric": len}, "metric is <built-in function len>; use one of"),
        ({"metric_params": {"w": 1}}, "unknown metric_params 'w'; euclidean takes lengthscale alone"),
        ({"metric": "cosine", "metric_params": {"V": 1}}, "unknown metric_params 'V'; cosine has none"),
        ({"metric": "seuclidean"}, "seuclidean needs metric_params={'V': …}"),
        ({"metric": "seuclidean", "metric_params": {"V": [1.0, 0.0]}}, "one positive variance per column"),
        ({"metric_params": {"lengthscale": [1.0] * 3}}, "lengthscale has 3 values for 2 dimensions"),
        ({"metric_params": {"lengthscale": -1.0}}, "lengthscale -1.0 is not positive"),
    ],
)
def test_parameters_that_cannot_be_used(parameters, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PcctNeighborsTransformer(**parameters).fit(X)


@pytest.mark.parametrize("radius", [-1.0, np.nan, np.inf, "1", True])
def test_radii_that_cannot_be_used(radius):
    with pytest.raises(ValueError, match=r"radius is .*; use a finite number of at least 0"):
        PcctRadiusNeighborsTransformer(radius=radius).fit(X)


@pytest.mark.parametrize(
    "parameters",
    [
        *({"algorithm": name, "leaf_size": 7} for name in ("auto", "ball_tree", "kd_tree", "brute")),
        {"metric": "minkowski", "p": 2.0},
        {"p": 1},  # as in scikit-learn: of the minkowski metric alone
        {"n_jobs": -2},
        {"n_jobs": -1000},
        {"n_jobs": np.int64(1)},
    ],
)
def test_parameters_that_change_no_answer(parameters):
    for made, parent in (
        (PcctNeighborsTransformer, KNeighborsTransformer),
        (PcctRadiusNeighborsTransformer, RadiusNeighborsTransformer),
    ):
        theirs = parent(**({"metric": "euclidean"} | parameters))
        same_graph(by_column(made(**parameters).fit_transform(X)), by_column(theirs.fit_transform(X)))


def test_n_jobs_counts_cores_as_joblib_does(monkeypatch):
    asked = []
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    monkeypatch.setattr(pcct_client.sklearn, "_InProcess", lambda points, spec, threads: asked.append(threads))
    for n_jobs in (None, -1, 1, 3, -2, -7, -8, -100):
        PcctNeighborsTransformer(n_jobs=n_jobs).fit(X)
    assert asked == [None, None, 1, 3, 7, 2, 1, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_poles_and_meridians_that_were_rounded_up_are_taken(dtype):
    places = np.radians(np.array([[90, 0], [-90, 180], [90, 360], [-90, -360], [89, 10]], dtype))
    if dtype == np.float64:
        places = np.copysign(np.nextafter(np.abs(places), 9.0), places)
        places[-1] = np.radians([89, 10])
    graph = PcctNeighborsTransformer(n_neighbors=4, metric="haversine").fit_transform(places).toarray()
    np.testing.assert_allclose(graph[0, [1, 3]], np.pi, atol=1e-7)
    np.testing.assert_allclose(graph[0, [2, 4]], [0, np.radians(1)], atol=1e-7)
    with pytest.raises(ValueError, match=r"row 0 is \(1\.5707973.*, 0\.0\), which is no"):
        PcctNeighborsTransformer(metric="haversine").fit(np.array([[np.pi / 2 + 1e-6, 0], [0, 0]]))


def test_rows_that_would_lose_something():
    with pytest.raises(ValueError, match="row 0, column 0 is 9007199254740993, which float64 rounds to"):
        PcctNeighborsTransformer(n_neighbors=1).fit(np.array([[2**53 + 1], [2]]))
    masked = np.ma.array(X[:20], mask=np.zeros((20, X.shape[1])))
    PcctNeighborsTransformer().fit(masked)
    masked[3, 1] = np.ma.masked
    for made in (PcctNeighborsTransformer(), PcctRadiusNeighborsTransformer()):
        with pytest.raises(ValueError, match="row 3, column 1 is masked"):
            made.fit(masked)
        with pytest.raises(ValueError, match="row 3 has masked values"):
            made.fit(X).transform(list(masked))
    geopandas = pytest.importorskip("geopandas")
    frame = geopandas.GeoDataFrame(geometry=geopandas.points_from_xy(*np.degrees(PLACES[:20, ::-1]).T))
    for holder in (frame, frame.geometry):
        with pytest.raises(ValueError, match=r"X holds geometries; use X\.get_coordinates\(\)"):
            PcctNeighborsTransformer().fit(holder)
    radians = np.radians(frame.get_coordinates()[["y", "x"]])
    graph = PcctNeighborsTransformer(metric="haversine").fit_transform(radians)
    same_graph(graph, PcctNeighborsTransformer(metric="haversine").fit_transform(radians.to_numpy()))


def test_columns_in_another_order_are_refused_as_by_scikit_learn():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["lat", "lon"])
    for made in (PcctNeighborsTransformer(), PcctRadiusNeighborsTransformer()):
        with pytest.raises(ValueError, match="must be in the same order as they were in fit"):
            made.fit(frame).transform(frame[["lon", "lat"]])


def test_rows_that_cannot_be_used():
    with pytest.raises(ValueError, match="row 1 is all zeros; the cosine"):
        PcctNeighborsTransformer(metric="cosine").fit([[1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match=r"row 1 is \(48.9, 2.35\), which is no .* use np.radians"):
        PcctNeighborsTransformer(metric="haversine").fit([[0.5, 0.5], [48.9, 2.35]])
    with pytest.raises(ValueError, match="haversine needs 2 columns"):
        PcctNeighborsTransformer(metric="haversine").fit(np.zeros((4, 3)))
    with pytest.raises(TypeError, match="dense data is required"):
        PcctNeighborsTransformer().fit(sparse.csr_array(X))


@pytest.mark.parametrize(("mode", "most"), [("distance", 3), ("connectivity", 4)])
def test_more_neighbors_than_samples(mode, most):
    fitted = PcctNeighborsTransformer(mode=mode, n_neighbors=most + 1).fit(X[:4])
    with pytest.raises(ValueError, match=f"n_samples_fit = 4; use n_neighbors ≤ {most}$"):
        fitted.transform(X)
    assert fitted.set_params(n_neighbors=most).transform(X).shape == (400, 4)


def test_the_earth_is_as_large_as_in_the_core():
    assert EARTH_RADIUS_KM == core_points.EARTH_RADIUS_KM


def test_a_service_that_is_away_is_named_in_fit():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ServerUnavailable, match="nothing answers at"):
            PcctNeighborsTransformer(url=url, timeout=1.0).fit(X)


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pcct_core", None)
    with pytest.raises(MissingExtra, match=r"pip install 'pcct\[core\]', or give the url of a service"):
        PcctNeighborsTransformer().fit(X)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "pcct_client.sklearn")
    with pytest.raises(MissingExtra, match=r"pcct_client.sklearn needs scikit-learn: pip install 'pcct\[sklearn\]'"):
        importlib.import_module("pcct_client.sklearn")


def test_importing_it_loads_no_compiler():
    code = "import sys, pcct_client.sklearn; assert not {'numba', 'pcct_core', 'fastapi'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=280)
