"""`pcct up` as a user meets it."""

from __future__ import annotations

import io
import os
import signal
import socket

import numpy as np
import pytest

from pcct_core.graph import knn_graph

pytestmark = pytest.mark.integration


def as_npy(points: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, points)
    return out.getvalue()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_up_serves_stops_cleanly_and_keeps_everything(start_up, tmp_path, folder_of_namesakes, points, number) -> None:
    data_dir = tmp_path / "data"
    up = start_up(data_dir, cwd=folder_of_namesakes)  # of which nothing may be run
    with up.wait_ready() as client:
        answer = client.post("/v1/knn?k=4", content=as_npy(points)).raise_for_status()
        with np.load(io.BytesIO(answer.content)) as arrays:
            assert np.array_equal(arrays["neighbors"], knn_graph(points, 4).neighbors)
        dataset = client.upload(points)
        graph = client.ask(dataset, 30).json()
        assert graph["state"] == "ready"
        neighbors = client.array(graph["id"], "neighbors")
    children = up.children()
    assert len(children) == 4  # watchdog, server, API, worker
    status, out, err = up.end(number)
    assert status == 0
    assert out == ""
    assert "Traceback" not in err
    assert not any(up.is_alive(pid) for pid in children)

    up = start_up(data_dir)
    with up.wait_ready() as client:
        assert client.head(f"/v1/datasets/{dataset}").status_code == 200
        again = client.get(f"/v1/graphs/{graph['id']}").json()
        assert again["state"] == "ready"
        assert again["certificate"] == graph["certificate"]
        assert np.array_equal(client.array(graph["id"], "neighbors"), neighbors)
    assert up.end(signal.SIGTERM)[0] == 0


def test_up_killed_leaves_no_child_and_its_data(start_up, tmp_path, points) -> None:
    up = start_up(tmp_path / "data")
    with up.wait_ready() as client:
        dataset = client.upload(points)
    children = up.children()
    assert len(children) == 4
    up.end(signal.SIGKILL)
    up.until(lambda: not any(up.is_alive(pid) for pid in children))
    up = start_up(tmp_path / "data")
    with up.wait_ready() as client:
        assert client.head(f"/v1/datasets/{dataset}").status_code == 200
    assert up.end(signal.SIGTERM)[0] == 0


def test_up_starts_a_killed_part_again(start_up, tmp_path, points) -> None:
    log = tmp_path / "log"
    with log.open("w") as errors:
        up = start_up(tmp_path / "data", stderr=errors)
    with up.wait_ready() as client:
        dataset = client.upload(points)
        for k, name in enumerate(["service.cli serve", "service.cli work", "valkey-server unixsocket"], 1):
            children = up.children()
            (victim,) = (pid for pid, command in children.items() if name in command and "lifeline.py" not in command)
            os.kill(victim, signal.SIGKILL)
            up.until(lambda victim=victim: not up.is_alive(victim))
            up.until(client.is_ready)
            spec = {"kind": "knn", "k": k}  # asked for the first time, so that it must be built
            graph = client.post("/v1/graphs", json={"dataset": dataset, "spec": spec}).raise_for_status().json()["id"]
            up.until(lambda graph=graph: client.state(graph) == "ready")
    status, _, _ = up.end(signal.SIGTERM)
    assert status == 0
    assert log.read_text().count("ended unexpectedly") == 3


def test_up_on_a_port_in_use_says_so_in_one_line(start_up, tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        up = start_up(tmp_path / "data", port=port)
        out, err = up.process.communicate(timeout=90)
    assert up.process.returncode == 1
    assert out == ""
    assert err.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use); choose another --port" in err
    assert not (tmp_path / "data").exists()


def test_up_twice_on_one_directory_says_so_in_one_line(start_up, tmp_path) -> None:
    first = start_up(tmp_path / "data")
    with first.wait_ready() as client:
        second = start_up(tmp_path / "data")
        _, err = second.process.communicate(timeout=90)
        assert second.process.returncode == 1
        assert err.count("\n") == 1
        assert f"in use by another pcct (process {first.process.pid})" in err
        assert client.is_ready()
    assert first.end(signal.SIGTERM)[0] == 0


def test_up_stopped_while_starting_leaves_nothing(start_up, tmp_path) -> None:
    up = start_up(tmp_path / "data")
    assert any(line.startswith("pcct keeps its data in ") for line in up.process.stdout)
    children = up.children()
    status, _, err = up.end(signal.SIGTERM)
    assert status == 0
    assert "Traceback" not in err
    assert not any(up.is_alive(pid) for pid in children)
