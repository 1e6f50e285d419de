"""What the README shows works as shown: its commands and programs run here, against a service of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pcct_client.settings import API_KEY
from service.settings import ServiceSettings
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
URL = "http://127.0.0.1:8000"


def blocks(language: str, word: str) -> list[str]:
    """The code blocks of the README in a language that contain a word."""
    return [code for code in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if word in code]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with the files that the examples read."""
    places = np.load(ROOT / "docs/demo/places.npy")[:2000]
    (tmp_path / "docs/demo").mkdir(parents=True)
    np.save(tmp_path / "docs/demo/places.npy", places)
    np.save(tmp_path / "points.npy", places)
    np.save(tmp_path / "queries.npy", places[::10] + 0.01)
    if key := os.environ.get("PCCT_API_KEY"):
        (tmp_path / ".curlrc").write_text(f'header = "Authorization: Bearer {key}"\n')
    return tmp_path


def run(command: list[str], home: Path) -> str:
    environment = {
        **os.environ,
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CURL_HOME": str(home),
    }
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.integration
def test_readme_python_client(service_url: str, home: Path) -> None:
    (code,) = blocks("python", "client.vecchia(")
    printed = run([sys.executable, "-c", code.replace(URL, service_url)], home)
    assert "Graph(vecchia, n=2000, k=30, haversine, exact)" in printed
    assert (home / "row.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.integration
def test_readme_training_loop(service_url: str, home: Path) -> None:
    (code,) = blocks("python", "pass  # recompute")
    version, error = run([sys.executable, "-c", code.replace(URL, service_url)], home).removeprefix("version ").split()
    assert int(version) > 1
    assert error == "None"


def test_readme_python_library(home: Path) -> None:
    (code,) = blocks("python", "pcct_core")
    run([sys.executable, "-c", code], home)
    with np.load(home / "graph.npz") as graph:
        assert graph["neighbors"].shape == (2000, 30)
        assert set(graph) == {"neighbors", "distances", "order"}


@pytest.mark.integration
def test_readme_curl_one_request(service_url: str, home: Path) -> None:
    code, _, _ = blocks("bash", "curl")
    run(["bash", "-euo", "pipefail", "-c", code.replace(URL, service_url)], home)
    with np.load(home / "graph.npz") as graph:
        assert set(graph) == {"neighbors", "distances"}
    with np.load(home / "vecchia.npz") as graph:
        assert set(graph) == {"neighbors", "distances", "order"}
    with np.load(home / "radius.npz") as graph:
        assert graph["offsets"][-1] == len(graph["neighbors"]) == len(graph["distances"]) > 0


@pytest.mark.integration
def test_readme_curl_step_by_step(service_url: str, home: Path) -> None:
    _, code, _ = blocks("bash", "curl")
    printed = run(["bash", "-euo", "pipefail", "-c", code.replace(URL, service_url)], home)
    assert '"state":"ready"' in printed
    assert re.search(r"^304$", printed, re.MULTILINE)
    assert '"type":"/problems/invalid-parameter"' in printed
    assert "1 ≤ k ≤ 30" in printed
    assert np.load(home / "all.npy").shape == (2000, 30)
    assert np.load(home / "neighbors.npy").shape == (100, 10)
    assert sorted(np.load(home / "order.npy")) == list(range(2000))
    with np.load(home / "nearest.npz") as nearest:
        assert nearest["neighbors"].shape == nearest["distances"].shape == (200, 5)


@pytest.mark.integration
def test_readme_curl_track(service_url: str, home: Path) -> None:
    _, before, code = blocks("bash", "curl")
    printed = run(["bash", "-euo", "pipefail", "-c", (before + code).replace(URL, service_url)], home)
    (answer,) = re.findall(r"^# (\{.*\})$", code, re.MULTILINE)
    assert answer in printed
    assert '"version":2' in printed
    assert "event: neighbor_refresh.swap" in printed


def test_readme_command(home: Path) -> None:
    (code,) = blocks("bash", "pcct graph")
    (home / "bin").mkdir()
    (home / "bin/pcct").write_text(f"#!{sys.executable}\nfrom service.cli import main\nmain()\n")
    (home / "bin/pcct").chmod(0o755)
    run(["bash", "-euo", "pipefail", "-c", code], home)
    with np.load(home / "graph.npz") as graph:
        assert graph["order"].shape == (2000,)


def test_readme_lists_every_setting_and_no_other() -> None:
    listed = re.findall(r"^\| `PCCT_(\w+)`", README, re.MULTILINE)
    known = {name.upper() for name in {**ServiceSettings.model_fields, **WorkerSettings.model_fields}}
    assert sorted(listed) == sorted(known)
    assert set(re.findall(r"PCCT_(\w+)", README)) == known | {API_KEY.removeprefix("PCCT_")}


def test_readme_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("#")]
    assert links
    assert all((ROOT / link.partition("#")[0]).exists() for link in links)
