import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import polars as pl
import pytest

import pcct_core as pc
from tests import naive
from tests.core.clouds import CLOUDS
from tests.core.judge import naive_metric, same_bytes, same_graphs

DTYPES = [np.float32, np.float64]


def cloud(name, dtype):
    points = CLOUDS[name]
    return points.astype(dtype), np.random.default_rng(1).permutation(points)[:70].astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name", ["lattice 7^3", "uniform d=1", "uniform d=20", "all equal", "half duplicates", "one outlier"]
)
class TestAnswers:
    def test_query_equals_brute_force(self, name, dtype):
        X, Q = cloud(name, dtype)
        found = pc.CoverTree.fit(X).query(Q, 9)
        neighbors, distances = naive.query(X, Q, 9)
        same_bytes(found.neighbors, neighbors)
        same_bytes(found.distances, distances)

    def test_query_radius_equals_brute_force(self, name, dtype):
        X, Q = cloud(name, dtype)
        radius = dtype(np.median(naive.query(X, Q, 9)[1][:, -1]))
        found = pc.CoverTree.fit(X).query_radius(Q, float(radius))
        for one, expected in zip(found, naive.radius(X, Q, radius), strict=True):
            same_bytes(one, expected)

    def test_radius_graph_leaves_out_each_point_itself_and_no_other(self, name, dtype):
        X, _ = cloud(name, dtype)
        radius = dtype(np.median(naive.knn(X, 3)[1][:, -1]))
        found = pc.CoverTree.fit(X).radius_graph(float(radius))
        starts, neighbors, _ = naive.radius(X, X, radius)
        for row in range(len(X)):
            others = neighbors[starts[row] : starts[row + 1]]
            np.testing.assert_array_equal(
                found.neighbors[found.offsets[row] : found.offsets[row + 1]], others[others != row]
            )


@pytest.mark.parametrize("k", [1, 7, 500])
@pytest.mark.parametrize("given", [False, True])
def test_query_under_the_residual_metric_equals_brute_force(given, k):
    rng = np.random.default_rng(2)
    X, Q, scale = rng.random((500, 3)), rng.random((90, 3)), (0.3, 0.5, 0.4)
    inducing = X[naive.maximin(X / np.array(scale))[0][:60]]
    metric = pc.Residual(pc.Matern52(scale, variance=2.0), inducing=inducing if given else 60, jitter=1e-3)
    found = pc.CoverTree.fit(X, metric).query(Q, k)
    both = np.vstack([X, Q])
    V, p = naive.residual_factors(both, inducing, "matern52", scale, 2.0, jitter=1e-3)
    exact = naive.residual_distances(both, V, p, "matern52", scale, 2.0)[500:, :500]
    np.testing.assert_array_equal(found.neighbors, np.argsort(exact, axis=1, kind="stable")[:, :k])
    np.testing.assert_allclose(found.distances, np.sort(exact, axis=1)[:, :k], atol=1e-8)


def test_query_under_the_residual_metric_finds_the_point_itself():
    X = np.random.default_rng(3).random((200, 2))
    found = pc.CoverTree.fit(X, pc.Residual(pc.Matern32(0.3), inducing=20)).query(X, 2)
    np.testing.assert_array_equal(found.neighbors[:, 0], np.arange(200))
    # Inducing points have p near the jitter, 1e-6, and a correlation is within 1e-16 / p.
    np.testing.assert_allclose(found.distances[:, 0], 0.0, atol=1e-4)


def test_threads_do_not_change_a_byte():
    X, Q = cloud("clustered", np.float64)
    one, two = (pc.CoverTree.fit(X, threads=threads).query(Q, 5, threads=threads) for threads in (1, 2))
    same_bytes(one.neighbors, two.neighbors)
    same_bytes(one.distances, two.distances)


def test_query_on_the_sphere_is_in_kilometres():
    places = np.array([[0.0, 0.0], [0.0, 1.0], [179.9, 0.0], [-179.9, 0.0]])
    tree = pc.CoverTree.fit(places, "haversine")
    assert tree.query([[180.0, 0.0]], 2).neighbors.tolist() == [[2, 3]]
    np.testing.assert_allclose(tree.query([[0.0, 0.0]], 2).distances, [[0.0, np.radians(1) * 6371.0088]])
    assert tree.query_radius([[0.0, 0.0]], 111.2).neighbors.tolist() == [0, 1]


