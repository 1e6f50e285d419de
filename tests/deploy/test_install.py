"""What `make` installs with, on stand-ins for uv and for an environment's Python: nothing is fetched."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = r"""global.index-url='https://files.example/simple'
global.extra-index-url='file:///a/simple\nfile:///b/simple'
install.constraint='/etc/limits.txt'
download.index-url='https://other.example/simple'
:env:.index-url='https://mine.example/simple'
:env:.cert='/etc/ours.pem'"""


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", ROOT / ".ci/install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Stage:
    """A directory with programs that note how they are called, first on the path; `calls` are the notes."""

    def __init__(self, directory: Path) -> None:
        self.bin, self.log = directory / "bin", directory / "calls"
        self.venv = directory / "venv"
        self.add(self.venv / "bin/python", f"case \"$*\" in *'config list') cat <<'END'\n{CONFIG}\nEND\nesac")

    def add(self, program: Path, script: str) -> None:
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "{program.name} $*" >> {self.log}\n{script}\n')
        program.chmod(0o755)

    @property
    def installs(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if " install " in line]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: ModuleType) -> Stage:
    stage = Stage(tmp_path)
    monkeypatch.setenv("PATH", f"{stage.bin}:/usr/bin:/bin")
    for name in install.TOLD_UV:
        monkeypatch.delenv(name, raising=False)
    return stage


def test_uv_looks_where_pip_was_told_to(install: ModuleType, stage: Stage) -> None:
    stage.add(stage.bin / "uv", 'echo "trusts $SSL_CERT_FILE" >> ' + str(stage.log))
    assert install.main(stage.venv, "demo") == 0
    (call,) = stage.installs
    assert call.startswith(f"uv pip install --python {stage.venv}/bin/python --index-url https://mine.example/simple ")
    assert " --extra-index-url file:///a/simple --extra-index-url file:///b/simple " in call
    assert " --constraints /etc/limits.txt " in call
    assert "other.example" not in call
    assert call.endswith(" --editable .[demo] pip")


def test_uv_that_was_told_itself_is_not_overruled(
    install: ModuleType, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv.example/simple")
    stage.add(stage.bin / "uv", "")
    assert install.main(stage.venv, "demo") == 0
    assert stage.installs == [f"uv pip install --python {stage.venv}/bin/python --editable .[demo] pip"]


def test_pip_installs_where_uv_fails_and_one_line_says_so(
    install: ModuleType, stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.add(
        stage.bin / "uv", 'case "$*" in *install*) echo resolving; echo "error: no way to the index"; exit 2;; esac'
    )
    assert install.main(stage.venv, "demo") == 0
    assert stage.installs[-1] == "python -m pip --disable-pip-version-check --no-input install --editable .[demo]"
    assert capsys.readouterr().out.splitlines() == [
        "installing pcct[demo] by uv",
        "uv could not install it (error: no way to the index); pip does",
        "installing pcct[demo] by pip",
    ]


def test_pip_installs_where_it_cannot_fetch_uv(
    install: ModuleType, stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.add(stage.bin / "uv", "exit 127")  # as a shim is of a version manager that has no uv
    assert install.main(stage.venv, "dev") == 0
    assert [call.rpartition(" install ")[2] for call in stage.installs] == ["uv", "--editable .[dev]"]
    assert "there is no uv" in capsys.readouterr().out


def test_failure_says_what_pip_said(install: ModuleType, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.add(stage.venv / "bin/python", 'case "$*" in *" install "*) echo "ERROR: no space left"; exit 1;; esac')
    assert install.main(stage.venv, "dev") == 1
    assert capsys.readouterr().err.splitlines() == ["ERROR: no space left", "pip could not install it"]


def test_long_steps_go_on_saying_what_they_do(
    install: ModuleType, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "SAY_EVERY_S", 0.01)
    stage.add(stage.bin / "long", f"echo Downloading numpy; until grep -q seen {stage.log}; do sleep 0.01; done")

    said: list[str] = []

    def hear(line: str, flush: bool) -> None:
        said.append(line)
        if "Downloading numpy" in line:
            stage.log.write_text("seen\n")

    monkeypatch.setattr(install, "print", hear, raising=False)
    assert install.run("waiting", [str(stage.bin / "long")]).returncode == 0
    assert said[0] == "waiting"
    assert said[-1].endswith("s  Downloading numpy")
