import os
import subprocess
import sys
from pathlib import Path

import pytest

import pcct_core

ROOT = Path(__file__).parents[2]


def run_python(*args, **environment):
    """Run a fresh Python at the root of the checkout; its output, which must be that of a success."""
    answer = subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.parametrize("module", ["pcct_core", "pcct_core.spec", "pcct_core.points", "pcct_core.errors"])
def test_reading_a_specification_does_not_load_the_compiler(module):
    code = f"import sys, {module}; print([name for name in ('numba', 'llvmlite', 'scipy') if name in sys.modules])"
    assert run_python("-W", "error", "-c", code).strip() == "[]"


def test_names_of_specifications_load_no_compiler():
    code = "import sys, pcct_core as pc; pc.GraphSpec(); pc.InvalidSpec; dir(pc); assert 'numba' not in sys.modules"
    run_python("-c", code)


def test_every_public_name_is_there():
    for name in pcct_core.__all__:
        assert getattr(pcct_core, name).__name__ == name
        assert name in dir(pcct_core)
    with pytest.raises(AttributeError, match="no attribute 'knn'"):
        _ = pcct_core.knn


@pytest.mark.usefixtures("warm")
def test_a_fresh_process_reaches_its_first_graph_from_the_cache():
    code = """
import numpy as np
import pcct_core as pc
for build in (pc.knn_graph, pc.vecchia_graph):
    build(np.random.default_rng(0).random((1000, 3)))
from pcct_core.search import search_groups
print(sum(search_groups.stats.cache_misses.values()))
"""
    assert run_python("-c", code) == "0\n"


def test_the_core_gives_the_same_answers_with_the_jit_off():
    options = ("-m", "jitless", "-p", "no:cacheprovider")
    said = run_python("-m", "pytest", "tests/core", *options, NUMBA_DISABLE_JIT="1")
    assert " passed" in said