def test_one_point_is_a_tree():
    found = pc.CoverTree.fit([[1.0, 2.0]]).query([[1.0, 3.0], [1.0, 2.0]], 1)
    assert found.neighbors.tolist() == [[0], [0]]
    assert found.distances.tolist() == [[1.0], [0.0]]


def metres(n, seed):
    """Places in metres of UTM, float64, which float32 rounds to half a metre."""
    return np.random.default_rng(seed).uniform((500000, 4500000), (500300, 4500300), (n, 2))


def places(n, seed):
    return np.random.default_rng(seed).uniform((-180, -90), (180, 90), (n, 2))


WIDTHS = pytest.mark.parametrize(("own", "asking"), [(np.float32, np.float64), (np.float64, np.float32)])


class TestTypes:
    """Where points and queries have two types, the wider one measures them: nothing is rounded on the way."""

    @WIDTHS
    @pytest.mark.parametrize(
        "metric", [pc.Euclidean(), pc.Euclidean(3.0), pc.Euclidean((3.0, 7.0)), pc.Cosine()], ids=str
    )
    def test_answers_are_those_of_float64(self, metric, own, asking):
        X, Q = metres(600, 0).astype(own), metres(70, 1).astype(asking)
        points, block, finish = naive_metric(X.astype(float), metric)
        neighbors, keys = naive.query(points, Q.astype(float), 7, block)
        found, known = pc.CoverTree.fit(X, metric).query_certified(Q, 7)
        same_bytes(found.neighbors, neighbors)
        same_bytes(found.distances, finish(keys))
        assert known.dtype == "float64"

    @WIDTHS
    @pytest.mark.parametrize("metric", [pc.Euclidean(3.0), pc.Cosine(), pc.Haversine()], ids=str)
    def test_answers_are_those_of_points_and_queries_in_float64(self, metric, own, asking):
        draw = places if metric == pc.Haversine() else metres
        X, Q = draw(600, 2).astype(own), draw(70, 3).astype(asking)
        tree, wide = pc.CoverTree.fit(X, metric), pc.CoverTree.fit(X.astype(float), metric)
        assert tree.query(Q, 5) == wide.query(Q.astype(float), 5)
        radius = float(np.median(wide.query(Q.astype(float), 5).distances[:, -1]))
        assert tree.query_radius(Q, radius) == wide.query_radius(Q.astype(float), radius)
        assert len(tree.query_radius(Q, radius).neighbors) > 70

    @WIDTHS
    def test_the_residual_metric_measures_queries_in_float64(self, own, asking):
        X, Q = metres(300, 4).astype(own), metres(40, 5).astype(asking)
        metric = pc.Residual(pc.Matern32((80.0, 50.0)), inducing=metres(20, 6))
        one, other = (pc.CoverTree.fit(each, metric) for each in (X, X.astype(float)))
        assert one.query(Q, 5) == other.query(Q.astype(float), 5)

    def test_one_tree_answers_every_type_again_and_again(self, tmp_path):
        X, Q = metres(300, 7).astype(np.float32), metres(40, 8)
        tree = pc.CoverTree.fit(X)
        narrow = tree.query(Q.astype(np.float32), 5)
        same_bytes(narrow.distances, naive.query(X, Q.astype(np.float32), 5)[1])
        before = tree.nbytes
        wide = tree.query(Q, 5)
        assert tree.nbytes > 2 * before
        assert tree.query(Q.astype(np.float32), 5) == narrow
        assert tree.query(Q, 5) == wide
        tree.save(tmp_path / "tree")
        assert pc.CoverTree.load(tmp_path / "tree").query(Q, 5) == wide

    @pytest.mark.parametrize(
        "integers", [[[16777217, 3]], np.array([[16777217, 3]]), pd.DataFrame({"a": [16777217], "b": [3]})]
    )
    def test_whole_numbers_are_not_rounded_to_float32(self, integers):
        tree = pc.CoverTree.fit(np.array([[16777216, 3], [16777218, 0]], np.float32))
        found = tree.query(integers, 2)
        assert found.neighbors.tolist() == [[0, 1]]
        np.testing.assert_array_equal(found.distances, [[1.0, np.sqrt(10.0)]])

    def test_a_query_beyond_the_type_of_the_points(self):
        X = CLOUDS["uniform d=3"]
        found = pc.CoverTree.fit(X.astype(np.float32)).query([[1e300, 0.0, 0.0]], 2)
        assert found.distances.tolist() == [[1e300, 1e300]]

    def test_two_threads_may_ask_first(self):
        X, Q = metres(3000, 9).astype(np.float32), metres(40, 10)
        tree = pc.CoverTree.fit(X)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: tree.query(Q, 5, threads=1), range(4)))
        assert all(answer == answers[0] for answer in answers)


