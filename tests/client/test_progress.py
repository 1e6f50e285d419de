import importlib.util
import io
import sys

import httpx
import numpy as np
import pytest

from pcct_client import Client, calls
from pcct_client.progress import Bar, watched

PROGRESS = {"phase": "search", "done": 3, "total": 4, "eta_s": 1.0}


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def look(monkeypatch):
    """Put a terminal in place of standard error; to be called in the test, for pytest puts its own there before."""

    def look():
        screen = Screen()
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("TERM", "xterm")
        return screen

    return look


def test_watched_gives_the_callback():
    def tell(state, progress):
        pass

    with watched(tell) as told:
        assert told is tell


def test_watched_is_silent_without_a_terminal_or_rich_or_when_told_so(monkeypatch, look):
    look()
    with watched(False) as told:
        assert told is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with watched(None) as told:
        assert told is None
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with watched(None) as told:
        assert told is None
    monkeypatch.setattr(sys, "stderr", None)
    with watched(None) as told:
        assert told is None


def test_watched_draws_on_a_terminal(monkeypatch, look):
    pytest.importorskip("rich")
    screen = look()
    monkeypatch.setattr("pcct_client.progress.Bar", lambda: Bar(patience_s=0.0))
    with watched(None) as told:
        told("running", PROGRESS)
    assert "building: search" in screen.getvalue()
    assert "75%" in screen.getvalue()


def test_bar_says_what_is_done_and_goes_away():
    console = pytest.importorskip("rich.console").Console(file=Screen(), force_terminal=True, width=100)
    bar = Bar(console, patience_s=0.0)
    for state, progress in (
        ("uploading", {"phase": "upload", "done": 10, "total": 40, "eta_s": None}),
        ("queued", {}),
        ("running", PROGRESS),
    ):
        bar.show(state, progress)
        bar._drawn.refresh()
    bar.stop()
    drawn = console.file.getvalue()
    for words in ("uploading points", "25%", "waiting for a worker", "building: search", "75%"):
        assert words in drawn
    assert drawn.endswith("\x1b[2K"), "the line is cleared"


def test_bar_draws_nothing_for_a_short_call(look):
    screen = look()
    bar = Bar()
    bar.show("queued", {})
    bar.stop()
    assert screen.getvalue() == ""


def test_an_upload_is_reported_in_bytes(client, service, monkeypatch):
    monkeypatch.setattr(calls, "REPORT_PAUSE_S", 0.0)
    points = np.zeros((200_000, 2))
    seen = []
    client.upload(points, progress=lambda state, progress: seen.append((state, progress["done"], progress["total"])))
    total = points.nbytes + 128
    assert seen[0] == ("uploading", 0, total)
    assert seen[-1] == ("uploading", total, total)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


def test_an_error_of_the_callback_reaches_the_caller(client, service):
    service.states = ["running"]

    def tell(state, progress):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        client.knn("d" * 64, k=2, progress=tell)
    assert service.said()[-1] == "POST /graphs", "an error is not an interrupt: the build goes on"


def test_a_client_on_a_terminal_draws(look, service, monkeypatch):
    pytest.importorskip("rich")
    screen = look()
    monkeypatch.setattr("pcct_client.progress.Bar", lambda: Bar(patience_s=0.0))
    service.states = ["queued", "ready"]
    with Client("http://pcct.test", transport=httpx.MockTransport(service)) as client:
        client.knn(np.eye(3), k=2)
    assert "waiting for a worker" in screen.getvalue()
