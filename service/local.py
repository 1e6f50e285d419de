"""`pcct graph`: a graph without a server, from a .npy file to an .npz file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcct_core.errors import InvalidInput, InvalidPoints
from pcct_core.points import as_points, check_request
from pcct_core.spec import GraphSpec

if TYPE_CHECKING:
    from pcct_core.graph import Graph
    from pcct_core.parallel import Progress

RECORD = "record"  # the member of the written file that says how the graph was made, as JSON text
_LINE_EVERY_S = 2.0
_MAGIC = b"\x93NUMPY"


class InvalidFile(InvalidInput):
    """A file named on the command line cannot be used."""


def build_file(source: Path, spec: GraphSpec, target: Path) -> str:
    """Build the graph of the points in `source` (.npy), write it to `target` (.npz); return one line about it.

    The target is replaced as a whole, or not at all. Raises InvalidInput for files, points or a spec that cannot be
    used, before anything is built.
    """
    points = as_points(read_points(source))
    check_request(points, spec)
    _check_target(target)
    from pcct_core.graph import build_graph

    started = time.perf_counter()
    with _shown_progress() as progress:
        graph = build_graph(points, spec, progress=progress)
    seconds = time.perf_counter() - started
    _write(graph, target)
    return _summary(graph, target, points.shape, seconds)


def read_points(path: Path) -> np.ndarray[Any, Any]:
    """Return the array of a .npy file, mapped and not read; raises InvalidFile or InvalidPoints."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read: {error.strerror}") from error
    if magic != _MAGIC:
        raise InvalidFile(f"{path} is not a .npy file; save the points with np.save({str(path)!r}, X)")
    try:
        # Mapping fails at once when the header claims more than the file holds; reading would first take the memory.
        array: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        if "object" in str(error):
            raise InvalidPoints(
                f"{path} holds Python objects, which are never unpickled; save X.astype('float64') instead"
            ) from error
        raise InvalidFile(f"{path} is cut short or damaged ({error}); save the points again with np.save") from error
    return array


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise InvalidFile(f"{target} is a directory; name a file, such as {target / 'graph.npz'}")
    if not target.parent.is_dir():
        raise InvalidFile(f"{target.parent} is not a directory; make it first, or choose another -o")


def _write(graph: Graph, target: Path) -> None:
    partial = target.with_name(f".{target.name}.part")
    try:
        with partial.open("wb") as file:
            np.savez(file, **graph.arrays(), **{RECORD: np.array(_record_of(graph))})  # type: ignore[arg-type]
        partial.replace(target)
    except OSError as error:
        raise InvalidFile(f"{target} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _record_of(graph: Graph) -> str:
    return json.dumps(
        {
            "spec": graph.spec.to_json(),
            "certificate": graph.certificate.to_json(),
            "telemetry": graph.telemetry.to_json(),
        }
    )


def _summary(graph: Graph, target: Path, shape: tuple[int, ...], seconds: float) -> str:
    spec, certificate = graph.spec, graph.certificate
    metric = spec.metric.to_json()["type"]
    order = f" in {spec.order} order" if spec.kind == "vecchia" else ""
    wanted = f"k = {spec.k}"
    if graph.offsets is not None:
        each = len(graph.neighbors) / shape[0]
        wanted = f"{len(graph.neighbors):,} neighbors within {spec.radius:g}, {each:.1f} per point"
    exact = "exact" if certificate.exact else "not exact"
    return (
        f"{target}: {spec.kind} graph{order} of {shape[0]} points in {shape[1]} dimensions, {wanted}, {metric}; "
        f"{exact} in {certificate.dtype} ({certificate.method}); {seconds:.2f} s"
    )


@contextmanager
def _shown_progress() -> Iterator[Progress]:
    """Show progress on standard error: a bar on a terminal, else a plain line every few seconds."""
    if sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield _Lines()


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("start", total=None)
        current = "start"

        def show(phase: str, done: int, total: int) -> None:
            nonlocal current
            if phase != current:
                current = phase
                bar.reset(task, description=phase, total=total)
            bar.update(task, completed=done, total=total)

        yield show


class _Lines:
    """Prints a line now and then; a build shorter than that prints none."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _LINE_EVERY_S

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Take one report of the build."""
        now = time.monotonic()
        if now >= self._next and total:
            self._next = now + _LINE_EVERY_S
            print(f"pcct: {phase} {100 * done // total} %", file=sys.stderr, flush=True)
