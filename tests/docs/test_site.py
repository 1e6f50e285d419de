"""The site builds without a warning, fetches nothing from elsewhere, and shows what code says of itself."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs/site"))

# What a page loads by itself; links that a reader may follow are not among them.
_LOADS = re.compile(
    r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?([^"'\s>]+)|<link[^>]*\srel=["']?(?:stylesheet|icon|preload|preconnect)["']?[^>]*"""
    r"""\shref=["']?([^"'\s>]+)|url\(["']?([^"')]+)|@import\s+["']([^"']+)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out


def words(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_site_loads_nothing_from_elsewhere(site: Path) -> None:
    files = [file for file in site.rglob("*") if file.suffix in (".html", ".css")]
    assert len(files) > 20
    for file in files:
        loads = ["".join(found) for found in _LOADS.findall(file.read_text())]
        assert not [load for load in loads if load.startswith(("http:", "https:", "//"))], file


def test_site_shows_every_public_name(site: Path) -> None:
    import pcct_client
    import pcct_core

    for package in (pcct_client, pcct_core):
        shown = words(site / f"reference/{package.__name__}.html")
        missing = [name for name in package.__all__ if not re.search(rf"\b{name}\b", shown)]
        assert not missing, package.__name__


def test_site_shows_every_call_command_and_setting(site: Path) -> None:
    from service.app import create_app
    from service.cli import app
    from service.settings import ServiceSettings
    from worker.settings import WorkerSettings

    http = words(site / "reference/http.html")
    for path, methods in create_app(ServiceSettings()).openapi()["paths"].items():
        assert all(f"{method.upper()} {path}" in http for method in methods)
    commands = words(site / "reference/cli.html")
    for command in app.registered_commands:
        assert f"pcct {command.callback.__name__}" in commands
    settings = words(site / "reference/settings.html")
    for name in {**ServiceSettings.model_fields, **WorkerSettings.model_fields}:
        assert f"PCCT_{name.upper()}" in settings


def test_site_has_every_picture_that_is_drawn(site: Path) -> None:
    drawn = sorted(re.findall(r'OUT / "([a-z]+\.png)"', (ROOT / "docs/site/pictures.py").read_text()))
    assert drawn == sorted(file.name for file in (ROOT / "docs/pictures").iterdir())
    for name in drawn:
        assert any(f"pictures/{name}" in page.read_text() for page in (site / "concepts").glob("*.html")), name


def test_fields_become_a_list() -> None:
    from fields import fields_as_list

    text = "Do it.\n\nX: the points,\n   one a row. k: how many\nn, d: their shape\nRaises what it must."
    assert fields_as_list(text) == (
        "Do it.\n\n\n- `X`: the points,\n  one a row. k: how many\n- `n, d`: their shape\n\nRaises what it must."
    )