class TestRefusals:
    @pytest.mark.parametrize("k", [0, -1, 501, True, 1.5])
    def test_k_that_the_tree_cannot_give(self, k):
        tree = pc.CoverTree.fit(CLOUDS["uniform d=3"])
        with pytest.raises(pc.InvalidSpec) as refused:
            tree.query([[0.0, 0.0, 0.0]], k)
        assert refused.value.field == "k"

    def test_queries_of_other_width_or_with_a_nan(self):
        tree = pc.CoverTree.fit(CLOUDS["uniform d=3"])
        with pytest.raises(pc.InvalidPoints, match="2 columns, the tree's points have 3"):
            tree.query([[0.0, 0.0]], 1)
        with pytest.raises(pc.InvalidPoints, match="row 1"):
            tree.query([[0.0, 0.0, 0.0], [0.0, np.nan, 0.0]], 1)

    @pytest.mark.parametrize("radius", [-1.0, np.inf, np.nan])
    def test_a_radius_that_is_none(self, radius):
        with pytest.raises(pc.InvalidSpec, match="radius"):
            pc.CoverTree.fit(CLOUDS["uniform d=3"]).radius_graph(radius)

    def test_a_query_whose_distances_overflow(self):
        tree = pc.CoverTree.fit(CLOUDS["uniform d=3"].astype(np.float32))
        with pytest.raises(pc.InvalidPoints, match="overflow"):
            tree.query([[1.7e308, 0.0, 0.0]], 1)

    def test_given_factors_say_nothing_about_queries(self):
        X = CLOUDS["uniform d=3"]
        metric = pc.Residual.from_factors(np.ones((len(X), 2)), np.ones(len(X)), pc.RBF(1.0))
        with pytest.raises(pc.InvalidSpec, match="inducing points instead"):
            pc.CoverTree.fit(X, metric)

    def test_what_a_tree_under_the_residual_metric_cannot_do(self, tmp_path):
        tree = pc.CoverTree.fit(CLOUDS["uniform d=3"], pc.Residual(pc.RBF(1.0), inducing=9))
        for call in (
            lambda: tree.query_radius([[0.0, 0.0, 0.0]], 1.0),
            lambda: tree.radius_graph(1.0),
            lambda: tree.save(tmp_path / "tree"),
        ):
            with pytest.raises(pc.InvalidSpec, match="query\\(\\) alone"):
                call()


