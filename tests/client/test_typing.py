"""A program of a user passes `mypy --strict`; where it is wrong mypy says so (else the `ignore` there would be unused)."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

from pcct_client import (
    AsyncClient,
    AsyncSession,
    Children,
    Client,
    ClientError,
    Graph,
    GraphArrays,
    RefreshPolicy,
    Session,
    dataset_id,
)


def tell(state: str, progress: dict[str, Any]) -> None:
    print(state, progress["done"])


def use(X: NDArray[np.float32], frame: Any) -> Graph:
    with Client("http://127.0.0.1:8000", api_key="pcct_…", retries=2) as client:
        assert_type(client.upload(X, progress=tell), str)
        assert_type(client.knn(frame, k=10, columns=["lon", "lat"], metric="haversine", timeout=None), Graph)
        assert_type(client.query(X, X, k=1, progress=False), Graph)
        client.knn(X, k="10")  # type: ignore[arg-type]
        client.knn(X, progress=True)  # type: ignore[arg-type]
        policy = RefreshPolicy(tolerance=0.1, schedule="drift")
        with client.track(X, k=30, lengthscale=0.3, policy=policy) as session:
            assert_type(session, Session)
            assert_type(session.last_error, ClientError | None)
            return session.step(lengthscale=0.4)


async def use_async(X: list[list[float]]) -> None:
    async with AsyncClient() as client:
        assert_type(await client.vecchia(X, order="hilbert"), Graph)
        async with client.track(dataset_id(X), metric="euclidean") as session:
            assert_type(session, AsyncSession)
            assert_type(await session.sync(timeout=5), Graph)


def look(graph: Graph) -> None:
    assert_type(graph.neighbors, NDArray[np.int32])
    assert_type(graph.order, NDArray[np.int64] | None)
    assert_type(graph.children(), Children)
    assert_type(graph.conditioning_sets(), list[NDArray[np.int32]])
    assert_type(graph.to_torch(), GraphArrays)
    assert_type(graph.with_self().in_original_index(), Graph)
    graph.to_sparse("distances")  # type: ignore[arg-type]
    graph.to_frame("polars").head()
    graph.plot(0).figure.savefig("row.png")
"""


def test_a_program_of_a_user_is_strictly_typed(tmp_path):
    assert (ROOT / "pcct_client/py.typed").exists()
    (tmp_path / "program.py").write_text(PROGRAM)
    cache = ROOT / ".mypy_cache/user"
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}", "program.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert (done.stdout, done.returncode) == ("Success: no issues found in 1 source file\n", 0), (
        done.stdout + done.stderr
    )
