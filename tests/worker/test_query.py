from __future__ import annotations

import numpy as np
import pytest

from pcct_core.covertree import CoverTree
from pcct_core.errors import InvalidSpec, TooManyPairs
from pcct_core.graph import build_graph, radius_graph
from pcct_core.spec import Euclidean, GraphSpec, Inducing, Matern52, Residual
from tests import naive
from worker.keys import Keys
from worker.query import QuerySpec, TreeCache, answer_query, check_query, wish_from_json
from worker.run import Runner
from worker.settings import WorkerSettings
from worker.store import Dataset, GraphRecord, Store

QUERIES = "e" * 64


def test_query_spec_has_one_canonical_form() -> None:
    short = wish_from_json({"kind": "query", "queries": QUERIES, "k": 3, "metric": {"type": "euclidean"}})
    long = wish_from_json(
        {"metric": {"type": "euclidean", "lengthscale": 1.0}, "k": 3, "queries": QUERIES, "kind": "query"}
    )
    assert isinstance(short, QuerySpec)
    assert short.canonical() == long.canonical()
    assert wish_from_json(short.to_json()) == short


def test_query_spec_within_a_radius_has_one_canonical_form() -> None:
    one, other = (wish_from_json({"kind": "query", "queries": QUERIES, "radius": radius}) for radius in (2, 2.0))
    assert one.canonical() == other.canonical()
    assert one.to_json()["radius"] == 2.0
    assert "k" not in one.to_json()
    assert wish_from_json(one.to_json()) == one == QuerySpec(QUERIES, radius=2)


def test_wish_from_json_reads_graphs_too() -> None:
    assert wish_from_json({"kind": "knn", "k": 3}) == GraphSpec(k=3)


def test_query_spec_names_the_queries_first() -> None:
    metric = {"type": "residual", "kernel": "rbf", "inducing": {"dataset": "a" * 64}}
    spec = wish_from_json({"kind": "query", "queries": QUERIES, "metric": metric})
    assert spec.references() == (QUERIES, "a" * 64)


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({}, "queries"),
        ({"queries": "../x"}, "queries"),
        ({"queries": 3}, "queries"),
        ({"queries": QUERIES, "k": 0}, "k"),
        ({"queries": QUERIES, "radius": -1}, "radius"),
        ({"queries": QUERIES, "radius": 1, "k": 3}, "k"),
        ({"queries": QUERIES, "radius": 1, "metric": {"type": "residual", "kernel": "rbf"}}, "metric.type"),
        ({"queries": QUERIES, "order": "maximin"}, "order"),
        ({"queries": QUERIES, "accuracy": 0.9}, "accuracy"),
        ({"queries": QUERIES, "metric": "manhattan"}, "metric.type"),
    ],
)
def test_query_spec_names_the_field_at_fault(wish: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        wish_from_json({"kind": "query", **wish})
    assert caught.value.field == field


def test_check_query_allows_k_equal_to_n_and_no_more() -> None:
    check_query(1, 3, 1, Euclidean())
    check_query(5, 3, 5, Euclidean())
    with pytest.raises(InvalidSpec, match="k ≤ 5"):
        check_query(5, 3, 6, Euclidean())


def test_check_query_refuses_given_factors() -> None:
    metric = Residual.from_factors(np.ones((4, 2)), np.ones(4), Matern52())
    with pytest.raises(InvalidSpec, match="new points"):
        check_query(4, 2, 1, metric)


def test_answer_query_is_exact_on_a_grid_with_ties() -> None:
    points = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), -1).reshape(-1, 2)
    queries = points[::5] + np.array([0.5, 0.0])
    answer = answer_query(points, queries, QuerySpec(QUERIES, 36))
    squares = ((queries[:, None] - points) ** 2).sum(-1)
    expected = np.argsort(squares, axis=1, kind="stable")
    assert np.array_equal(answer.neighbors, expected)
    assert np.array_equal(answer.distances, np.sqrt(np.take_along_axis(squares, expected, 1)))
    assert answer.certificate.exact


def test_answer_query_lists_all_within_a_radius() -> None:
    points = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), -1).reshape(-1, 2)
    answer = answer_query(points, points[::5], QuerySpec(QUERIES, radius=2))
    offsets, neighbors, distances = naive.radius(points, points[::5], 2)
    assert np.array_equal(answer.arrays()["offsets"], offsets)
    assert np.array_equal(answer.neighbors, neighbors)
    assert np.array_equal(answer.distances, distances)
    assert answer.telemetry.counts["pairs"] == len(neighbors)
    with pytest.raises(TooManyPairs):
        answer_query(answer.tree, points, QuerySpec(QUERIES, radius=2), max_pairs=50)


