"""What is compiled before anybody asks for it, in parts: `python -m pcct_core.warm PART …` compiles and keeps each part.

A part is what some graphs need and others do not: machine code for one type of coordinates, or for one metric. `warm` runs
small graphs of a part; what they need is then in files (`jit`), where other processes find it, and a mark says that the part
is complete. Processes that warm the same part at the same time wait for the first.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcct_core import jit
from pcct_core.covertree import CoverTree
from pcct_core.graph import build_graph
from pcct_core.lookup import GateLookup
from pcct_core.spec import Cosine, Euclidean, GraphSpec, Haversine, Inducing, Matern52, Order, Residual

# By part, the seconds that it compiles on a core of its own where the parts that it shares code with are there, for forecasts.
PARTS = {
    "float64": 9.0,
    "residual": 12.0,
    "radius": 5.0,
    "dense": 6.0,
    "float32": 9.0,
    "float32-radius": 5.0,
    "float32-dense": 6.0,
}
_ORDERS: tuple[Order, ...] = ("maximin", "hilbert")
_LOW_DIMENSION, _HIGH_DIMENSION = 3, 24


def warm(part: str) -> None:
    """Compile a part, or read it from the files where it is kept; returns when it is in memory and in the files."""
    mark = _mark(part)
    if mark is None:
        _RECIPES[part]()
        return
    with mark.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _RECIPES[part]()
        with suppress(OSError):
            mark.touch()


def is_warm(part: str) -> bool:
    """Return whether the files hold all that a part needs; False where no files are kept."""
    return any((directory / _mark_name(part, target)).exists() for directory, target in jit.places())


def main(parts: Sequence[str]) -> None:
    """Warm parts one after the other, and print the name of each that is; end when standard input does."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        sys.exit(f"usage: python -m pcct_core.warm PART …, with parts among {', '.join(PARTS)}")
    threading.Thread(target=_end_with_input, name="warm lifeline", daemon=True).start()
    for part in parts:
        if not is_warm(part):
            warm(part)
        print(part, flush=True)
    os._exit(0)  # not at the pace of a thread that reads


def _end_with_input() -> None:
    """End this process when whoever started it has gone: nobody would wait for what it compiles."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _mark(part: str) -> Path | None:
    directory = jit.code_directory()
    return None if directory is None else directory / _mark_name(part, jit.target_here())


def _mark_name(part: str, target: str) -> str:
    return f"warm.{part}-{jit.environment_digest(target)}@{jit.source_digest('warm')}{jit.SUFFIX}"


def _warm_trees(dtype: type) -> None:
    points = _points(dtype, _LOW_DIMENSION)
    build_graph(points, GraphSpec(kind="knn", k=4))
    for order in _ORDERS:
        build_graph(points, GraphSpec(kind="vecchia", k=4, order=order))
    for metric in (Euclidean(0.5), Cosine()):
        build_graph(points, GraphSpec(kind="knn", k=4, metric=metric))
    build_graph(points[:, :2], GraphSpec(kind="knn", k=4, metric=Haversine()))
    CoverTree.fit(points, Euclidean()).query(points[:40], 4)


def _warm_radius(dtype: type) -> None:
    points = _points(dtype, _LOW_DIMENSION)
    for metric in (Euclidean(), Cosine()):
        build_graph(points, GraphSpec(kind="radius", radius=0.1, metric=metric))
    CoverTree.fit(points, Euclidean()).query_radius(points[:40], 0.1)


def _warm_dense(dtype: type) -> None:
    # Boxes do not separate these: the search is the scan of all pairs.
    points = _points(dtype, _HIGH_DIMENSION, 4000)
    for metric in (Euclidean(), Cosine()):
        graph = build_graph(points, GraphSpec(kind="knn", k=4, metric=metric))
        assert graph.certificate.method == "dense"  # noqa: S101  (a test holds it)


def _warm_residual() -> None:
    # More points than share one tree, so that what lays out a smaller one is compiled too.
    points = _points(np.float64, 2, 2100)
    residual = Residual(Matern52(1.0), Inducing(8))
    build_graph(points, GraphSpec(kind="vecchia", k=4, metric=residual, order="given"))
    lookup = GateLookup(np.empty(0), np.full(1, 4.0), residual.kernel.name, 4)
    for kind in ("vecchia", "knn"):
        # So few points are audited at a low recall alone: all pairs cost less where more must be drawn.
        gated = GraphSpec(kind=kind, k=4, metric=residual, order="given", accuracy=0.9, gate="lookup")
        build_graph(points, gated, previous=build_graph(points, gated, lookup=lookup))
    CoverTree.fit(points[:300], residual).query(points[:40], 4)


def _points(dtype: type, d: int, n: int = 300) -> NDArray[Any]:
    return np.random.default_rng(0).uniform(1.0, 2.0, (n, d)).astype(dtype)


_RECIPES: dict[str, Callable[[], None]] = {
    "float64": lambda: _warm_trees(np.float64),
    "residual": _warm_residual,
    "radius": lambda: _warm_radius(np.float64),
    "dense": lambda: _warm_dense(np.float64),
    "float32": lambda: _warm_trees(np.float32),
    "float32-radius": lambda: _warm_radius(np.float32),
    "float32-dense": lambda: _warm_dense(np.float32),
}


if __name__ == "__main__":
    main(sys.argv[1:])
