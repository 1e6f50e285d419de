"""Every code block of the README and the site runs as shown, page by page and in order, against a service."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from pcct_client.settings import API_KEY
from service.settings import ServiceSettings
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
URL = "http://127.0.0.1:8000"
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]}
PAGES = [page for page, text in TEXTS.items() if FENCE.search(text)]

# Blocks of these languages are shown and not run, each page for the reason given.
NOT_RUN = {
    ("README.md", "shell"): "sets up an environment, and starts the service that runs here",
    (
        "docs/start.md",
        "shell",
    ): "installs the package into the reader's environment, and starts the service that runs here",
    ("docs/howto/keys.md", "shell"): "listens on all addresses",
    ("docs/OPERATIONS.md", "nginx"): "another program's settings; tests/service/test_prefix.py has a proxy of its own",
    ("docs/reference/specification.md", "json"): "a value, held against the specification below",
}
NO_TEST = {"docs/recipes/read_graph.jl": "needs Julia, which Debian 12 has no package of"}
# Runs a page's Python blocks in one namespace and its bash blocks in one environment; each is announced before it runs.
DRIVER = r"""
import json, pathlib, subprocess, sys
space = {"__name__": "__main__"}
for language, line, code in json.loads(pathlib.Path("blocks.json").read_text()):
    print(f"-- {line}", flush=True)
    if language == "python":
        exec(compile("\n" * line + code, "page.md", "exec"), space)
    else:
        shell = "set -euo pipefail; touch .env; . ./.env; set -a\n" + code + "\nexport -p > .env\n"
        subprocess.run(["bash", "-c", shell], check=True)
    sys.stdout.flush()
"""


class Block(NamedTuple):
    """A fenced block: its language, the line it begins at, its code."""

    language: str
    line: int
    code: str


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, those inside tabs too."""
    text = TEXTS[page]
    return [
        Block(fence[2], text[: fence.start()].count("\n") + 1, textwrap.dedent(fence[3]))
        for fence in FENCE.finditer(text)
    ]