@pytest.mark.parametrize(("d", "method"), [(3, "tree"), (24, "dense")])
def test_answer_query_says_how_it_was_found(d: int, method: str) -> None:
    points = np.random.default_rng(d).random((2200, d))
    answer = answer_query(points, points, QuerySpec(QUERIES, 5))
    assert answer.certificate.method == method
    assert np.array_equal(answer.neighbors[:, 0], np.arange(2200))


class TestTreeCache:
    TREES = tuple(CoverTree.fit(np.random.default_rng(seed).random((100, 2))) for seed in range(3))
    SIZE = TREES[0].nbytes

    def test_keeps_what_was_asked_last(self) -> None:
        cache = TreeCache(2 * self.SIZE)
        for name, tree in zip("ab", self.TREES, strict=False):
            cache.keep(name, Euclidean(), tree)
        assert cache.find("a", Euclidean()) is self.TREES[0]
        cache.keep("c", Euclidean(), self.TREES[2])
        assert cache.find("b", Euclidean()) is None
        assert cache.find("a", Euclidean()) is self.TREES[0]
        assert cache.find("c", Euclidean()) is self.TREES[2]

    def test_keeps_one_tree_for_each_metric(self) -> None:
        cache = TreeCache(2 * self.SIZE)
        cache.keep("a", Euclidean(), self.TREES[0])
        assert cache.find("a", Euclidean(2.0)) is None
        cache.keep("a", Euclidean(2.0), self.TREES[1])
        assert cache.find("a", Euclidean()) is self.TREES[0]
        cache.drop("a")
        assert cache.find("a", Euclidean()) is cache.find("a", Euclidean(2.0)) is None

    def test_keeps_no_tree_that_is_too_large(self) -> None:
        cache = TreeCache(self.SIZE - 1)
        cache.keep("a", Euclidean(), self.TREES[0])
        assert cache.find("a", Euclidean()) is None

    def test_counts_the_factors_of_a_residual_process(self) -> None:
        points = np.random.default_rng(0).random((100, 2))
        assert CoverTree.fit(points, Residual(Matern52(0.5), Inducing(16))).nbytes > self.SIZE + 100 * 16 * 8


@pytest.fixture
async def queries(store: Store) -> Dataset:
    array = np.random.default_rng(8).random((20, 3))
    async with store.upload(*array.shape, "float64") as upload:
        await upload.write(array.tobytes())
        dataset, _ = await upload.commit(QUERIES)
    return dataset


async def run(store: Store, dataset: Dataset, spec: QuerySpec) -> str:
    record, wanted = await store.request_graph(dataset.id, spec)
    assert wanted

    def build(*arguments: object, **options: object) -> object:
        raise AssertionError("a query builds no graph")

    await Runner(store, None, WorkerSettings(), build).run_job(record.namespace, record.id, record.request)  # type: ignore[arg-type]
    return record.id


@pytest.mark.anyio
@pytest.mark.parametrize("metric", [Euclidean(), Residual(Matern52(0.5), Inducing(16))])
async def test_run_job_publishes_the_answer_of_a_query(
    store: Store, dataset: Dataset, queries: Dataset, points: np.ndarray, metric: Euclidean | Residual
) -> None:
    id = await run(store, dataset, QuerySpec(QUERIES, 4, metric))
    expected = CoverTree.fit(points, metric).query(await store.load_points(QUERIES), 4)
    assert np.array_equal(await store.load_array(id, "neighbors"), expected.neighbors)
    assert np.array_equal(await store.load_array(id, "distances"), expected.distances)
    record = await store.graph(id)
    assert record is not None
    assert record.state == "ready"
    assert record.certificate is not None
    assert record.certificate["exact"]
    assert not (await store.request_graph(dataset.id, QuerySpec(QUERIES, 4, metric)))[1]


async def ask(runner: Runner, store: Store, dataset: Dataset, k: int) -> GraphRecord:
    record, _ = await store.request_graph(dataset.id, QuerySpec(QUERIES, k))
    await runner.run_job(record.namespace, record.id, record.request)
    ended = await store.graph(record.id)
    assert ended is not None
    return ended


def query_runner(store: Store, **settings: int) -> Runner:
    return Runner(store, None, WorkerSettings(**settings), None)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_run_job_answers_the_second_query_from_the_same_tree(
    store: Store, dataset: Dataset, queries: Dataset, points: np.ndarray
) -> None:
    runner = query_runner(store)
    first, second = [await ask(runner, store, dataset, k) for k in (3, 4)]
    assert first.telemetry is not None
    assert second.telemetry is not None
    assert "build" in first.telemetry["seconds"]
    assert "build" not in second.telemetry["seconds"]
    assert second.telemetry["counts"] == {"n": 200, "d": 3, "queries": 20, "k": 4}
    expected = CoverTree.fit(points).query(await store.load_points(QUERIES), 4)
    assert np.array_equal(await store.load_array(second.id, "neighbors"), expected.neighbors)


