"""Sessions against `pcct up`: while graphs are built, while it restarts, and when things are deleted under them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

import pcct_core as pc
from pcct_client import AsyncClient, Client, Graph, RefreshPolicy, ServerUnavailable, Session

pytestmark = pytest.mark.integration

PATIENCE_S = 60.0
EVERY_STEP = RefreshPolicy(tolerance=0.0, cooldown_epochs=0)
WISH = {"k": 5, "kernel": "matern32", "inducing": 20, "lengthscale": [0.3, 0.3, 0.2], "policy": EVERY_STEP}


@pytest.fixture(scope="module")
def service(service_url: str, connect: Callable[[str], httpx.Client]) -> Iterator[httpx.Client]:
    """An HTTP client of the service that the tests of this file share."""
    with connect(service_url) as http:
        yield http


@pytest.fixture
def client(service) -> Iterator[Client]:
    with Client(str(service.base_url)) as client:
        yield client


def built_here(points: np.ndarray, lengthscale: float | list[float]) -> pc.Graph:
    metric = pc.Residual(pc.Matern32(lengthscale=lengthscale), inducing=20)
    return pc.vecchia_graph(points, k=5, metric=metric)


def check_is_for(graph: Graph, points: np.ndarray, lengthscale: float | list[float]) -> None:
    for name, array in built_here(points, lengthscale).arrays().items():
        assert np.array_equal(getattr(graph, name), array), name


def test_a_loop_gets_newer_graphs_and_at_last_the_right_one(client, points) -> None:
    with client.track(points, **WISH) as session:
        versions, scale = [], [0.3, 0.3, 0.2]
        for _ in range(400):
            scale = [each * 0.998 for each in scale]
            graph = session.step(lengthscale=scale)
            versions.append(graph.version)
        graph = session.sync(PATIENCE_S)
        assert versions == sorted(versions)
        assert graph.version > versions[0]
        assert session.last_error is None
        check_is_for(graph, points, scale)


@pytest.mark.anyio
async def test_an_async_loop_does_as_well(service, points) -> None:
    async with AsyncClient(str(service.base_url)) as client, client.track(points, **WISH) as session:
        assert (await session.step()).version == 1
        await session.step(lengthscale=0.15)
        graph = await session.sync(PATIENCE_S)
        check_is_for(graph, points, [0.15, 0.15, 0.15])


def test_a_dataset_deleted_under_a_session_is_brought_again(client, service, points) -> None:
    with client.track(points, **WISH) as session:
        dataset = session.step().dataset
        service.delete(f"/v1/datasets/{dataset}").raise_for_status()
        session.step(lengthscale=0.17)
        check_is_for(session.sync(PATIENCE_S), points, [0.17] * 3)
        assert service.get(f"/v1/datasets/{dataset}").status_code == 200


def test_a_graph_deleted_under_a_session_is_built_again(client, service, points) -> None:
    with client.track(points, **WISH) as session:
        first = session.step()
        service.delete(f"/v1/graphs/{first.id}").raise_for_status()
        session.step(lengthscale=0.18)
        second = session.sync(PATIENCE_S)
        service.delete(f"/v1/graphs/{second.id}").raise_for_status()
        session.step(lengthscale=[0.3, 0.3, 0.2])
        third = session.sync(PATIENCE_S)
        assert third.id == first.id
        assert third.version > second.version
        check_is_for(third, points, [0.3, 0.3, 0.2])


def test_a_kernel_matrix_without_factor_shows_and_passes(client, points) -> None:
    metric = {"type": "residual", "kernel": "rbf", "inducing": {"count": 100}, "jitter": 0.0, "lengthscale": 0.2}
    with client.track(points, k=5, metric=metric, policy=EVERY_STEP) as session:
        first = session.step()
        session.step(lengthscale=50.0)
        with pytest.raises(ValueError, match="jitter"):
            session.sync(PATIENCE_S)
        assert session.last_error is not None
        assert session.step() is first
        session.step(lengthscale=0.21)
        assert session.sync(PATIENCE_S).spec["metric"]["lengthscale"] == 0.21
        assert session.last_error is None


def test_a_session_that_closes_leaves_no_track(client, service, points) -> None:
    with client.track(points, **WISH) as session:
        session.step(lengthscale=0.19)
        track = session.events[0]["track"]
        assert service.get(f"/v1/tracks/{track}").status_code == 200
    assert service.get(f"/v1/tracks/{track}").status_code == 404


def step_until_swap(session: Session, until: Callable, lengthscale: float) -> Graph:
    return until(lambda: graph if (graph := session.step(lengthscale=lengthscale)).changed else None)


def test_a_session_survives_restarts_of_the_service(start_up, tmp_path: Path, points) -> None:
    up = start_up(tmp_path / "data")
    with up.wait_ready() as http:
        url, port = str(http.base_url), http.base_url.port
    with Client(url) as client, client.track(points, **WISH) as session:
        first = session.step()
        up.end(signal.SIGTERM)
        assert session.step(lengthscale=0.2) is first
        assert isinstance(up.until(lambda: session.last_error), ServerUnavailable)
        assert session.step(lengthscale=0.21) is first

        again = start_up(tmp_path / "data", port=port)
        again.wait_ready().close()
        second = step_until_swap(session, up.until, 0.21)
        assert second.version == 2
        check_is_for(session.sync(PATIENCE_S), points, [0.21] * 3)
        up.until(lambda: session.last_error is None)

        again.end(signal.SIGTERM)
        empty = start_up(tmp_path / "empty", port=port)
        with empty.wait_ready() as http:
            third = step_until_swap(session, up.until, 0.22)
            check_is_for(session.sync(PATIENCE_S), points, [0.22] * 3)
            assert third.version > second.version
            assert http.get(f"/v1/datasets/{first.dataset}").status_code == 200
            assert session.last_error is None


def test_a_session_goes_on_beside_a_program_that_refreshes_its_track(client, service, points) -> None:
    wish = {**WISH, "lengthscale": 0.3, "policy": RefreshPolicy()}
    with client.track(points, **wish) as session:
        track = session.events[0]["track"]

        def refresh(**document: object) -> None:
            service.post(f"/v1/tracks/{track}/refresh", json=document).raise_for_status()

        refresh(epoch=10**6)
        refresh(metric={"variance": 5.0}, force=True)
        session.step(lengthscale=0.25)
        graph = session.sync(PATIENCE_S)
        check_is_for(graph, points, 0.25)
        assert graph.spec["metric"]["variance"] == 1.0
        assert session.shared is not None
        assert "epoch 1000001: the session counts on" in session.shared
        refresh(epoch=2**53 - 1)
        session.step(lengthscale=0.2)
        check_is_for(session.sync(PATIENCE_S), points, 0.2)
        assert session.last_error is None
        assert "another track" in session.shared
