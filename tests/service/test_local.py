from __future__ import annotations

import io
import sys
import time

import pytest

from service import local


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_shown_progress_prints_lines_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with local._shown_progress() as progress:
        for done in range(101):
            now += 0.1
            progress("search", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert 4 <= len(lines) <= 6
    assert all(line.startswith("pcct: search ") and line.endswith(" %") for line in lines)


def test_shown_progress_draws_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with local._shown_progress() as progress:
        progress("order", 1, 2)
        progress("search", 1, 4)
    drawn = terminal.getvalue()
    assert "search" in drawn
    assert "25%" in drawn
