from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from worker.logs import configure_logs
from worker.settings import SharedSettings


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    queue = logging.getLogger("docket")
    filters, queue_level = list(queue.filters), queue.level
    yield
    root.handlers, root.level = handlers, level
    queue.filters = filters
    queue.setLevel(queue_level)
    structlog.reset_defaults()


def test_configure_logs_writes_plain_lines(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs(SharedSettings(log_format="console"))
    structlog.stdlib.get_logger("pcct.test").info("job started", graph="abc")
    logging.getLogger("library").warning("from a library")
    logging.getLogger("library").debug("too little")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "job started" in lines[0]
    assert "graph=abc" in lines[0]
    assert "from a library" in lines[1]
    assert "\x1b" not in "".join(lines)


def test_configure_logs_writes_json(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs(SharedSettings(log_format="json"))
    structlog.stdlib.get_logger("pcct.test").info("job started", graph="abc")
    entry = json.loads(capfd.readouterr().err)
    assert (entry["event"], entry["graph"], entry["level"]) == ("job started", "abc", "info")


def test_configure_logs_keeps_an_outage_of_the_queue_to_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs(SharedSettings())
    try:
        raise ConnectionError("no store")
    except ConnectionError:
        logging.getLogger("docket.worker").warning("retrying in %s", 5, exc_info=True)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "retrying in 5 (ConnectionError: no store)" in lines[0]
