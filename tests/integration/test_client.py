"""The client against real processes: interrupted, restarted under it, and its graphs in other libraries' hands."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from pcct_client import AsyncClient, Client, NotFound, dataset_id
from tests import naive

pytestmark = pytest.mark.integration

WAITING = """
import sys
import numpy as np
from pcct_client import Client

def tell(state, progress):
    print(state, flush=True)

with Client(sys.argv[1]) as client:
    client.vecchia(np.load(sys.argv[2]), k=5, order="given", progress=tell)
"""


def test_ctrl_c_cancels_the_job_and_ends_the_program(deployment, points, tmp_path) -> None:
    deployment.hold.touch()
    np.save(tmp_path / "points.npy", points)
    url = str(deployment.client.base_url)
    command = [sys.executable, "-c", WAITING, url, str(tmp_path / "points.npy")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.startswith("running") for line in process.stdout)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    graph = deployment.client.ask(deployment.client.upload(points)).json()
    assert graph["state"] in ("queued", "running"), "asked for anew, not found as it was"
    deployment.until(lambda: len(deployment.builds) == 2)
    deployment.hold.unlink()
    deployment.until(lambda: deployment.client.state(graph["id"]) == "ready")


def test_a_service_that_restarts_is_waited_for(start_up, tmp_path, points) -> None:
    first = start_up(tmp_path)
    with first.wait_ready() as http, Client(str(http.base_url), retries=30) as client:
        before = client.knn(points, k=5)
        first.end(signal.SIGTERM)
        again = threading.Timer(0.5, start_up, [tmp_path], {"port": http.base_url.port})
        again.start()
        after = client.knn(points, k=5)
        again.join()
    np.testing.assert_array_equal(before.neighbors, after.neighbors)


def test_graphs_of_the_service_fit_other_libraries(start_up, tmp_path, points) -> None:
    trees = pytest.importorskip("scipy.spatial")
    with start_up(tmp_path).wait_ready() as http, Client(str(http.base_url)) as client:
        radius = client.radius(points, radius=0.2)
        found = (
            trees.cKDTree(points).sparse_distance_matrix(trees.cKDTree(points), 0.2, output_type="coo_matrix").tocsr()
        )
        found.setdiag(0)
        found.eliminate_zeros()
        matrix = radius.to_sparse()
        np.testing.assert_allclose(matrix.toarray(), found.toarray())
        assert repr(radius) == f"Graph(radius, n=300, pairs={found.nnz}, euclidean, exact)"
        assert radius.with_self().to_sparse().nnz == found.nnz + 300
        offsets, rows = radius.children()
        np.testing.assert_array_equal(np.diff(offsets), np.diff(found.indptr), "within a radius is mutual")
        assert len(rows) == found.nnz

        answer = client.query(client.upload(points), points[:7], radius=0.2)
        assert answer.to_sparse().shape == (7, 300)
        assert client.query(points, points[:7], k=3).to_sparse("connectivity").sum() == 21

        vecchia = client.vecchia(points, k=5)
        sets = vecchia.conditioning_sets()
        assert [len(each) for each in sets] == [min(rank, 5) for rank in range(300)]
        np.testing.assert_array_equal(vecchia.points, points)
        with pytest.raises(NotFound, match="dataset"):
            client.knn("0" * 64, k=5)


CLOUDS = [np.random.default_rng(seed).random((30, 2)) for seed in range(10)]
TRUTH = [naive.knn(cloud, 3)[0] for cloud in CLOUDS]
ANSWERS = 100


def count_wrong(client: Client | AsyncClient, first: int, answers: int = ANSWERS) -> int:
    """Ask for the graphs of all clouds in turn, beginning with one; return how many answers were of other points."""
    turns = [(first + turn) % len(CLOUDS) for turn in range(answers)]

    async def ask(client: AsyncClient) -> list:
        rounds = [turns[start : start + len(CLOUDS)] for start in range(0, answers, len(CLOUDS))]
        return [graph for each in rounds for graph in await asyncio.gather(*(client.knn(CLOUDS[i], k=3) for i in each))]

    graphs = [client.knn(CLOUDS[i], k=3) for i in turns] if isinstance(client, Client) else asyncio.run(ask(client))
    right = (
        graph.dataset == dataset_id(CLOUDS[i]) and np.array_equal(graph.neighbors, TRUTH[i])
        for i, graph in zip(turns, graphs, strict=True)
    )
    return answers - sum(right)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_children_of_a_fork_and_their_parent_get_their_own_answers(service_url, kind) -> None:
    client = kind(service_url)
    assert count_wrong(client, 0, len(CLOUDS)) == 0
    children = []
    for number in range(1, 5):
        child = os.fork()
        if child == 0:
            wrong = ANSWERS + 1  # of one that failed
            try:
                wrong = count_wrong(client, 2 * number)
            finally:
                os._exit(wrong)
        children.append(child)
    assert count_wrong(client, 1) == 0
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    if isinstance(client, Client):
        client.close()  # the other leaves nothing open between its calls
