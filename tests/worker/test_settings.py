from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from worker.settings import LOCAL_REDIS_URL, SharedSettings, WorkerSettings, default_data_dir


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
