import gzip
import json

import numpy as np
import pytest
import zstandard

from service import wire

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((100, 2))
LARGE = "application/json"


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("br, deflate", None),
        ("gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("zstd;q=0.1, GZIP", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=x", None),
    ],
)
def test_choose_coding_follows_accept_encoding(accepted, chosen):
    assert wire.choose_coding(accepted, ("zstd", "gzip")) == chosen


async def raw(service, url, **headers):
    """Return an answer and its body as it came."""
    async with service.client.stream("GET", url, headers=headers) as answer:
        return answer, b"".join([piece async for piece in answer.aiter_raw()])


def unpacked(coding, data):
    return gzip.decompress(data) if coding == "gzip" else zstandard.ZstdDecompressor().decompressobj().decompress(data)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_json_arrays_are_compressed_when_asked(service, coding):
    url = f"/v1/graphs/{await service.graph(POINTS, k=9)}/neighbors"
    plain, text = await raw(service, url, Accept=LARGE, **{"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    packed, data = await raw(service, url, Accept=LARGE, **{"Accept-Encoding": coding})
    assert packed.headers["content-encoding"] == coding
    assert "accept-encoding" in packed.headers["vary"].lower()
    assert "accept-encoding" in plain.headers["vary"].lower()
    assert unpacked(coding, data) == text
    assert len(data) < len(text)
    again = await service.client.get(url, headers={"Accept": LARGE, "If-None-Match": packed.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_documents_are_compressed_when_asked(service, coding):
    answer, data = await raw(service, "/openapi.json", **{"Accept-Encoding": coding})
    assert answer.headers["content-encoding"] == coding
    assert "content-length" not in answer.headers
    assert json.loads(unpacked(coding, data))["openapi"]


@pytest.mark.parametrize("media", ["application/x-npy", "application/octet-stream"])
async def test_numbers_are_never_compressed(service, media):
    url = f"/v1/graphs/{await service.graph(POINTS, k=9)}/distances"
    answer, data = await raw(service, url, Accept=media, **{"Accept-Encoding": "zstd, gzip"})
    assert "content-encoding" not in answer.headers
    assert len(data) == int(answer.headers["content-length"])


async def test_small_answers_are_left_alone(service):
    answer, data = await raw(service, "/livez", **{"Accept-Encoding": "gzip"})
    assert "content-encoding" not in answer.headers
    assert data


async def test_answers_without_a_body_stay_without_one(service):
    dataset = await service.upload(np.zeros((2, 2)))
    answer = await service.client.delete(f"/v1/datasets/{dataset}", headers={"Accept-Encoding": "gzip"})
    assert answer.status_code == 204
    assert answer.content == b""
    assert "content-encoding" not in answer.headers
