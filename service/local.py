"""`pcct graph`: a graph without a server, from a .npy file (or standard input) to an .npz file (or standard output)."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from pcct_core.files import Stream, write_arrays
from pcct_core.points import as_points, check_request
from pcct_core.spec import GraphSpec, store_groups
from service.sources import (
    RECORD,
    STANDARD,
    InvalidFile,
    describe_graph,
    groups_file,
    read_points,
    split_column,
)

if TYPE_CHECKING:
    from pcct_core.graph import Graph
    from pcct_core.parallel import Progress

_LINE_EVERY_S = 2.0


def build_file(source: Path, spec: GraphSpec, target: Path, *, groups: str | None = None, force: bool = False) -> str:
    """Build the graph of the points in `source` (.npy), write it to `target` (.npz); return one line about it.

    groups: the column of the points that says in which group each is, or a .npy file of labels; None for one group.
    "-" stands for standard input and output. The target is replaced as a whole, or not at all. force: also where it is not a
    graph. Raises InvalidInput for files, points or a spec that cannot be used, before anything is built.
    """
    labels_file = None if groups is None else groups_file(groups, source)
    array = read_points(source)
    old = check_target(source, target, force=force)
    if labels_file is not None:
        check_target(labels_file, target, force=force, what="groups")
        spec = replace(spec, groups=store_groups(read_points(labels_file)))
    elif groups is not None:
        array, labels = split_column(array, groups)
        spec = replace(spec, groups=store_groups(labels))
    points = as_points(array)
    check_request(points, spec)
    from pcct_core.graph import build_graph

    started = time.perf_counter()
    with _shown_progress() as progress:
        graph = build_graph(points, spec, progress=progress)
    seconds = time.perf_counter() - started
    _write(graph, target)
    return _summary(graph, target, points.shape, seconds) + (f"; in place of {old}" if old else "")


def check_target(source: Path, target: Path, *, force: bool, what: str = "points") -> str | None:
    """Return what the graph will replace, None for nothing; raises InvalidFile where that must not be written.

    what: the source holds, a plural.
    That is the source by whatever name or link, a directory, a terminal, and, without force, any file that is not a graph.
    """
    name = "standard output" if target == STANDARD else str(target)
    into = _status(target, sys.stdout)
    if into is None:
        # The system finds nothing at absent/../X.npy, where realpath, by which the file is written, finds X.npy: ask both.
        for folder in (target.parent, Path(os.path.realpath(target)).parent):
            if target != STANDARD and not folder.is_dir():
                raise InvalidFile(f"{folder} is not a directory; make it first, or choose another -o")
        return None
    if stat.S_ISDIR(into.st_mode):
        raise InvalidFile(f"{target} is a directory; name a file, such as {target / 'graph.npz'}")
    read = _status(source, sys.stdin)
    if stat.S_ISREG(into.st_mode) and read is not None and os.path.samestat(read, into):
        raise InvalidFile(f"{name} is the file of the {what}, which would be lost; choose another -o")
    if sys.stdout.isatty() and _is_standard_output(into):
        raise InvalidFile("standard output is a terminal, which would show bytes; send it on, or name a file with -o")
    if target == STANDARD or stat.S_ISCHR(into.st_mode) or stat.S_ISFIFO(into.st_mode):
        return None
    return _replaced(target, into, force=force)


def _replaced(target: Path, into: os.stat_result, *, force: bool) -> str | None:
    """Return what a file at the target is, None for an empty one; raises InvalidFile for one that is not to be replaced."""
    if not stat.S_ISREG(into.st_mode):
        raise InvalidFile(f"{target} is not a file; choose another -o")
    if into.st_size == 0:
        return None
    old = describe_graph(target)
    if old is None and not force:
        raise InvalidFile(f"{target} is there and is not a graph; choose another -o, or replace it with --force")
    return old or f"a file of {into.st_size:,} bytes"


def _status(path: Path, standard: TextIO | None) -> os.stat_result | None:
    """Return the status of a file, or of the stream that "-" stands for; None where there is none, or none that tells."""
    try:
        if path != STANDARD:
            return path.stat()
        return None if standard is None else os.fstat(standard.fileno())
    except (OSError, ValueError):
        return None


def _is_standard_output(into: os.stat_result) -> bool:
    ours = _status(STANDARD, sys.stdout)
    return ours is not None and os.path.samestat(ours, into)


def _write(graph: Graph, target: Path) -> None:
    arrays = {**graph.arrays(), RECORD: np.array(_record_of(graph))}
    if target == STANDARD:
        np.savez(Stream(sys.stdout.buffer), **arrays)  # type: ignore[arg-type]
        sys.stdout.buffer.flush()
        return
    try:
        write_arrays(target, **arrays)
    except OSError as error:
        raise InvalidFile(f"{target} cannot be written: {error.strerror}") from error


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
    place = "standard output" if target == STANDARD else target
    if spec.groups is not None:
        wanted += f" within {graph.telemetry.counts['groups']:,} groups"
    exact = "exact" if certificate.exact else "not exact"
    return (
        f"{place}: {spec.kind} graph{order} of {shape[0]} points in {shape[1]} dimensions, {wanted}, {metric}; "
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
