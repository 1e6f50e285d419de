import gzip
import json

import numpy as np
import pytest
import zstandard

from service import wire
from service.compression import compress_numbers
from tests.service.conftest import as_npy

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
async def test_numbers_are_not_compressed_because_a_library_could_undo_it(service, media):
    url = f"/v1/graphs/{await service.graph(POINTS, k=9)}/distances"
    answer, data = await raw(service, url, Accept=media, **{"Accept-Encoding": "zstd, gzip"})
    assert "content-encoding" not in answer.headers
    assert len(data) == int(answer.headers["content-length"])


MEDIA = ["application/x-npy", "application/octet-stream", "application/vnd.apache.arrow.stream", LARGE]


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("media", MEDIA)
async def test_an_array_is_compressed_where_that_is_wished(service, media, coding):
    url = f"/v1/graphs/{await service.graph(POINTS, k=9)}/neighbors"
    plain, text = await raw(service, url, Accept=media, **{"Accept-Encoding": "identity"})
    packed, data = await raw(service, f"{url}?compress={coding}", Accept=media, **{"Accept-Encoding": f"br, {coding}"})
    assert packed.headers["content-encoding"] == coding
    assert "content-length" not in packed.headers
    assert unpacked(coding, data) == text
    assert len(data) < 0.7 * len(text)
    assert packed.headers["vary"] == "Accept, Accept-Encoding"
    assert packed.headers["etag"] == f"W/{plain.headers['etag']}"
    for name in ("cache-control", "content-type", "array-shape"):
        assert packed.headers.get(name) == plain.headers.get(name)
    for tag in (plain.headers["etag"], packed.headers["etag"]):
        again, nothing = await raw(service, f"{url}?compress={coding}", Accept=media, **{"If-None-Match": tag})
        assert (again.status_code, nothing) == (304, b"")
        assert again.headers["etag"] == packed.headers["etag"]


async def test_rows_are_cut_before_they_are_compressed(service):
    url = f"/v1/graphs/{await service.graph(POINTS, k=9)}/neighbors"
    part = (await service.client.get(f"{url}?rows=3:7&k=2")).content
    assert (await service.client.get(f"{url}?rows=3:7&k=2&compress=gzip")).content == part  # httpx undoes it
    _, data = await raw(service, f"{url}?rows=3:7&k=2&compress=gzip")
    assert gzip.decompress(data) == part


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_all_arrays_are_compressed_where_that_is_wished(service, coding):
    graph = await service.graph(POINTS, k=9)
    whole = (await service.client.get(f"/v1/graphs/{graph}/arrays")).content
    answer, data = await raw(service, f"/v1/graphs/{graph}/arrays?compress={coding}")
    assert answer.headers["content-encoding"] == coding
    assert unpacked(coding, data) == whole
    body = as_npy(POINTS)
    for call in ("/v1/knn?k=9", f"/v1/datasets/{await service.upload(POINTS)}/query?k=9"):
        asked = await service.client.post(f"{call}&compress={coding}", content=body)
        assert asked.headers["content-encoding"] == coding
        assert asked.headers["content-location"].endswith(f"/arrays?compress={coding}")
        assert (await service.client.get(asked.headers["content-location"])).content == asked.content


async def test_head_of_a_compressed_array_has_the_headers_of_its_get(service):
    url = f"/v1/graphs/{await service.graph(POINTS, k=9)}/neighbors?compress=zstd"
    got, head = await service.client.get(url), await service.client.head(url)
    ours = ("x-request-id",)
    assert {k: v for k, v in head.headers.items() if k not in ours} == {
        k: v for k, v in got.headers.items() if k not in ours
    }
    assert head.headers["content-encoding"] == "zstd"
    assert head.content == b""


@pytest.mark.parametrize("accepted", ["", "identity", "gzip, deflate", "zstd;q=0, *", "*;q=0"])
async def test_who_could_not_read_the_coding_is_told_so(service, accepted):
    graph = await service.graph(POINTS, k=9)
    for url in (f"/v1/graphs/{graph}/neighbors", f"/v1/graphs/{graph}/arrays"):
        answer = await service.client.get(f"{url}?compress=zstd", headers={"Accept-Encoding": accepted})
        assert (answer.status_code, answer.json()["type"]) == (406, "/problems/not-acceptable")
        assert "compress asks for zstd" in answer.json()["detail"]
    one_shot = await service.client.post("/v1/knn?compress=zstd", headers={"Accept-Encoding": accepted})
    assert one_shot.status_code == 406  # before the body is looked at


@pytest.mark.parametrize("accepted", [None, "*", "identity, *;q=0.1", "ZSTD"])
async def test_who_says_nothing_reads_any_coding(service, accepted):
    assert wire.takes_coding(accepted, "zstd")


async def test_a_coding_that_there_is_not_is_refused(service):
    graph = await service.graph(POINTS, k=9)
    for url in (f"/v1/graphs/{graph}/neighbors?compress=br", f"/v1/graphs/{graph}/arrays?compress="):
        answer = await service.client.get(url)
        assert (answer.status_code, answer.json()["field"]) == (422, "compress")
        assert "'zstd' or 'gzip'" in answer.json()["detail"]


async def test_pieces_are_compressed_as_they_come():
    """An array of any length takes the memory of a piece: what goes in comes out while more is to come."""
    given, taken = 0, []

    async def pieces():
        nonlocal given
        for seed in range(40):
            given += 1
            yield np.random.default_rng(seed).bytes(1 << 18)

    async for packed in compress_numbers(pieces(), "zstd"):
        taken.append((given, len(packed)))
    assert taken[0][0] <= 2
    assert max(size for _, size in taken) < 1 << 20


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