def is_file(block: Block) -> bool:
    """A block that only includes a file, which has a test of its own."""
    return bool(re.fullmatch(r'--8<-- "docs/recipes/[\w.]+"\n', block.code))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with the files that the pages read, small, and the command on its path."""
    places = np.load(DOCS / "demo/places.npy")[:2000]
    (tmp_path / "docs/demo").mkdir(parents=True)
    np.save(tmp_path / "docs/demo/places.npy", places)
    np.save(tmp_path / "points.npy", places)
    np.save(tmp_path / "queries.npy", places[::10] + 0.01)
    if key := os.environ.get("PCCT_API_KEY"):
        (tmp_path / ".curlrc").write_text(f'header = "Authorization: Bearer {key}"\n')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pcct").write_text(f"#!{sys.executable}\nfrom service.cli import main\nmain()\n")
    (tmp_path / "bin/pcct").chmod(0o755)
    return tmp_path


@pytest.mark.integration
@pytest.mark.parametrize("page", PAGES)
def test_page_runs_as_shown(page: str, service_url: str, home: Path) -> None:
    run = [block for block in blocks(page) if (page, block.language) not in NOT_RUN and not is_file(block)]
    assert {block.language for block in run} <= {"python", "bash"}, "say in NOT_RUN why a block is not run"
    url = service_url.rstrip("/")
    (home / "blocks.json").write_text(json.dumps([block._replace(code=block.code.replace(URL, url)) for block in run]))
    ours = {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "CURL_HOME": str(home), "XDG_DATA_HOME": str(home)}
    environment = {**os.environ, **ours, "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DRIVER],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    for claim in CLAIMS.get(page, ()):
        claim(done.stdout, home)


def shows_a_picture(printed: str, home: Path) -> None:
    assert (home / "graph.png").read_bytes().startswith(b"\x89PNG")
    assert "Graph(vecchia, n=2000, k=15, euclidean, exact)" in printed


def follows_the_loop(printed: str, home: Path) -> None:
    version, error = re.search(r"^version (\d+) (.*)$", printed, re.MULTILINE).groups()
    assert int(version) > 1
    assert error == "None"


def names_the_row(printed: str, home: Path) -> None:
    assert re.search(r"^0 .*latitude", printed, re.MULTILINE)
    assert (home / "row.png").read_bytes().startswith(b"\x89PNG")


def leaves_graphs(printed: str, home: Path) -> None:
    with np.load(home / "vecchia.npz") as graph:
        assert set(graph) == {"neighbors", "distances", "order"}
    with np.load(home / "graph.npz") as graph:
        assert set(graph) == {"neighbors", "distances"}
    with np.load(home / "radius.npz") as graph:
        assert graph["offsets"][-1] == len(graph["neighbors"]) == len(graph["distances"]) > 0
    assert '"state":"ready"' in printed
    assert np.load(home / "neighbors.npy").shape == (100, 10)
    assert sorted(np.load(home / "order.npy")) == list(range(2000))
    with np.load(home / "nearest.npz") as nearest:
        assert nearest["neighbors"].shape == nearest["distances"].shape == (200, 5)


def swaps_over_http(printed: str, home: Path) -> None:
    (answer,) = re.findall(r"^# (\{.*\})$", TEXTS["docs/howto/http.md"], re.MULTILINE)
    assert answer in printed
    assert '"version":2' in printed
    assert "event: neighbor_refresh.swap" in printed
    assert '"row":0' in printed
    assert re.search(r"^304$", printed, re.MULTILINE)
    assert '"type":"/problems/invalid-parameter"' in printed
    assert "1 ≤ k ≤ 30" in printed
    assert np.load(home / "all.npy").shape == (2000, 30)
    assert (home / "unpacked.npy").read_bytes() == (home / "all.npy").read_bytes()


def saves_the_order(printed: str, home: Path) -> None:
    with np.load(home / "graph.npz") as graph:
        assert set(graph) >= {"neighbors", "distances"}
        assert graph["order"].shape == (2000,)


def prints_the_graph(printed: str, home: Path) -> None:
    assert "Graph(vecchia, n=2000, k=30, haversine, exact) (2000, 30)" in printed
    assert (home / "row.png").read_bytes().startswith(b"\x89PNG")
    with np.load(home / "vecchia.npz") as graph:
        assert set(graph) == {"neighbors", "distances", "order"}


def lists_the_key(printed: str, home: Path) -> None:
    assert re.search(r"pcct_\w+", printed)
    assert printed.count("team-a") >= 1
    assert "laptop" in printed


CLAIMS = {
    "README.md": [prints_the_graph, follows_the_loop, saves_the_order],
    "docs/howto/keys.md": [lists_the_key],
    "docs/start.md": [shows_a_picture],
    "docs/concepts/tracks.md": [follows_the_loop],
    "docs/howto/python.md": [names_the_row],
    "docs/howto/http.md": [leaves_graphs, swaps_over_http],
    "docs/howto/library.md": [saves_the_order],
}


def test_what_is_not_run_is_there() -> None:
    shown = {(page, block.language) for page in PAGES for block in blocks(page)}
    assert set(NOT_RUN) <= shown
    assert set(CLAIMS) <= set(PAGES)


def test_included_files_have_tests() -> None:
    tested = (ROOT / "tests/integration/test_recipes.py").read_text()
    included = [block.code.split('"')[1] for page in PAGES for block in blocks(page) if is_file(block)]
    assert included
    for path in included:
        assert (ROOT / path).exists()
        assert Path(path).name in tested or path in NO_TEST, path


def test_specification_page_shows_a_metric_that_is_read() -> None:
    from pcct_core.spec import GraphSpec

    (block,) = [block for block in blocks("docs/reference/specification.md") if block.language == "json"]
    metric = GraphSpec.from_json({"metric": json.loads(block.code)}).to_json()["metric"]
    assert json.loads(block.code).items() <= metric.items()


@pytest.mark.parametrize("page", TEXTS)
def test_page_links_lead_somewhere(page: str) -> None:
    made = (
        "reference/http.md",
        "reference/cli.md",
        "reference/settings.md",
    )  # by the site's build, which checks links to them
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", TEXTS[page])):
        path = link.partition("#")[0]
        if path and not link.startswith(("http:", "https:")) and not path.endswith(made):
            assert ((ROOT / page).parent / path).exists(), link


def test_pages_name_settings_that_there_are() -> None:
    known = {f"PCCT_{name.upper()}" for name in {**ServiceSettings.model_fields, **WorkerSettings.model_fields}}
    known |= {API_KEY, "PCCT_SOAK_S", "PCCT_SOAK_SEED"}  # of the client, and of `make soak`
    for page, text in TEXTS.items():
        assert set(re.findall(r"PCCT_[A-Z_]*[A-Z]\b", text)) <= known, page
