from __future__ import annotations

import numpy as np
import pytest

from pcct_core.covertree import CoverTree
from pcct_core.errors import InvalidSpec
from pcct_core.spec import Euclidean, GraphSpec, Inducing, Matern52, Residual
from worker.query import QuerySpec, answer_query, check_query, wish_from_json
from worker.run import Runner
from worker.settings import WorkerSettings
from worker.store import Dataset, Keys, Store

QUERIES = "e" * 64


def test_query_spec_has_one_canonical_form() -> None:
    short = wish_from_json({"kind": "query", "queries": QUERIES, "k": 3, "metric": {"type": "euclidean"}})
    long = wish_from_json(
        {"metric": {"type": "euclidean", "lengthscale": 1.0}, "k": 3, "queries": QUERIES, "kind": "query"}
    )
    assert isinstance(short, QuerySpec)
    assert short.canonical() == long.canonical()
    assert wish_from_json(short.to_json()) == short


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

    await Runner(store, None, WorkerSettings(), build).run_job(record.id, record.request)  # type: ignore[arg-type]
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


@pytest.mark.anyio
async def test_run_job_says_that_the_queries_are_gone(store: Store, dataset: Dataset, queries: Dataset) -> None:
    spec = QuerySpec(QUERIES, 4)
    record, _ = await store.request_graph(dataset.id, spec)
    await store.redis.unlink(Keys.dataset(QUERIES))
    await Runner(store, None, WorkerSettings(), None).run_job(record.id, record.request)  # type: ignore[arg-type]
    failed = await store.graph(record.id)
    assert failed is not None
    assert failed.error is not None
    assert failed.error["type"] == "unknown-dataset"
    assert QUERIES in failed.error["detail"]
