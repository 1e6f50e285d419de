"""Radius graphs, against brute force."""

import threading

import numpy as np
import pytest

import pcct_core as pc
from pcct_core.nearest import find_radius
from pcct_core.parallel import Crew
from pcct_core.place import place_points
from pcct_core.telemetry import Telemetry
from tests import naive
from tests.core import clouds
from tests.core.judge import check_graph, same_graphs

CLOUDS = list(clouds.cases())
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def places(n):
    """Longitudes and latitudes on whole degrees, the poles and both sides of the antimeridian among them."""
    rng = np.random.default_rng(n)
    whole = np.column_stack([rng.integers(-180, 181, n), rng.integers(-90, 91, n)]).astype(float)
    return np.vstack([whole, [[0, 90], [77, 90], [180, 10], [-180, 10], [190, 10], [5, -90]]])


@pytest.mark.parametrize(("name", "X"), CLOUDS, ids=[name for name, _ in CLOUDS])
def test_radius_graph_of_every_cloud(name, X):
    check_graph(pc.radius_graph(X, float(np.median(naive.knn(X, 10)[1][:, -1]))), X)


@DTYPES
@pytest.mark.parametrize("radius", [0, 1, 2, 5, np.sqrt(2), np.sqrt(5), 0.999, 60])
def test_radius_graph_includes_ties_at_its_boundary(radius, dtype):
    check_graph(pc.radius_graph(clouds.lattice(17, 2).astype(dtype), radius), clouds.lattice(17, 2).astype(dtype))


@DTYPES
@pytest.mark.parametrize("metric", [pc.Euclidean((2.0, 0.5)), pc.Haversine(), pc.Cosine()])
def test_radius_graph_compares_the_distances_that_it_returns(metric, dtype):
    X = places(300).astype(dtype)
    X = X[X.any(axis=1)]
    occurring = np.unique(pc.knn_graph(X, k=40, metric=metric).distances)
    for radius in (occurring[1], occurring[len(occurring) // 2], occurring[-1]):
        for r in (float(radius), float(np.nextafter(radius, radius.dtype.type(0)))):
            check_graph(pc.radius_graph(X, r, metric), X)


def test_radius_graph_of_the_whole_sphere():
    X = places(60)
    graph = pc.radius_graph(X, np.pi * 6371.0088, "haversine")
    assert len(graph.neighbors) == len(X) * (len(X) - 1)


@pytest.mark.jitless
@DTYPES
@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 65])
def test_radius_graph_takes_any_n(n, dtype):
    X = (clouds.uniform(n, 2) * 6).round().astype(dtype)
    for radius in (0.0, 2.0, 1e30):
        check_graph(pc.radius_graph(X, radius), X)


def test_radius_graph_of_one_point_is_empty():
    graph = pc.radius_graph([[1.0, 2.0]], 5.0)
    assert graph.offsets.tolist() == [0, 0]
    assert graph.neighbors.shape == graph.distances.shape == (0,)


def test_radius_zero_holds_the_duplicates():
    X = clouds.half_duplicates(400, 3)
    graph = pc.radius_graph(X, 0.0)
    assert np.array_equal(np.diff(graph.offsets), np.ones(400))
    check_graph(graph, X)


@DTYPES
def test_radius_graph_sorts_rows_of_any_length(dtype):
    rng = np.random.default_rng(4)
    X = np.vstack([rng.normal(0, 0.01, (1500, 2)).round(3), rng.random((800, 2)) * 40]).astype(dtype)
    graph = pc.radius_graph(X, 0.5)
    assert np.diff(graph.offsets).max() > 1024  # longer than what is sorted side by side
    check_graph(graph, X)


@DTYPES
def test_any_number_of_threads_makes_the_same_bytes(dtype):
    X = clouds.clustered(3000, 3).astype(dtype)
    alone = pc.radius_graph(X, 0.002, threads=1)
    assert len(alone.neighbors) > 3000
    for threads in (2, 3):
        same_graphs(pc.radius_graph(X, 0.002, threads=threads), alone)


def test_radius_graph_says_what_it_did():
    said = []
    graph = pc.radius_graph(clouds.uniform(2000, 3), 0.1, progress=lambda *report: said.append(report))
    assert graph.certificate.to_json() == {"method": "tree", "dtype": "float64", "exact": True}
    assert set(graph.telemetry.seconds) == {"prepare", "tree", "count", "search", "finish"}
    assert graph.telemetry.counts["pairs"] == len(graph.neighbors)
    assert "k" not in graph.telemetry.counts
    assert {phase for phase, _, _ in said} == {"tree", "count", "search"}
    assert graph.in_original_index() is graph


def test_radius_graph_saves_its_offsets(tmp_path):
    graph = pc.radius_graph(clouds.uniform(50, 2), 0.2)
    graph.save(tmp_path / "graph.npz")
    with np.load(tmp_path / "graph.npz") as arrays:
        assert set(arrays.files) == {"neighbors", "distances", "offsets"}
        assert np.array_equal(arrays["offsets"], graph.offsets)


def test_cancel_stops_a_radius_graph():
    token = threading.Event()
    with pytest.raises(pc.Cancelled):
        pc.radius_graph(
            clouds.uniform(20_000, 3),
            0.3,
            cancel=token,
            progress=lambda phase, done, total: token.set() if phase == "count" and done else None,
        )


class TestRefusals:
    def test_more_pairs_than_allowed_name_a_radius_that_fits(self):
        X = clouds.uniform(3000, 2)
        with pytest.raises(pc.TooManyPairs, match=r"radius 0.5 holds about [\d,]+ pairs, .* at most 60,000") as refused:
            pc.radius_graph(X, 0.5, max_pairs=60_000)
        assert refused.value.field == "radius"
        fitting = float(str(refused.value).split("radius of about ")[1].split()[0])
        pairs = len(pc.radius_graph(X, fitting, max_pairs=60_000).neighbors)
        assert 20_000 < pairs <= 60_000

    def test_as_many_pairs_as_allowed_are_kept(self):
        X = clouds.lattice(10, 2)
        assert len(pc.radius_graph(X, 1.0, max_pairs=360).neighbors) == 360
        with pytest.raises(pc.TooManyPairs):
            pc.radius_graph(X, 1.0, max_pairs=359)

    def test_no_radius_fits_equal_points(self):
        with pytest.raises(pc.TooManyPairs, match="no smaller radius would fit"):
            pc.radius_graph(np.zeros((300, 2)), 1.0, max_pairs=1000)

    def test_nothing_is_allocated_for_pairs_that_are_refused(self, monkeypatch):
        X = clouds.uniform(500, 2)
        monkeypatch.setattr("pcct_core.nearest.list_within", None)
        with pytest.raises(pc.TooManyPairs), Crew(1) as crew:
            find_radius(place_points(X, pc.Euclidean(), crew), 1e9, 10, crew, Telemetry())

    def test_a_tree_refuses_too_many_pairs_too(self):
        tree = pc.CoverTree.fit(clouds.uniform(300, 2))
        with pytest.raises(pc.TooManyPairs):
            tree.query_radius(clouds.uniform(40, 2), 2.0, max_pairs=100)
        with pytest.raises(pc.TooManyPairs):
            tree.radius_graph(2.0, max_pairs=100)

    def test_a_radius_graph_has_no_k(self):
        with pytest.raises(pc.InvalidSpec) as refused:
            pc.radius_graph(clouds.uniform(9, 2), 1.0).sliced(3)
        assert refused.value.field == "k"
