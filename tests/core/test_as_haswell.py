"""`tests/as_haswell.py` has a second processor's arithmetic: that it is told to all that computes is seen in a process."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests import as_haswell

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="a Haswell is an x86-64 processor")

# What each library says that it will compute with, after it has read its environment.
_SAY = """
import json, numpy, scipy.linalg, threadpoolctl
from numba.core.registry import cpu_target
from tests import as_haswell
dispatched, there = as_haswell.numpy_features()
print(json.dumps({
    "numpy": as_haswell.wide_features(dispatched, there),
    "blas": [pool["architecture"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"],
    "numba": cpu_target.target_context.codegen().magic_tuple()[1:],
}))
"""


def test_every_library_takes_the_processor_that_it_is_told():
    variables = as_haswell.environment(as_haswell.wide_features(*as_haswell.numpy_features()))
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", _SAY],
        env={**os.environ, **variables, "PYTHONPATH": str(Path(as_haswell.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    found = json.loads(said.stdout)
    assert found["numpy"] == []
    assert set(found["blas"]) == {"Haswell"}
    assert found["numba"] == ["haswell", variables["NUMBA_CPU_FEATURES"]]
    assert "avx512" not in variables["NUMBA_CPU_FEATURES"]


@pytest.mark.parametrize(
    ("dispatched", "unused"),
    [
        (["X86_V3", "X86_V4", "AVX512_ICL", "AVX512_SPR"], ["X86_V4", "AVX512_ICL"]),  # NumPy 2.4
        (["SSE41", "AVX2", "FMA3", "AVX512F", "AVX512_SKX", "AVX512_SPR"], ["AVX512F", "AVX512_SKX"]),  # before
    ],
)
def test_only_what_numpy_and_the_processor_have_is_named(dispatched, unused):
    there = dict.fromkeys(dispatched, True) | {"AVX512_SPR": False}
    assert as_haswell.wide_features(dispatched, there) == unused
    assert as_haswell.environment(unused)["NPY_DISABLE_CPU_FEATURES"] == " ".join(unused)
    assert "NPY_DISABLE_CPU_FEATURES" not in as_haswell.environment([])


def test_a_run_that_would_repeat_the_usual_one_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(as_haswell, "numpy_features", lambda: ([], {"AVX2": True, "AVX512F": False}))
    as_haswell.main(["tests/core"])
    assert "no AVX-512: the usual run" in capsys.readouterr().out


def test_pytest_runs_as_on_a_haswell_where_the_processor_is_another(monkeypatch):
    monkeypatch.setattr(
        as_haswell, "numpy_features", lambda: (["X86_V4"], {"AVX2": True, "AVX512F": True, "X86_V4": True})
    )
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    as_haswell.main(["tests/core", "-x"])
    ((program, command, variables),) = calls
    assert (program, command[1:]) == (sys.executable, ["-m", "pytest", "tests/core", "-x"])
    assert as_haswell.environment(["X86_V4"]).items() <= variables.items()
    assert variables["PATH"] == os.environ["PATH"]
