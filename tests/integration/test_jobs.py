"""What happens to a job while processes come and go."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pcct_core.graph import vecchia_graph

pytestmark = pytest.mark.integration


def check_finishes(deployment, graph: str, points: np.ndarray) -> None:
    deployment.until(lambda: deployment.client.state(graph) == "ready")
    expected = vecchia_graph(points, 5, "given")
    for name, array in expected.arrays().items():
        assert np.array_equal(deployment.client.array(graph, name), array)


@pytest.fixture
def held(deployment, points) -> str:
    """The id of a graph whose build has started and is held."""
    deployment.hold.touch()
    graph = deployment.client.ask(deployment.client.upload(points)).json()["id"]
    deployment.until(lambda: deployment.client.state(graph) == "running")
    deployment.until(lambda: len(deployment.builds) == 1)
    return graph


def test_twenty_identical_requests_at_once_build_once(deployment, points) -> None:
    deployment.hold.touch()
    dataset = deployment.client.upload(points)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: deployment.client.ask(dataset), range(20)))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["id"] for answer in answers}) == 1
        deployment.until(lambda: deployment.builds)
        waiting = [pool.submit(deployment.client.ask, dataset, 30) for _ in range(10)]
        deployment.hold.unlink()
        assert {answer.result().json()["state"] for answer in waiting} == {"ready"}
    assert len(deployment.builds) == 1


def test_progress_is_visible_while_a_build_runs(deployment, held) -> None:
    def progress():
        return deployment.client.get(f"/v1/graphs/{held}").json()["progress"]

    shown = deployment.until(progress)
    assert (shown["phase"], shown["done"], shown["total"]) == ("held", 1, 4)


def test_job_of_a_killed_worker_is_redelivered_and_finishes(deployment, held, points) -> None:
    deployment.processes[-1].kill()
    deployment.start_worker()
    deployment.until(lambda: len(deployment.builds) == 2)
    assert len(set(deployment.builds)) == 2
    deployment.hold.unlink()
    check_finishes(deployment, held, points)


def test_job_of_a_stopped_worker_is_handed_to_another(deployment, held, points) -> None:
    first = deployment.processes[-1]
    deployment.start_worker()
    first.send_signal(signal.SIGTERM)
    assert first.wait(90) == 0
    deployment.until(lambda: len(deployment.builds) == 2)
    deployment.hold.unlink()
    check_finishes(deployment, held, points)


def test_deleted_graph_stops_its_build_and_can_be_asked_for_again(deployment, held, points) -> None:
    assert deployment.client.delete(f"/v1/graphs/{held}").status_code in (200, 204)
    assert deployment.client.get(f"/v1/graphs/{held}").status_code == 404
    dataset = deployment.client.upload(points)
    assert deployment.client.ask(dataset).json()["id"] == held
    deployment.until(lambda: len(deployment.builds) == 2)
    deployment.hold.unlink()
    check_finishes(deployment, held, points)


def test_outage_of_the_store_is_answered_and_survived(deployment, held, points) -> None:
    deployment.kill_store()
    answer = deployment.client.get(f"/v1/graphs/{held}")
    assert answer.status_code == 503
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert "Retry-After" in answer.headers
    assert deployment.client.get("/readyz").status_code == 503
    assert deployment.client.get("/livez").status_code == 200
    deployment.revive_store()
    deployment.hold.unlink()
    check_finishes(deployment, held, points)
    later = deployment.client.upload(points[:100])
    assert deployment.client.ask(later, 30).json()["state"] == "ready"


def test_no_worker_is_told_and_not_hidden(deployment, points) -> None:
    deployment.processes[-1].send_signal(signal.SIGTERM)
    assert deployment.processes[-1].wait(90) == 0
    answer = deployment.client.get("/readyz")
    assert answer.status_code == 503
    assert "worker" in answer.json()["detail"]
    graph = deployment.client.ask(deployment.client.upload(points)).json()["id"]
    assert deployment.client.state(graph) == "queued"
    deployment.start_worker()
    check_finishes(deployment, graph, points)
