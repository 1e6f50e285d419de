"""The recipes of docs/recipes run as they stand, against a service of their own, and reach what they promise."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pcct_client import Client
from tests import naive

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs/recipes"
URL = "http://127.0.0.1:8000"

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]  # the first fit on a machine compiles its likelihood


@pytest.fixture
def url(service_url):
    return service_url.rstrip("/")


@pytest.fixture
def run(url, tmp_path):
    """Run a recipe in an empty directory; returns what it printed."""

    def run(name, *arguments):
        program = tmp_path / name
        program.write_text((RECIPES / name).read_text().replace(URL, url))
        command = ["bash"] if name.endswith(".sh") else [sys.executable]
        done = subprocess.run(
            [*command, str(program), *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'docs/demo'}"},
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def numbers(printed):
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", printed)]


def test_scipy_lbfgs_improves_the_likelihood_and_finds_the_nugget(run):
    version, before, after, _variance, first, second, nugget = numbers(run("scipy_lbfgs.py"))
    assert version > 1
    assert after < before - 300
    assert second > first
    assert nugget == pytest.approx(0.09, rel=0.2)


def test_torch_lbfgs_improves_the_likelihood(run):
    pytest.importorskip("torch")
    version, before, after, first, second = numbers(run("torch_lbfgs.py"))
    assert version > 1
    assert after < before - 300
    assert second > first


def test_jax_swapping_improves_the_likelihood_and_compiles_once(run):
    pytest.importorskip("jax")
    version, before, after, compiled = numbers(run("jax_swapping.py"))
    assert version > 1
    assert after < before - 300
    assert compiled == 1


def test_gpytorch_vnngp_learns(run):
    pytest.importorskip("gpytorch")
    before, after, error, by_mean = numbers(run("gpytorch_vnngp.py"))
    assert after < before
    assert error < by_mean / 3


def test_vecchia_rows_are_the_index_that_gpytorch_wants(url):
    """NNVariationalStrategy.nn_xinduce_idx: int64 (n - k, k), of each point from the k-th on the nearest of those before it."""
    X, k = np.random.default_rng(0).random((120, 2)), 16
    with Client(url) as client:
        graph = client.vecchia(X, k=k)
    index = graph.neighbors[k:].astype(np.int64)
    assert index.shape == (120 - k, k)
    assert (index >= 0).all()
    ranked = X[graph.order]
    for row, found in enumerate(index, start=k):
        np.testing.assert_array_equal(found, naive.query(ranked[:row], ranked[row : row + 1], k)[0][0])


def test_predict_beats_the_mean(run):
    error, by_mean, inside, _ = numbers(run("predict.py"))
    assert error < by_mean / 4
    assert inside > 85


def test_scikit_learn_unrolls_the_roll_and_finds_the_towns(run):
    correlation, towns = numbers(run("scikit_learn.py"))
    assert correlation > 0.95
    assert towns == 2


def test_the_page_about_scikit_learn_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/howto/scikit-learn.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert np.shape(names["unrolled"]) == (1000, 2)


def test_curl_leaves_raw_arrays(run, tmp_path):
    X = np.random.default_rng(0).random((1000, 2))
    X.astype("<f8").tofile(tmp_path / "points.bin")
    run("curl.sh", "points.bin", "1000", "2")
    neighbors = np.fromfile(tmp_path / "neighbors.bin", "<i4").reshape(1000, 10)
    distances = np.fromfile(tmp_path / "distances.bin", "<f8").reshape(1000, 10)
    order = np.fromfile(tmp_path / "order.bin", "<i8")
    assert sorted(order) == list(range(1000))
    expected = naive.vecchia(X[order], 10)
    np.testing.assert_array_equal(neighbors, expected[0])
    np.testing.assert_allclose(distances, expected[1])


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
def test_r_reads_raw_arrays(url, tmp_path):
    program = tmp_path / "read_graph.R"
    program.write_text((RECIPES / "read_graph.R").read_text().replace(URL, url))
    if subprocess.run(["Rscript", "-e", "library(httr2)"], capture_output=True, timeout=60, check=False).returncode:
        pytest.skip("R's httr2 is not installed")
    done = subprocess.run(["Rscript", str(program)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert len(numbers(done.stdout)) == 10


def test_recipes_are_short_and_say_what_they_are():
    programs = sorted(RECIPES.iterdir())
    assert programs
    for program in programs:
        text = program.read_text()
        assert len(text.splitlines()) <= 60, program
        assert text.startswith(('"""', "#")), program