class TestFile:
    def test_a_saved_tree_answers_the_same(self, tmp_path):
        X, Q = cloud("clustered", np.float32)
        tree = pc.CoverTree.fit(X, pc.Euclidean((0.5, 2.0, 1.0)))
        tree.save(tmp_path / "tree")
        again = pc.CoverTree.load(tmp_path / "tree")
        assert repr(again) == repr(tree)
        for one, other in zip(tree.query(Q, 7), again.query(Q, 7), strict=True):
            same_bytes(one, other)

    def damaged(self, path, **changes):
        pc.CoverTree.fit(CLOUDS["uniform d=2"]).save(path)
        with np.load(path) as file:
            arrays = dict(file)
        header = json.loads(bytes(arrays["header"])) | {name: value for name, value in changes.items() if name != "ids"}
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        if "ids" in changes:
            arrays["ids"] = arrays["ids"] * 0 + changes["ids"]
        with path.open("wb") as file:
            np.savez(file, **arrays)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"version": 3}, "format version 3, this release reads version 2"),
            ({"format": "other"}, "not a saved cover tree"),
            ({"n": 499}, "damaged"),
            ({"n": -1}, "damaged"),
            ({"ids": 2**30}, "damaged"),
            ({"metric": {"type": "l1"}}, "damaged"),
            ({"sha256": "0"}, "damaged"),
        ],
    )
    def test_a_file_of_another_version_or_with_other_content_is_refused(self, tmp_path, changes, says):
        path = tmp_path / "tree"
        self.damaged(path, **changes)
        with pytest.raises(pc.FileFormatError, match=says):
            pc.CoverTree.load(path)

    @pytest.mark.parametrize("content", [b"", b"no tree", b"PK\x03\x04 cut"])
    def test_a_file_that_is_no_tree_is_refused(self, tmp_path, content):
        path = tmp_path / "tree"
        path.write_bytes(content)
        with pytest.raises(pc.FileFormatError, match="not a saved cover tree"):
            pc.CoverTree.load(path)

    def test_a_tree_cut_short_is_refused(self, tmp_path):
        path = tmp_path / "tree"
        pc.CoverTree.fit(CLOUDS["uniform d=2"]).save(path)
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(pc.FileFormatError):
            pc.CoverTree.load(path)


FRAME = pd.DataFrame({"lon": [10.0, 20.0, -30.0], "lat": [50.0, -40.0, 5.0]})


class TestColumns:
    @pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
    def test_columns_of_queries_are_matched_by_name(self, library, tmp_path):
        tree = pc.CoverTree.fit(FRAME, "haversine")
        tree.save(tmp_path / "tree.npz")
        queries = library({"lat": FRAME["lat"].to_numpy(), "lon": FRAME["lon"].to_numpy()})
        for asked in (tree, pc.CoverTree.load(tmp_path / "tree.npz")):
            same_bytes(asked.query(queries, 1).neighbors[:, 0], np.arange(3, dtype=np.int32))
            same_bytes(asked.query_radius(queries, 0.0).offsets, np.arange(4))

    def test_what_has_no_names_is_matched_by_position(self):
        array = FRAME.to_numpy()
        for points, queries in (
            (array, FRAME),
            (FRAME, array),
            (FRAME, pd.DataFrame(array)),
            (pd.DataFrame(array), FRAME),
        ):
            assert not pc.CoverTree.fit(points, "haversine").query(queries, 1).distances.any()

    def test_other_names_are_refused(self):
        tree = pc.CoverTree.fit(FRAME, "haversine")
        for queries in (FRAME.rename(columns=str.upper), FRAME.set_axis(["lat", "lat"], axis=1)):
            with pytest.raises(pc.InvalidPoints, match=r"the points have the columns 'lon', 'lat' and the queries"):
                tree.query(queries, 1)
        twice = FRAME.set_axis(["x", "x"], axis=1)
        assert not pc.CoverTree.fit(twice).query(twice, 1).distances.any()

    def test_columns_of_inducing_points_are_matched_by_name(self):
        drawn = np.random.default_rng(7).random((60, 2))
        X, Z = pd.DataFrame(drawn, columns=["a", "b"]), pd.DataFrame(drawn[:9], columns=["a", "b"])

        def build(X, Z):
            return pc.vecchia_graph(X, 3, metric={"type": "residual", "kernel": "rbf", "inducing": Z})

        for inducing in (Z, Z[["b", "a"]], pl.DataFrame(Z[["b", "a"]].to_dict("list")), Z.to_numpy()):
            same_graphs(build(X, inducing), build(drawn, drawn[:9]))
            metric = pc.Residual(pc.RBF(1.0), inducing)
            found, expected = (
                pc.CoverTree.fit(X, each).query(drawn[:5], 3) for each in (metric, pc.Residual(pc.RBF(1.0), drawn[:9]))
            )
            same_bytes(found.distances, expected.distances)
        same_graphs(build(drawn, Z[["b", "a"]]), build(drawn, drawn[:9, ::-1]))
        with pytest.raises(
            pc.InvalidSpec, match=r"columns 'a', 'b' and the inducing points 'A', 'B'; .*np\.asarray\(Z\)"
        ):
            build(X, Z.rename(columns=str.upper))
