"""What builds take of memory beside what the door estimates: `python -m tests.bench.build_memory [COUNT]`, 100 specifications.

Each is built in a process of its own, forked from one that has the code of all; what counts is the growth of its resident set
from before its arrays are there, at the peak. Prints one line each, and ends with 1 where a build takes more than MOST of its
estimate.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import pcct_core as pc
from pcct_core.spec import Stored
from pcct_core.warm import PARTS, warm
from worker.cost import build_bytes
from worker.query import QuerySpec, answer_query

MOST = 1.2
_SMALL = 600  # points of the builds that load the code
_PLAIN = ("euclidean", "scaled", "cosine", "haversine")
_GATES = ("auto", "off", "exact")
_ORDERS = ("maximin", "hilbert", "random", "coordinate", "own")
_KINDS = ("knn", "vecchia", "radius", "query", "residual", "residual", "factors", "groups", "query residual", "dense")


class Build(NamedTuple):
    """A build to measure: what, of how many points, and what it depends on. size: of the factors; 0 for none."""

    kind: str
    metric: str
    dtype: str
    n: int
    d: int
    k: int
    size: int
    order: str
    variant: int

    def small(self) -> Build:
        """Return a build that runs the same code."""
        return self._replace(n=4000 if self.kind == "dense" else _SMALL, k=min(self.k, 40), size=min(self.size, 16))


def draw_builds(count: int) -> Iterator[Build]:
    """Yield the builds, always the same ones."""
    rng = np.random.default_rng(7)
    for i in range(count):
        kind = _KINDS[i % len(_KINDS)]
        factors = kind in ("residual", "factors", "query residual")
        metric = "residual" if factors else "euclidean" if kind == "dense" else str(rng.choice(_PLAIN))
        d = 2 if metric == "haversine" else 24 if kind == "dense" else int(rng.choice([1, 2, 3, 5, 9, 17]))
        low, high = (4000, 20000) if factors or kind == "dense" else (20000, 200000)
        n = int(np.exp(rng.uniform(np.log(low), np.log(high))))
        yield Build(
            kind,
            metric,
            str(rng.choice(["float32", "float64"])),
            n,
            d,
            int(np.exp(rng.uniform(0, np.log(60)))),
            int(np.exp(rng.uniform(np.log(8), np.log(400)))) if factors else 0,
            str(rng.choice(_ORDERS)),
            int(rng.integers(1 << 30)),
        )


def make_points(build: Build, n: int) -> NDArray[Any]:
    """Return points that suit the metric."""
    rng = np.random.default_rng(build.variant)
    points = rng.uniform(-1.0, 1.0, (n, build.d)).astype(build.dtype)
    if build.metric == "haversine":
        points *= np.array((180, 90), build.dtype)
    return points


def make_metric(build: Build) -> pc.Residual | pc.Euclidean | pc.Cosine | pc.Haversine:
    """Return the metric, with the arrays that it names."""
    rng = np.random.default_rng(build.variant + 1)
    if build.metric == "residual":
        kernel = pc.Matern52(0.5, variance=1.0 + build.variant % 2)
        if build.kind == "factors":
            V = rng.normal(0.0, 0.5 / np.sqrt(build.size), (build.n, build.size))
            return pc.Residual(kernel, None, factors=(stored(V), stored(np.full((build.n, 1), 0.7))))
        given = build.variant % 4 == 0
        return pc.Residual(
            kernel, stored(rng.uniform(-1, 1, (build.size, build.d))) if given else build.size, jitter=1e-4
        )
    plain = {"euclidean": pc.Euclidean(), "cosine": pc.Cosine(), "haversine": pc.Haversine()}
    return plain.get(build.metric) or pc.Euclidean(tuple(np.linspace(0.5, 2.0, build.d)))


def stored(array: NDArray[Any]) -> Stored:
    """Return an array as a worker has it, which is told its name by the store."""
    return Stored("a" * 64, array.astype(np.float64, copy=False))


def make_spec(build: Build, points: NDArray[Any]) -> pc.GraphSpec:
    """Return the specification of a graph."""
    n, metric, rng = build.n, make_metric(build), np.random.default_rng(build.variant + 2)
    if build.kind == "radius":
        distances = pc.CoverTree.fit(points[:2000], metric).query(points[:50], 2).distances[:, 1]
        shrink = (min(n, 2000) * build.k / n) ** (1 / build.d) if build.metric != "cosine" else 1.0
        return pc.GraphSpec("radius", metric=metric, radius=float(np.median(distances) * min(1.0, shrink)))
    order: Any = stored(rng.permutation(n).reshape(-1, 1)) if build.order == "own" else build.order
    vecchia = build.kind == "vecchia" or (build.kind != "knn" and build.variant % 2 == 0)
    gate = _GATES[build.variant % 3] if build.metric == "residual" else "exact"
    return pc.GraphSpec(
        "vecchia" if vecchia else "knn",
        build.k,
        metric,
        order if vecchia else "maximin",
        accuracy="exact" if gate == "exact" else None,
        gate="auto" if gate == "exact" else gate,  # type: ignore[arg-type]
        groups=stored(rng.integers(0, n // (2 + build.variant % 9), (n, 1))) if build.kind == "groups" else None,
    )


def run_build(build: Build) -> int:
    """Build, and return how many bytes the door would have estimated."""
    points = make_points(build, build.n)
    if build.kind.startswith("query"):
        queries = make_points(build._replace(variant=build.variant + 3), build.n // 2)
        queries = queries.astype("float64" if build.variant % 2 else "float32")
        answer_query(points, queries, QuerySpec("a" * 64, build.k, make_metric(build)))
        return build_bytes(build.n, build.d, build.k, build.size, len(queries))
    graph = pc.build_graph(points, make_spec(build, points))
    k = build.k if graph.offsets is None else -(-len(graph.neighbors) // build.n)
    given, grouped = build.kind == "factors", build.kind == "groups"
    return build_bytes(build.n, build.d, k, build.size, given=given, grouped=grouped)


def measure(build: Build) -> tuple[int, int]:
    """Return the bytes that a build takes of this process, forked for it, and the estimate."""
    run_build(build.small())  # pages of code that come in when they are first run
    ctypes.CDLL(None).malloc_trim(0)  # what is free counts as the build's when it is used again
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    estimate = run_build(build)
    return _status("VmHWM") - before, estimate


def main(count: int) -> int:
    """Measure so many builds; return the exit code."""
    builds, over = list(draw_builds(count)), 0
    for part in PARTS:
        warm(part)
    for build in builds:
        run_build(build.small())
    for build in builds:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            taken, estimate = pool.apply(measure, (build,))
        over += taken > MOST * estimate
        print(f"{taken / estimate:5.2f}  {taken / 1e6:7.1f} of {estimate / 1e6:7.1f} MB  {build}", flush=True)
    print(f"{over} of {count} builds take more than {MOST} of their estimate")
    return 1 if over else 0


def _status(name: str) -> int:
    """Return a number of bytes that the kernel keeps for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
