import logging

import httpx
import numpy as np
import pytest

from pcct_client import AsyncClient, Client, ClientError, Forbidden, InvalidKey, Unauthorized
from pcct_client.settings import key_to_send

POINTS = np.eye(3)
KEY = "pcct_ab12_sEcReT"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("PCCT_API_KEY", raising=False)


def sent_by(client):
    return client._address.headers.get("authorization")


@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_the_key_comes_from_the_argument_then_a_header_then_the_environment(monkeypatch, make):
    assert sent_by(make()) is None
    monkeypatch.setenv("PCCT_API_KEY", f" {KEY}\n")
    assert sent_by(make()) == f"Bearer {KEY}"
    assert sent_by(make(headers={"authorization": "Basic eA=="})) == "Basic eA=="
    assert sent_by(make(api_key="pcct_other")) == "Bearer pcct_other"
    assert sent_by(make(api_key="")) is None
    monkeypatch.setenv("PCCT_API_KEY", "")
    assert sent_by(make()) is None


@pytest.mark.parametrize("key", ["a\nX-Evil: 1", "schlüssel", "two words", "\x00"])
def test_a_key_that_no_header_carries_is_refused_and_not_shown(monkeypatch, key):
    with pytest.raises(InvalidKey, match="api_key holds characters") as caught:
        key_to_send(f"{key}!")
    assert key not in str(caught.value)
    if "\x00" not in key:
        monkeypatch.setenv("PCCT_API_KEY", key)
        with pytest.raises(InvalidKey, match="environment variable PCCT_API_KEY"):
            Client()


def test_the_key_is_sent_with_every_request_and_shown_nowhere(service, caplog):
    caplog.set_level(logging.DEBUG)
    with Client("http://name:password@pcct.test", transport=httpx.MockTransport(service), api_key=KEY) as client:
        client.knn(POINTS, k=2)
        shown = f"{client!r} {client} {client._address!r}"
    assert {request.headers["authorization"] for request in service.requests} == {f"Bearer {KEY}"}
    assert "HTTP Request" in caplog.text
    assert KEY not in shown + caplog.text
    assert "password" not in shown + caplog.text
    assert repr(client) == "Client('http://pcct.test')"
    assert repr(AsyncClient("https://pcct.test/inner/")) == "AsyncClient('https://pcct.test/inner')"


@pytest.mark.parametrize(
    ("status", "error", "fix"),
    [(401, Unauthorized, "PCCT_API_KEY"), (403, Forbidden, "larger scope|the key is unknown")],
)
@pytest.mark.parametrize("has_body", [True, False])
def test_a_key_that_is_refused_is_said_with_its_fix(service, problem, status, error, fix, has_body):
    answer = problem(status, title="No", detail="the key is unknown") if has_body else httpx.Response(status)
    service.instead["HEAD", "datasets"] = answer
    transport = httpx.MockTransport(service)
    client = Client("http://name:password@pcct.test", transport=transport, api_key=KEY)
    with client, pytest.raises(error, match=fix) as caught:
        client.knn(POINTS, k=2)
    assert len(service.requests) == 1, "the same key is no better a second time"
    seen = f"{caught.value!r} {caught.value}"
    assert KEY not in seen
    assert "password" not in seen
    assert ("the key is unknown" in seen) == has_body


@pytest.mark.parametrize(
    ("key", "fact"), [(KEY, "the service does not know the API key"), ("", "wants an API key, and got none")]
)
def test_a_key_that_is_wrong_is_told_from_none(service, monkeypatch, key, fact):
    monkeypatch.delenv("PCCT_API_KEY", raising=False)
    service.instead["HEAD", "datasets"] = httpx.Response(401)
    client = Client("http://pcct.test", transport=httpx.MockTransport(service), api_key=key)
    said = rf"^Unauthorized: .*{fact}; give a valid key: .*PCCT_API_KEY$"
    with client, pytest.raises(Unauthorized, match=said):
        client.knn(POINTS, k=2)


def test_a_password_in_the_url_is_sent_as_one():
    assert sent_by(Client("http://name:pass%2Fword@pcct.test")) == "Basic bmFtZTpwYXNzL3dvcmQ="


def test_a_password_in_the_url_is_not_in_errors():
    with Client("http://name:password@127.0.0.1:1") as client, pytest.raises(ClientError) as caught:
        client.upload(POINTS)
    assert "nothing answers at http://127.0.0.1:1;" in str(caught.value)
    assert "password" not in str(caught.value)
