from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from pydantic import ValidationError

from worker.settings import LOCAL_REDIS_URL, SharedSettings, WorkerSettings, default_data_dir, faults_of
from worker.store_url import WrongStoreUrl


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("PCCT_"):
            monkeypatch.delenv(name)


def test_settings_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCCT_REDIS_URL", "redis://elsewhere:1/2")
    monkeypatch.setenv("PCCT_REDELIVERY_S", "3.5")
    settings = WorkerSettings()
    assert settings.store_url == "redis://elsewhere:1/2"
    assert settings.redelivery_s == 3.5


def test_settings_take_an_empty_variable_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCCT_REDIS_URL", "")
    assert SharedSettings().redis_url is None
    assert SharedSettings().store_url == LOCAL_REDIS_URL


GOOD_URLS = (
    "redis://localhost:6379",
    "redis://:p%40ss@host:6379/3",
    "rediss://user:word@[::1]:6380/0?ssl_cert_reqs=none",
    "redis://host?db=2&socket_timeout=3",
    "unix:///run/valkey.sock",
    "unix://:word@/run/valkey.sock?db=1",
)


@pytest.mark.parametrize("url", GOOD_URLS)
def test_settings_take_every_address_of_a_store(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PCCT_REDIS_URL", url)
    assert SharedSettings().store_url == url


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("localhost:6379", "write redis://localhost:6379"),
        ("redis:localhost:6379", "write redis://localhost:6379"),
        ("/run/valkey.sock", "write unix:///run/valkey.sock"),
        ("hunter2@host", "write redis://…@host"),
        ("http://host:6379", "use redis://, rediss:// or unix://, as in redis://host:6379"),
        ("valkeys://host/0", "as in rediss://host/0"),
        ("redis://host:port/0", "not a number from 0 to 65535"),
        ("redis://host:66666/0", "not a number from 0 to 65535"),
        ("redis://:hunter2/x@host:6379/0", "with / as %2F"),
        ("redis://host/main", "the database 'main' is not a number; write /0"),
        ("redis://host/-1", "the database '-1' is not a number"),
        ("redis://host?db=x", "the database 'x' is not a number"),
        ("unix:///run/valkey.sock?db=x", "write ?db=0"),
        ("unix://", "it names no socket"),
        ("redis://host?wait=3", "no connection takes 'wait'"),
    ],
)
def test_settings_refuse_an_address_that_reaches_no_store(monkeypatch: pytest.MonkeyPatch, url: str, fix: str) -> None:
    monkeypatch.setenv("PCCT_REDIS_URL", url)
    with pytest.raises(ValidationError) as caught:
        SharedSettings()
    (line,) = faults_of(caught.value)
    assert line.startswith("PCCT_REDIS_URL=")
    assert fix in line
    assert "hunter2" not in line
    meant = re.search(r"(?:write|as in) ((?:redis|rediss|unix)://\S+)", line)
    if meant is not None and "…" not in line and "HOST" not in line:
        monkeypatch.setenv("PCCT_REDIS_URL", meant[1].rstrip(";,"))
        assert SharedSettings().redis_url is not None


@pytest.mark.parametrize(
    ("url", "words"),
    [("{}?db=99", "use a database that the store has"), ("unix://nobody:hunter2@{socket}", "give its password")],
)
def test_check_store_refuses_what_the_store_refuses(valkey_url: str, url: str, words: str) -> None:
    wrong = url.format(valkey_url, socket=valkey_url.removeprefix("unix://"))
    with pytest.raises(WrongStoreUrl, match=words) as caught:
        SharedSettings(redis_url=wrong).check_store()
    assert "hunter2" not in str(caught.value)


def test_check_store_takes_one_that_is_there_and_one_that_may_come(valkey_url: str) -> None:
    assert SharedSettings(redis_url=valkey_url).check_store() is None
    assert "refused" in (SharedSettings(redis_url="redis://127.0.0.1:1/0").check_store() or "")


def test_check_store_waits_no_longer_than_a_second_for_a_store_that_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        reason = SharedSettings(redis_url=url, store_timeout_s=0.2).check_store()
    assert reason is not None


def test_settings_refuse_a_value_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCCT_CHUNK_BYTES", "1")
    with pytest.raises(ValidationError, match="chunk_bytes"):
        SharedSettings()


def test_every_setting_says_what_it_is() -> None:
    for name, field in WorkerSettings.model_fields.items():
        assert field.description, name


def test_default_data_dir_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    assert default_data_dir() == Path("/somewhere/pcct")
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    assert default_data_dir() == Path.home() / ".local/share/pcct"


def test_to_environment_hands_settings_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCCT_LOG_LEVEL", "error")
    settings = WorkerSettings(data_dir=Path("/d")).model_copy(update={"redis_url": "unix:///s"})
    environment = settings.to_environment()
    ours = {name: value for name, value in environment.items() if name.startswith("PCCT_")}
    assert ours == {"PCCT_LOG_LEVEL": "error", "PCCT_DATA_DIR": "/d", "PCCT_REDIS_URL": "unix:///s"}
    assert environment["PATH"]


def test_secret_is_handed_down_and_shown_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sixteen letters or more"
    monkeypatch.setenv("PCCT_SECRET", secret)
    settings = WorkerSettings()
    assert secret not in f"{settings!r} {settings} {settings.model_dump_json()}"
    assert settings.to_environment()["PCCT_SECRET"] == secret
    monkeypatch.setenv("PCCT_SECRET", "short")
    with pytest.raises(ValidationError, match="at least 16"):
        WorkerSettings()
