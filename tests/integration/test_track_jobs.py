"""What happens to a track while the processes that build for it come and go."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest

from pcct_core.graph import build_graph
from pcct_core.spec import Euclidean, GraphSpec

pytestmark = pytest.mark.integration

SPEC = {"kind": "vecchia", "k": 5, "order": "given", "metric": {"type": "euclidean", "lengthscale": 2.0}}


class Track:
    """A track whose first build is held."""

    def __init__(self, deployment: Any, points: np.ndarray) -> None:
        self.deployment, self.points, self.client = deployment, points, deployment.client
        deployment.hold.touch()
        wish = {"dataset": self.client.upload(points), "spec": SPEC}
        self.url = self.client.post("/v1/tracks", json=wish).raise_for_status().headers["location"]
        deployment.until(lambda: len(deployment.builds) == 1)

    def read(self) -> dict[str, Any]:
        return self.client.get(self.url).raise_for_status().json()

    def refresh(self, lengthscale: float) -> dict[str, Any]:
        wish = {"metric": {"lengthscale": lengthscale}}
        return self.client.post(f"{self.url}/refresh", json=wish).raise_for_status().json()

    def check_reaches(self, version: int, lengthscale: float) -> None:
        """Wait until nothing is pending; compare the version that is published with a direct build."""
        self.deployment.until(lambda: self.read()["pending"] is None)
        track = self.read()
        assert (track["version"], track["error"]) == (version, None)
        expected = build_graph(self.points, GraphSpec("vecchia", 5, Euclidean(lengthscale), "given"))
        for name, array in expected.arrays().items():
            assert self.client.array(track["graph"], name).tobytes() == array.tobytes()


@pytest.fixture
def track(deployment: Any, points: np.ndarray) -> Track:
    return Track(deployment, points)


def test_build_of_a_killed_worker_is_taken_over(deployment: Any, track: Track) -> None:
    deployment.processes[-1].kill()
    deployment.start_worker()
    deployment.until(lambda: len(deployment.builds) == 2)
    assert len(set(deployment.builds)) == 2
    assert track.refresh(4.0)["decision"] == "scheduled"
    deployment.hold.unlink()
    track.check_reaches(2, 4.0)
    assert len(deployment.builds) == 3


def test_track_of_a_killed_worker_goes_on_with_what_was_requested_meanwhile(deployment: Any, track: Track) -> None:
    deployment.processes[-1].kill()
    for epoch in range(1, 6):
        assert track.refresh(2.0 * 2**epoch)["pending_version"] == epoch + 1
    deployment.hold.unlink()
    deployment.start_worker()
    track.check_reaches(6, 64.0)
    assert len(deployment.builds) == 2


def test_track_of_a_stopped_worker_is_handed_to_another(deployment: Any, track: Track) -> None:
    first = deployment.processes[-1]
    deployment.start_worker()
    first.send_signal(signal.SIGTERM)
    assert first.wait(90) == 0
    deployment.until(lambda: len(deployment.builds) == 2)
    deployment.hold.unlink()
    track.check_reaches(1, 2.0)


def test_fifty_refreshes_while_a_build_runs_cause_two_builds(deployment: Any, track: Track) -> None:
    deployment.start_worker()
    for epoch in range(1, 51):
        assert track.refresh(2.0 * 1.1**epoch)["decision"] == "scheduled"
    deployment.hold.unlink()
    track.check_reaches(51, 2.0 * 1.1**50)
    assert len(deployment.builds) == 2


def test_outage_of_the_store_is_survived(deployment: Any, track: Track) -> None:
    deployment.kill_store()
    assert deployment.client.get(track.url).status_code == 503
    deployment.revive_store()
    deployment.hold.unlink()
    track.check_reaches(1, 2.0)
    track.refresh(4.0)
    track.check_reaches(2, 4.0)


def test_build_for_a_track_does_not_keep_those_waiting_who_ask_for_a_graph(deployment: Any, track: Track) -> None:
    graph = deployment.client.ask(deployment.client.upload(track.points)).json()["id"]
    deployment.until(lambda: len(deployment.builds) == 2)
    assert deployment.client.state(graph) == "running"
    deployment.hold.unlink()
    track.check_reaches(1, 2.0)
