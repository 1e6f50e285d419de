from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from worker.logs import Outage, configure_logs, without_secrets
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot reach redis://me:hunter2-!x@host:6379/0", "cannot reach redis://me:…@host:6379/0"),
        ("rediss://:p%40ss:word@host", "rediss://:…@host"),
        ("Authorization: Bearer pcct_ab12_" + "s" * 40, "Authorization: Bearer …"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "{'Authorization': 'Basic …'}"),
        ("X-API-Key: abcdefgh", "X-API-Key: …"),
        ("key pcct_ab12_" + "s" * 40 + " is unknown", "key pcct_… is unknown"),
        ("Connection(host=a,password='hunter2',db=0)", "Connection(host=a,password='…',db=0)"),
    ],
)
def test_without_secrets_hides_passwords_and_keys(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "pcct_http_requests_total",
        "at 12:30:00 in http://host:80/a@b",
        "graph=0123456789ab",
        "unix:///run/valkey.sock?db=0",
    ],
)
def test_without_secrets_leaves_the_rest(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_configure_logs_hides_the_secrets_of_libraries(capfd: pytest.CaptureFixture[str], log_format: Any) -> None:
    configure_logs(SharedSettings(log_format=log_format))
    try:
        raise ConnectionError("no answer from redis://:hunter2@host")
    except ConnectionError:
        logging.getLogger("library").error(
            "redis://:hunter2@host", exc_info=True, extra={"Authorization": "Bearer hunter2hunter2"}
        )
    err = capfd.readouterr().err
    assert "host" in err
    assert "hunter2" not in err


def test_outage_is_told_at_growing_pauses_and_another_one_at_once() -> None:
    now = 0.0
    outage = Outage(lambda: now)
    told = []
    for _ in range(8 * 600):  # ten minutes of eight failures a second
        if outage.tells():
            told.append(now)
        now += 1 / 8
    assert told[:6] == [0, 1, 3, 7, 15, 31]
    assert len(told) < 18
    now += 61
    assert outage.tells()
    assert not outage.tells()
