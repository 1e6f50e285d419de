import pytest
from pydantic import ValidationError

from service.settings import ServiceSettings


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("PCCT_MAX_BODY_BYTES", "1000")
    monkeypatch.setenv("PCCT_REDIS_URL", "redis://store:6379/1")
    settings = ServiceSettings()
    assert settings.limits.max_body_bytes == 1000
    assert settings.store_url == "redis://store:6379/1"


@pytest.mark.parametrize(("name", "value"), [("PCCT_MAX_K", "0"), ("PCCT_UPLOAD_IDLE_S", "soon")])
def test_settings_refuse_what_cannot_be(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.removeprefix("PCCT_").lower()):
        ServiceSettings()


def test_every_setting_says_what_it_is():
    for name, field in ServiceSettings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
