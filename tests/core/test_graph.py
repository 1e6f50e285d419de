import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pcct_core.covertree import CoverTree
from pcct_core.errors import Cancelled, InvalidInput, InvalidPoints, InvalidSpec
from pcct_core.graph import build_graph, knn_graph, radius_graph, vecchia_graph
from pcct_core.spec import ORDERS, Cosine, Euclidean, GraphSpec, Haversine
from tests import naive
from tests.core import clouds
from tests.core.judge import check_graph, same_bytes, same_graphs

CLOUDS = list(clouds.cases())


def places(n, seed=0):
    """Longitudes and latitudes with poles, both sides of the antimeridian, duplicates, and one place named twice."""
    rng = np.random.default_rng(seed)
    spread = np.column_stack([rng.uniform(-180, 180, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))])
    town = rng.normal([13.4, 52.5], 0.05, (n // 2, 2))
    corners = [[0, 90], [120, 90], [0, -90], [77, -90], [180, 10], [-180, 10], [179.999, 10], [-179.999, 10], [190, 10]]
    points = np.vstack([spread, town, corners, spread[:20], [[-180, 0], [180, 0], [360, 0], [0, 0]]])
    return rng.permutation(points)


@pytest.mark.parametrize(("name", "X"), CLOUDS, ids=[name for name, _ in CLOUDS])
class TestEveryCloud:
    def test_knn_graph_equals_brute_force(self, name, X):
        check_graph(knn_graph(X, k=10), X)

    @pytest.mark.parametrize("order", ["maximin", "random"])
    def test_vecchia_graph_equals_brute_force(self, name, X, order):
        check_graph(vecchia_graph(X, k=10, order=order, seed=3), X)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
class TestSizes:
    @pytest.mark.parametrize("n", [2, 3, 31, 32, 33, 64, 65, 97])
    def test_knn_graph_takes_any_n_and_k(self, n, dtype):
        for X in (clouds.uniform(n, 3).astype(dtype), (clouds.uniform(n, 2) * 4).round().astype(dtype)):
            for k in {1, min(16, n - 1), min(17, n - 1), n - 1}:
                check_graph(knn_graph(X, k=k), X)

    @pytest.mark.parametrize("n", [2, 3, 32, 33, 65])
    @pytest.mark.parametrize("order", ORDERS)
    def test_vecchia_graph_takes_any_n_and_k(self, n, order, dtype):
        X = (clouds.uniform(n, 2) * 6).round().astype(dtype)
        for k in {1, n - 1}:
            check_graph(vecchia_graph(X, k=k, order=order), X)

    def test_graph_of_all_neighbors(self, dtype):
        X = clouds.half_duplicates(300, 2).astype(dtype)
        check_graph(knn_graph(X, k=299), X)
        check_graph(vecchia_graph(X, k=299, order="given"), X)

    def test_knn_graph_of_thousands_of_points(self, dtype):
        X = clouds.clustered(4500, 3).astype(dtype)
        check_graph(knn_graph(X, k=20), X)

    @pytest.mark.parametrize("order", ["given", "coordinate", "hilbert"])
    def test_vecchia_graph_across_several_trees(self, order, dtype):
        X = (clouds.uniform(4500, 2) * 60).round().astype(dtype)
        check_graph(vecchia_graph(X, k=12, order=order), X)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
class TestDense:
    """Points that boxes cannot separate, which are scanned instead: the answers are the same."""

    @pytest.mark.parametrize("offset", [0.0, 1e4])
    def test_knn_graph_scans_uniform_points_of_high_dimension(self, offset, dtype):
        X = (clouds.uniform(2200, 24) + offset).astype(dtype)
        graph = knn_graph(X, k=12)
        assert graph.certificate.method == "dense"
        check_graph(graph, X)

    def test_vecchia_graph_scans_ties_of_high_dimension(self, dtype):
        X = (clouds.uniform(4400, 16) * 3).round().astype(dtype)
        graph = vecchia_graph(X, k=12, order="random")
        assert graph.certificate.method == "dense"
        check_graph(graph, X)

    def test_any_number_of_threads_makes_the_same_bytes(self, dtype):
        X = clouds.uniform(4400, 20).astype(dtype)
        for spec in (GraphSpec(k=15), GraphSpec("vecchia", 15)):
            alone = build_graph(X, spec, threads=1)
            for threads in (2, 3):
                same_graphs(build_graph(X, spec, threads=threads), alone)

    def test_builds_at_once_equal_builds_in_turn(self, dtype):
        wanted = [(clouds.uniform(3000 + i, 20).astype(dtype), GraphSpec(k=9)) for i in range(3)]
        in_turn = [build_graph(X, spec) for X, spec in wanted]
        with ThreadPoolExecutor(len(wanted)) as pool:
            at_once = [pool.submit(build_graph, X, spec, threads=2) for X, spec in wanted]
            for future, expected in zip(at_once, in_turn, strict=True):
                same_graphs(future.result(), expected)

    def test_cancel_stops_the_scan_soon(self, dtype):
        X = clouds.uniform(60_000, 40).astype(dtype)
        token = SetAfter(1.0)
        with pytest.raises(Cancelled):
            build_graph(X, GraphSpec(k=30), cancel=token, threads=2)
        assert time.process_time() - token.worked_s < 0.5 * 2
        assert core_threads() == []


class TestInput:
    def test_integers_and_lists_count_in_float64(self):
        X = clouds.lattice(6, 2)
        expected = knn_graph(X, k=5)
        for same in (X.astype(np.int16), X.tolist(), X.astype(np.float16), X.astype(np.uint8)):
            same_graphs(knn_graph(same, k=5), expected)
        assert expected.certificate.dtype == "float64"

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_memory_layout_does_not_matter(self, dtype):
        X = clouds.uniform(200, 3).astype(dtype)
        frozen = X.copy()
        frozen.flags.writeable = False
        padded = np.zeros((400, 7), dtype)
        padded[::2, 1:7:2] = X
        shifted = np.frombuffer(b"?" + X.tobytes(), np.uint8)[1:].view(dtype).reshape(X.shape)
        same_values = [np.asfortranarray(X), frozen, padded[::2, 1:7:2], X.astype(X.dtype.newbyteorder(">")), shifted]
        for order in ORDERS:
            expected = vecchia_graph(X, k=7, order=order)
            for same in same_values:
                same_graphs(vecchia_graph(same, k=7, order=order), expected)
        for same in same_values:
            same_graphs(knn_graph(same, k=7), knn_graph(X, k=7))

    def test_input_stays_as_it_was(self):
        X = clouds.uniform(300, 2)
        before = X.copy()
        for metric in (Euclidean(), Euclidean(2.0), Haversine(), Cosine()):
            vecchia_graph(X, k=5, metric=metric)
        same_bytes(X, before)

    def test_bad_input_is_refused_before_any_work(self):
        said = []
        spec = GraphSpec(k=3)
        with pytest.raises(InvalidPoints, match="row 4"):
            build_graph(np.where(np.arange(20)[:, None] == 4, np.nan, 1.0), spec, progress=lambda *a: said.append(a))
        with pytest.raises(InvalidSpec, match="k ≤ 2"):
            build_graph(np.zeros((3, 1)), spec, progress=lambda *a: said.append(a))
        assert said == []

    @pytest.mark.parametrize("threads", [0, -1])
    def test_threads_below_one_are_refused(self, threads):
        with pytest.raises(InvalidInput, match="at least 1"):
            knn_graph(np.zeros((5, 1)), k=1, threads=threads)


class TestMetrics:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("lengthscale", [0.1, (0.3, 1e3, 7.0)])
    def test_lengthscales_divide_the_coordinates(self, lengthscale, dtype):
        X = clouds.uniform(400, 3).astype(dtype)
        metric = Euclidean(lengthscale)
        check_graph(knn_graph(X, k=9, metric=metric), X)
        for order in ORDERS:
            check_graph(vecchia_graph(X, k=9, metric=metric, order=order), X)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_haversine_equals_brute_force_on_the_sphere(self, dtype):
        X = places(300).astype(dtype)
        graph = knn_graph(X, k=12, metric="haversine")
        check_graph(graph, X)
        for order in ORDERS:
            check_graph(vecchia_graph(X, k=12, metric="haversine", order=order), X)
        km = naive.great_circle_km(X, X)
        np.testing.assert_allclose(graph.distances, np.take_along_axis(km, graph.neighbors, axis=1), atol=2e-6)
        np.fill_diagonal(km, np.inf)
        np.testing.assert_allclose(graph.distances, np.sort(km, axis=1)[:, :12], atol=2e-6)

    def test_haversine_knows_poles_and_antimeridian(self):
        X = np.array([[0, 90], [120, 90], [179.9, 0], [-179.9, 0], [0, -90], [10, 0]])
        graph = knn_graph(X, k=1, metric="haversine")
        np.testing.assert_array_equal(graph.neighbors[:4, 0], [1, 0, 3, 2])
        np.testing.assert_allclose(graph.distances[:4, 0], [0, 0, 22.239, 22.239], atol=1e-3)

    def test_haversine_of_antipodes_is_half_the_circumference(self):
        graph = knn_graph(np.array([[0.0, 90.0], [0.0, -90.0]]), k=1, metric="haversine")
        np.testing.assert_allclose(graph.distances, np.pi * naive.EARTH_RADIUS_KM)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_cosine_equals_brute_force_on_directions(self, dtype):
        X = np.random.default_rng(1).normal(size=(400, 4)).astype(dtype)
        X[::3] *= dtype(1e-30)
        X[1::3] *= dtype(1e30)
        graph = knn_graph(X, k=9, metric="cosine")
        check_graph(graph, X)
        for order in ORDERS:
            check_graph(vecchia_graph(X, k=9, metric="cosine", order=order), X)
        angles = naive.cosine_distances(naive.unit_rows(X), naive.unit_rows(X))
        np.fill_diagonal(angles, np.inf)
        np.testing.assert_allclose(graph.distances, np.sort(angles, axis=1)[:, :9], atol=1e-5)


@pytest.mark.jitless
@given(
    arrays(np.float64, array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=70), elements=st.integers(0, 4)),
    st.data(),
)
def test_graphs_of_small_integers_equal_brute_force(X, data):
    k = data.draw(st.integers(1, len(X) - 1))
    check_graph(knn_graph(X, k=k), X)
    check_graph(vecchia_graph(X, k=k, order=data.draw(st.sampled_from(ORDERS)), seed=k), X)


@pytest.mark.jitless
@given(st.integers(2, 300), st.integers(1, 3), st.integers(1, 12), st.data())
def test_graphs_of_scattered_integers_equal_brute_force(n, d, side, data):
    X = np.random.default_rng(data.draw(st.integers(0, 99))).integers(-side, side, (n, d)).astype(np.float32)
    k = data.draw(st.integers(1, min(n - 1, 40)))
    check_graph(knn_graph(X, k=k), X)
    check_graph(vecchia_graph(X, k=k, order=data.draw(st.sampled_from(ORDERS))), X)


class TestAnswer:
    @given(st.integers(1, 29), st.sampled_from(["knn", "vecchia"]))
    def test_sliced_equals_building_with_that_k(self, k, kind):
        X = clouds.lattice(12, 2)
        sliced = build_graph(X, GraphSpec(kind=kind, k=30)).sliced(k)
        built = build_graph(X, GraphSpec(kind=kind, k=k))
        same_graphs(sliced, built)
        assert sliced.spec == built.spec
        assert sliced.neighbors.flags.c_contiguous
        assert sliced.distances.flags.c_contiguous

    @pytest.mark.parametrize("k", [0, -1, 6])
    def test_sliced_refuses_what_the_graph_does_not_hold(self, k):
        graph = knn_graph(clouds.uniform(20, 2), k=5)
        with pytest.raises(InvalidSpec, match="1 ≤ k ≤ 5") as caught:
            graph.sliced(k)
        assert caught.value.field == "k"

    @pytest.mark.parametrize("order", ORDERS)
    def test_in_original_index_renames_rows_and_entries(self, order):
        graph = vecchia_graph(clouds.half_duplicates(200, 2), k=6, order=order)
        original = graph.in_original_index()
        neighbors, distances = naive.in_dataset_index(graph.order, graph.neighbors, graph.distances)
        same_bytes(original.neighbors, neighbors)
        same_bytes(original.distances, distances)
        assert original.order is None

    @given(st.integers(2, 60), st.data())
    def test_in_original_index_loses_nothing(self, n, data):
        graph = vecchia_graph(clouds.uniform(n, 2), k=data.draw(st.integers(1, n - 1)), order="random", seed=n)
        original = graph.in_original_index()
        rank = np.argsort(graph.order)
        entries = np.where(original.neighbors < 0, -1, rank[original.neighbors])
        np.testing.assert_array_equal(entries[graph.order], graph.neighbors)
        np.testing.assert_array_equal(original.distances[graph.order], graph.distances)

    def test_in_original_index_of_a_knn_graph_is_itself(self):
        graph = knn_graph(clouds.uniform(20, 2), k=3)
        assert graph.in_original_index() is graph

    def test_given_order_has_ranks_as_indices(self):
        graph = vecchia_graph(clouds.uniform(100, 2), k=5, order="given")
        same_bytes(graph.in_original_index().neighbors, graph.neighbors)

    def test_row_r_has_min_r_k_neighbors(self):
        graph = vecchia_graph(clouds.uniform(80, 2), k=9)
        found = (graph.neighbors >= 0).sum(axis=1)
        np.testing.assert_array_equal(found, np.minimum(np.arange(80), 9))
        np.testing.assert_array_equal(np.isinf(graph.distances), graph.neighbors < 0)
        assert (graph.neighbors < np.arange(80)[:, None]).all()

    @pytest.mark.parametrize("kind", ["knn", "vecchia"])
    def test_save_writes_what_np_load_reads(self, kind, tmp_path):
        graph = build_graph(clouds.uniform(50, 2).astype(np.float32), GraphSpec(kind=kind, k=4))
        for path in (tmp_path / "graph.npz", str(tmp_path / "bare")):
            graph.save(path)
            with np.load(path, allow_pickle=False) as stored:
                assert set(stored) == set(graph.arrays())
                for name, array in graph.arrays().items():
                    same_bytes(stored[name], array)
        assert sorted(each.name for each in tmp_path.iterdir()) == ["bare", "graph.npz"]

    def test_arrays_are_by_name(self):
        graph = knn_graph(clouds.uniform(20, 2), k=3)
        assert list(graph.arrays()) == ["neighbors", "distances"]
        assert list(vecchia_graph(clouds.uniform(20, 2), k=3).arrays()) == ["neighbors", "distances", "order"]

    def test_short_forms_build_the_specification_that_they_name(self):
        X = 10 * clouds.uniform(60, 2)
        for graph in (
            knn_graph(X, 4, "haversine"),
            knn_graph(X, 4, Euclidean((1.0, 2.0))),
            vecchia_graph(X, 4, "random", "cosine", seed=9),
            vecchia_graph(X, 4, "coordinate"),
        ):
            same_graphs(build_graph(X, graph.spec), graph)
        with pytest.raises(InvalidSpec, match=r"metric\.type|manhattan"):
            knn_graph(X, 4, "manhattan")

    def test_certificate_and_telemetry_say_what_was_done(self):
        graph = vecchia_graph(clouds.uniform(100, 3).astype(np.float32), k=5, threads=2)
        assert graph.certificate.to_json() == {"method": "tree", "dtype": "float32", "exact": True}
        assert graph.telemetry.counts == {"n": 100, "d": 3, "k": 5, "threads": 2}
        assert {"prepare", "order", "tree", "search"} <= set(graph.telemetry.seconds)


class TestDoors:
    def test_a_specification_may_be_its_json(self):
        X = clouds.uniform(40, 2)
        for spec in ({"k": 3}, {"kind": "vecchia", "k": np.int64(3)}, {"k": 3, "metric": Euclidean(2.0)}):
            same_graphs(build_graph(X, spec), build_graph(X, GraphSpec.from_json(spec)))
        same_graphs(knn_graph(X, 3, {"type": "euclidean", "lengthscale": 2}), knn_graph(X, 3, Euclidean(2.0)))
        for spec in (None, 3, "knn", [("k", 3)], knn_graph):
            with pytest.raises(InvalidSpec, match="JSON object such as"):
                build_graph(X, spec)

    @pytest.mark.parametrize("threads", [0, True, 1.5, "2", np.array([2])])
    def test_threads_are_a_whole_number(self, threads):
        with pytest.raises(InvalidInput, match=r"threads is .* whole number of at least 1"):
            knn_graph(clouds.uniform(9, 2), 1, threads=threads)
        assert knn_graph(clouds.uniform(9, 2), 1, threads=np.int64(2)).telemetry.counts["threads"] == 2


def kinds_of_graphs(X):
    return knn_graph(X, 3), vecchia_graph(X, 3, "random"), radius_graph(X, 0.2)


class TestEquality:
    def test_graphs_are_equal_when_all_that_they_say_is(self):
        X = clouds.half_duplicates(60, 2)
        for one, again, other in zip(kinds_of_graphs(X), kinds_of_graphs(X), kinds_of_graphs(X + 1), strict=True):
            assert one == again
            assert hash(one) == hash(again)
            assert len({one, again}) == 1
            assert one != other or np.array_equal(one.distances, other.distances)
        assert len(set(kinds_of_graphs(X))) == 3
        assert knn_graph(X, 3) != knn_graph(X, 2)
        assert knn_graph(X, 3) != knn_graph(X.astype(np.float32), 3)
        assert knn_graph(X, 3) != "a graph"

    def test_answers_are_equal_when_their_arrays_are(self):
        X = clouds.uniform(60, 2)
        tree = CoverTree.fit(X)
        for ask in (lambda Q: tree.query(Q, 3), lambda Q: tree.query_radius(Q, 0.2)):
            assert ask(X) == ask(X)
            assert hash(ask(X)) == hash(ask(X))
            assert ask(X) != ask(X[::-1])
            assert ask(X) != tuple(ask(X))
        assert tree.query(X, 3) != tree.query_radius(X, 0.2)


class TestConversions:
    @pytest.mark.parametrize("which", range(3))
    @pytest.mark.parametrize("mode", ["distance", "connectivity"])
    def test_to_sparse_holds_every_pair(self, which, mode):
        X = np.vstack([clouds.half_duplicates(60, 2), [[50.0, 50.0]]])  # the last one has nobody within the radius
        graph = kinds_of_graphs(X)[which]
        matrix = graph.to_sparse(mode)
        assert matrix.shape == (61, 61)
        pairs = graph.neighbors[graph.neighbors >= 0]
        assert matrix.nnz == len(pairs)
        counts = np.diff(graph.offsets) if which == 2 else (graph.neighbors >= 0).sum(axis=1)
        np.testing.assert_array_equal(np.diff(matrix.indptr), counts)
        rows = np.repeat(np.arange(61), counts)
        found = np.ones(len(pairs)) if mode == "connectivity" else graph.distances[np.isfinite(graph.distances)]
        np.testing.assert_array_equal(matrix[rows, pairs], found)
        assert matrix.has_sorted_indices
        same_graphs(graph, kinds_of_graphs(X)[which])

    def test_to_sparse_refuses_other_modes(self):
        with pytest.raises(InvalidInput, match="'distance' or 'connectivity'"):
            knn_graph(clouds.uniform(9, 2), 1).to_sparse("edges")

    @pytest.mark.parametrize("which", range(3))
    def test_with_self_puts_every_point_first_in_its_row(self, which):
        X = np.vstack([clouds.half_duplicates(60, 2), [[50.0, 50.0]]])
        graph = kinds_of_graphs(X)[which]
        whole = graph.with_self()
        plain, more = graph.to_sparse("connectivity").toarray(), whole.to_sparse("connectivity").toarray()
        np.testing.assert_array_equal(more, plain + np.eye(61))
        first = whole.offsets[:-1] if which == 2 else np.arange(61) * whole.neighbors.shape[1]
        np.testing.assert_array_equal(whole.neighbors.reshape(-1)[first], np.arange(61))
        assert (whole.distances.reshape(-1)[first] == 0).all()
        assert (whole.neighbors.dtype, whole.distances.dtype) == (np.int32, graph.distances.dtype)
        assert whole.n == graph.n == 61

    def test_with_self_comes_after_slicing(self):
        graph = knn_graph(clouds.uniform(30, 2), 4)
        same_graphs(graph.sliced(2).with_self(), replace(graph, **sliced_arrays(graph.with_self(), 3)))
        with pytest.raises(InvalidSpec, match="before with_self"):
            graph.with_self().sliced(2)
        with pytest.raises(InvalidInput, match="before with_self"):
            build_graph(clouds.uniform(30, 2), {"k": 2, "metric": RESIDUAL}, previous=graph.with_self())


RESIDUAL = {"type": "residual", "kernel": "rbf", "inducing": 3}


def sliced_arrays(graph, k):
    return {"neighbors": graph.neighbors[:, :k], "distances": graph.distances[:, :k]}


class TestThreads:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("cloud", [clouds.clustered, clouds.half_duplicates])
    def test_any_number_of_threads_makes_the_same_bytes(self, cloud, dtype):
        X = cloud(6000, 3).astype(dtype)
        for spec in (GraphSpec(k=10), *(GraphSpec(kind="vecchia", k=10, order=order) for order in ORDERS)):
            alone = build_graph(X, spec, threads=1)
            for threads in (2, 3):
                same_graphs(build_graph(X, spec, threads=threads), alone)

    def test_builds_at_once_equal_builds_in_turn(self):
        wanted = [
            (clouds.clustered(8000, 3), GraphSpec(k=10)),
            (clouds.uniform(8000, 2).astype(np.float32), GraphSpec(kind="vecchia", k=12, order="maximin")),
            (clouds.uniform(8000, 3), GraphSpec(kind="vecchia", k=8, order="hilbert")),
        ]
        in_turn = [build_graph(X, spec) for X, spec in wanted]
        with ThreadPoolExecutor(len(wanted)) as pool:
            for _ in range(3):
                at_once = [pool.submit(build_graph, X, spec, threads=2) for X, spec in wanted]
                for future, expected in zip(at_once, in_turn, strict=True):
                    same_graphs(future.result(), expected)

    @pytest.mark.usefixtures("warm")
    def test_build_leaves_the_event_loop_alone(self):
        async def longest_gap():
            gaps, last = [0.0], time.perf_counter()
            building = asyncio.create_task(asyncio.to_thread(build_long, GraphSpec(kind="vecchia", k=30)))
            while not building.done():
                await asyncio.sleep(0.005)
                gaps.append(time.perf_counter() - last)
                last = time.perf_counter()
            await building
            return gaps

        gaps = asyncio.run(longest_gap())
        assert len(gaps) > 20
        assert max(gaps) < 0.5


def build_long(spec, n=60_000, **options):
    return build_graph(clouds.uniform(n, 3), spec, **options)


SPECS = [GraphSpec(k=10), *(GraphSpec(kind="vecchia", k=10, order=order) for order in ORDERS)]


class TestProgress:
    @pytest.mark.parametrize("spec", SPECS, ids=[f"{spec.kind} {spec.order}" for spec in SPECS])
    @pytest.mark.parametrize("threads", [1, 2])
    def test_progress_rises_to_its_total_in_the_calling_thread(self, spec, threads):
        said = []

        def progress(phase, done, total):
            assert threading.current_thread() is caller
            said.append((phase, done, total))

        caller = threading.current_thread()
        build_long(spec, n=20_000, progress=progress, threads=threads)
        for phase in {phase for phase, _, _ in said}:
            done, totals = zip(*(counts for name, *counts in said if name == phase), strict=True)
            assert len(set(totals)) == 1
            assert done[0] == 0
            assert list(done) == sorted(done)
            assert done[-1] == totals[0]
        assert {phase for phase, _, _ in said} <= {"order", "tree", "search"}
        assert said[-1][0] == "search"

    def test_progress_errors_reach_the_caller(self):
        def fail(phase, done, total):
            raise KeyError(phase)

        with pytest.raises(KeyError):
            build_long(GraphSpec(), n=5000, progress=fail)
        assert core_threads() == []


def core_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pcct-core")]


class SetAfter:
    """A cancel token that a clock sets; worked_s: what this process had worked by then, which other processes do not slow."""

    def __init__(self, seconds):
        self._event, self.worked_s = threading.Event(), 0.0
        threading.Timer(seconds, self._set).start()

    def _set(self):
        self.worked_s = time.process_time()
        self._event.set()

    def is_set(self):
        return self._event.is_set()


@pytest.mark.usefixtures("warm")
class TestCancel:
    def test_a_set_token_stops_the_build_at_once(self):
        token = threading.Event()
        token.set()
        with pytest.raises(Cancelled):
            build_long(GraphSpec(), n=1000, cancel=token)

    @pytest.mark.parametrize("after_s", [0.02, 0.2])
    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.parametrize("spec", [GraphSpec(k=60), GraphSpec(kind="vecchia", k=60)], ids=["knn", "vecchia"])
    def test_cancel_stops_the_build_soon(self, spec, threads, after_s):
        X = clouds.uniform(150_000, 4)
        token = SetAfter(after_s)
        with pytest.raises(Cancelled):
            build_graph(X, spec, cancel=token, threads=threads)
        assert time.process_time() - token.worked_s < 0.5 * threads
        assert core_threads() == []

    def test_no_thread_outlives_a_build(self):
        build_long(GraphSpec(k=5), n=20_000, threads=3)
        assert core_threads() == []

    def test_a_build_after_a_cancelled_one_is_whole(self):
        X = clouds.clustered(3000, 2)
        with pytest.raises(Cancelled):
            build_graph(X, GraphSpec(kind="vecchia", k=20), cancel=SetAfter(0.001), threads=2)
        check_graph(vecchia_graph(X, k=20, order="random", threads=2), X)


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"max_pairs": 1e6}, "max_pairs is 1000000.0; use the whole number 1000000"),
        ({"max_pairs": "many"}, "max_pairs is 'many'; use a whole number from 0"),
        ({"max_pairs": -1}, "max_pairs is -1; use a whole number from 0"),
        ({"threads": 2.0}, "threads is 2.0; use a whole number"),
        ({"secret": "open sesame"}, r"secret is of type str; give bytes, such as secret.encode\(\), or none"),
        ({"secret": 5}, "secret is of type int; give bytes, or none"),
        ({"lookup": "auto"}, "lookup is of type str; give that of an earlier graph, graph.lookup, or none"),
    ],
)
def test_what_stands_beside_a_specification_is_refused_by_name(beside, said):
    with pytest.raises(InvalidInput, match=said):
        build_graph(np.ones((5, 2)), GraphSpec("radius", radius=1.0), **beside)
