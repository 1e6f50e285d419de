"""Residual graphs over HTTP, built by the real core: the arrays that a specification names are datasets."""

import httpx
import numpy as np
import pytest

from pcct_client import AsyncClient
from pcct_client.errors import ClientError, InvalidRequest, NotFound
from pcct_core.graph import build_graph
from pcct_core.spec import GraphSpec, Inducing, Matern32, Residual
from tests import naive

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((200, 3))
SCALE = (0.3, 0.5, 0.8)
METRIC = {"type": "residual", "kernel": "matern32", "lengthscale": list(SCALE), "variance": 2.0}
NOWHERE = "0" * 64


def wish(**metric):
    return {"kind": "vecchia", "k": 5, "order": "random", "seed": 1, "metric": METRIC | metric}


@pytest.fixture
async def client(service, monkeypatch):
    """A client of the service, whose worker builds for real."""

    def build(gate, X, spec, **options):
        gate.builds.append((len(X), spec))
        return build_graph(X, spec, **options)

    monkeypatch.setattr(type(service.gate), "__call__", build)
    async with AsyncClient("http://test", transport=httpx.ASGITransport(service.app)) as client:
        yield client


def check(graph, metric):
    expected = build_graph(POINTS, GraphSpec("vecchia", 5, metric, "random", seed=1))
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(getattr(graph, name), array)
    assert graph.distances.dtype == np.float64
    assert graph.certificate["method"] == "dense"
    assert graph.certificate["degenerate_rows"] == expected.certificate.degenerate_rows


@pytest.mark.parametrize(
    ("inducing", "same"),
    [(30, Inducing(30)), ({"count": 30, "method": "random", "seed": 4}, Inducing(30, "random", 4))],
)
async def test_inducing_points_by_count(client, inducing, same):
    graph = await client.graph(POINTS, wish(inducing=inducing))
    check(graph, Residual(Matern32(SCALE, 2.0), inducing=same))
    assert graph.spec["metric"]["inducing"] == same.to_json()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
async def test_inducing_points_as_a_dataset(client, dtype):
    inducing = np.random.default_rng(1).random((30, 3)).astype(dtype)
    graph = await client.graph(POINTS, wish(inducing={"dataset": await client.upload(inducing)}, jitter=1e-4))
    check(graph, Residual(Matern32(SCALE, 2.0), inducing=inducing, jitter=1e-4))


async def test_factors_as_datasets(client, service):
    V, p = naive.residual_factors(POINTS, POINTS[:30], "matern32", np.array(SCALE), 2.0, jitter=1e-3)
    names = {"v": await client.upload(V), "p": await client.upload(p[:, None])}
    graph = await client.graph(POINTS, wish(**names))
    check(graph, Residual.from_factors(V, p, Matern32(SCALE, 2.0)))
    assert {name: graph.spec["metric"][name] for name in names} == names
    await client.graph(POINTS, wish(**names))
    assert len(service.gate.builds) == 1


@pytest.mark.parametrize("metric", [{"inducing": {"dataset": NOWHERE}}, {"v": NOWHERE, "p": NOWHERE}])
async def test_an_unknown_reference_is_not_found(client, service, metric):
    answer = await service.ask(await service.upload(POINTS), **wish(**metric))
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/unknown-dataset"
    assert NOWHERE in answer.json()["detail"]
    with pytest.raises(NotFound, match=NOWHERE):
        await client.graph(POINTS, wish(**metric))
    assert service.gate.builds == []


async def test_repeated_inducing_points_without_jitter_fail_and_name_the_remedy(client, service):
    repeated = await client.upload(np.vstack([POINTS[:20], POINTS[:20]]))
    spec = wish(inducing={"dataset": repeated}, jitter=0.0)
    answer = (await service.ask(await service.upload(POINTS), **spec)).json()
    assert answer["state"] == "failed"
    assert answer["error"]["type"] == "/problems/not-positive-definite"
    assert "use a larger jitter, fewer inducing points, or remove repeated ones" in answer["error"]["detail"]
    with pytest.raises(ClientError, match="larger jitter"):
        await client.graph(POINTS, spec)
    await client.graph(POINTS, wish(inducing={"dataset": repeated}, jitter=1e-4))


@pytest.mark.parametrize(
    ("shapes", "field"),
    [
        ({"inducing": (30, 2)}, "metric.inducing"),
        ({"inducing": (201, 3)}, "metric.inducing"),
        ({"v": (199, 30), "p": (200, 1)}, "metric.v"),
        ({"v": (200, 30), "p": (199, 1)}, "metric.p"),
    ],
)
async def test_arrays_that_do_not_fit_the_points_are_the_callers_fault(client, shapes, field):
    rng = np.random.default_rng(2)
    names = {name: await client.upload(rng.random(shape) + 0.1) for name, shape in shapes.items()}
    metric = {"inducing": {"dataset": names["inducing"]}} if "inducing" in names else names
    with pytest.raises(InvalidRequest) as refused:
        await client.graph(POINTS, wish(**metric))
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("metric", "field"),
    [
        ({"kernel": "matern72"}, "metric.kernel"),
        ({"lengthscale": 0}, "metric.lengthscale"),
        ({"lengthscale": [0.3, 0.3]}, "metric.lengthscale"),
        ({"variance": -1}, "metric.variance"),
        ({"inducing": 0}, "metric.inducing.count"),
        ({"inducing": 201}, "metric.inducing.count"),
        ({"inducing": {"dataset": "mine"}}, "metric"),
        ({"jitter": -1}, "metric.jitter"),
        ({"floor": 0}, "metric.floor"),
        ({"v": NOWHERE}, "metric.v"),
    ],
)
async def test_a_bad_metric_is_refused_at_the_door(service, metric, field):
    answer = await service.ask(await service.upload(POINTS), **wish(**metric))
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-spec"
    assert answer.json()["field"] == field