@pytest.mark.anyio
async def test_run_job_fits_a_tree_again_that_was_not_kept(store: Store, dataset: Dataset, queries: Dataset) -> None:
    runner = query_runner(store, tree_cache_bytes=0)
    for k in (3, 4):
        answered = await ask(runner, store, dataset, k)
        assert answered.telemetry is not None
        assert "build" in answered.telemetry["seconds"]


@pytest.mark.anyio
async def test_run_job_does_not_answer_for_a_deleted_dataset(
    store: Store, dataset: Dataset, queries: Dataset, points: np.ndarray
) -> None:
    runner = query_runner(store)
    assert (await ask(runner, store, dataset, 3)).state == "ready"
    record, _ = await store.request_graph(dataset.id, QuerySpec(QUERIES, 4))
    await store.delete_dataset(dataset.id)  # while the job waits
    await runner.run_job(record.namespace, record.id, record.request)
    failed = await store.graph(record.id)
    assert failed is not None
    assert failed.error is not None
    assert failed.error["type"] == "unknown-dataset"
    async with store.upload(*points.shape, "float64") as upload:
        await upload.write(points.tobytes())
        await upload.commit(dataset.id)
    again = await ask(runner, store, dataset, 4)
    assert again.telemetry is not None
    assert "build" in again.telemetry["seconds"]


@pytest.mark.anyio
async def test_run_job_says_that_a_radius_holds_too_much(store: Store, dataset: Dataset, queries: Dataset) -> None:
    for spec in (GraphSpec("radius", radius=9), QuerySpec(QUERIES, radius=9)):
        record, _ = await store.request_graph(dataset.id, spec)
        runner = Runner(store, None, WorkerSettings(max_graph_bytes=12 * 1000), build_graph)
        await runner.run_job(record.namespace, record.id, record.request)
        failed = await store.graph(record.id)
        assert failed is not None
        assert failed.error is not None
        assert failed.error["field"] == "radius"
        assert "at most 1,000 pairs are allowed; use a radius of about" in failed.error["detail"]


@pytest.mark.anyio
@pytest.mark.parametrize("radius", [0.0, 0.2, 9.0])
async def test_run_job_publishes_a_radius_graph(
    store: Store, dataset: Dataset, points: np.ndarray, radius: float
) -> None:
    record, _ = await store.request_graph(dataset.id, GraphSpec("radius", radius=radius))
    await Runner(store, None, WorkerSettings(), build_graph).run_job(record.namespace, record.id, record.request)
    for name, array in radius_graph(points, radius).arrays().items():
        assert np.array_equal(await store.load_array(record.id, name), array)


@pytest.mark.anyio
async def test_run_job_says_that_the_queries_are_gone(store: Store, dataset: Dataset, queries: Dataset) -> None:
    spec = QuerySpec(QUERIES, 4)
    record, _ = await store.request_graph(dataset.id, spec)
    await store.redis.unlink(Keys().dataset(QUERIES))
    await Runner(store, None, WorkerSettings(), None).run_job(record.namespace, record.id, record.request)  # type: ignore[arg-type]
    failed = await store.graph(record.id)
    assert failed is not None
    assert failed.error is not None
    assert failed.error["type"] == "unknown-dataset"
    assert QUERIES in failed.error["detail"]


@pytest.mark.parametrize("radius", [None, 40.0])
@pytest.mark.parametrize("asking", [np.float32, np.float64])
def test_queries_are_answered_in_the_wider_type_of_both_datasets(asking: type, radius: float | None) -> None:
    rng = np.random.default_rng(0)
    X, Q = (rng.uniform(4500000, 4500300, (n, 2)).astype(dtype) for n, dtype in ((300, np.float32), (40, asking)))
    answer = answer_query(X, Q, QuerySpec(QUERIES, 5) if radius is None else QuerySpec(QUERIES, radius=radius))
    if radius is None:
        neighbors, distances = naive.query(X.astype(asking), Q, 5)
    else:
        _, neighbors, distances = naive.radius(X.astype(asking), Q, radius)
    np.testing.assert_array_equal(answer.neighbors, neighbors)
    np.testing.assert_array_equal(answer.distances, distances)
    assert answer.distances.dtype == asking
    assert answer.certificate.dtype == np.dtype(asking).name
