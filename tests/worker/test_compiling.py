from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcct_core.errors import Cancelled
from pcct_core.spec import GraphSpec, Haversine, Matern52, Residual
from worker.compiling import PHASE, Compiling, parts_needed

pytestmark = pytest.mark.anyio


def build(progress: Any, cancel: Any) -> str:
    return "built"


def test_a_build_waits_for_what_it_needs_and_says_so() -> None:
    compiling = Compiling({"float64": 4.0, "residual": 6.0})
    told: list[tuple[str, int, int]] = []
    said, answer = threading.Event(), []

    def progress(*what: Any) -> None:
        told.append(what)
        said.set()

    def wait() -> None:
        answer.append(compiling.after(["float64", "residual"], build, progress=progress, cancel=threading.Event()))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert said.wait(60)
    compiling.arrived(["float64"])
    assert compiling.missing == ("residual",)
    assert not answer
    compiling.arrived(["residual"])
    waiting.join(60)
    assert answer == ["built"]
    assert all(phase == PHASE and 0 <= done < total and total >= 100 for phase, done, total in told)


def test_a_build_waits_for_nothing_else() -> None:
    compiling = Compiling({"residual": 6.0})
    assert compiling.after(["float64"], build, cancel=threading.Event()) == "built"


def test_a_build_that_waits_can_be_cancelled() -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        Compiling({"float64": 4.0}).after(["float64"], build, cancel=cancel)


@pytest.mark.parametrize("program", ["/bin/false", "/none"])
async def test_a_compiler_that_fails_holds_no_build_back(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(sys, "executable", program)
    compiling = Compiling({"float64": 4.0, "residual": 6.0})
    await compiling.run([("float64", "dense"), ("residual",)])
    assert compiling.missing == ()


async def test_compilers_are_told_where_code_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\necho "$NUMBA_CACHE_DIR" >> "$NUMBA_CACHE_DIR/told"\n')
    compiler.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(compiler))
    await Compiling({"float64": 4.0, "residual": 6.0}, tmp_path).run([("float64",), ("residual",)])
    assert (tmp_path / "told").read_text() == f"{tmp_path}\n" * 2


@pytest.mark.parametrize(
    ("spec", "dtype", "d", "parts"),
    [
        (GraphSpec(), np.float64, 3, ("float64",)),
        (GraphSpec(), np.float64, 20, ("float64", "dense")),
        (GraphSpec(), np.float32, 3, ("float64", "float32")),
        (GraphSpec(kind="radius", radius=1.0), np.float32, 20, ("float64", "radius", "float32", "float32-radius")),
        (GraphSpec(metric=Haversine()), np.float64, 2, ("float64",)),
        (GraphSpec(metric=Residual(Matern52(1.0))), np.float32, 2, ("float64", "residual")),
    ],
)
def test_parts_needed(spec: GraphSpec, dtype: type, d: int, parts: tuple[str, ...]) -> None:
    assert parts_needed(spec, np.empty((1, d), dtype)) == parts


@pytest.mark.parametrize(("asked", "dtype"), [(np.float32, np.float64), (np.float64, np.float32)])
def test_parts_needed_by_queries_of_another_type(asked: type, dtype: type) -> None:
    assert parts_needed(GraphSpec(), np.empty((1, 2), dtype), np.dtype(asked)) == ("float64", "float32")
