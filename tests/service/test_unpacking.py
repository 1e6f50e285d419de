"""Arrays that are sent compressed: the same datasets, within the same limits, and nothing left of what is none."""

import gzip
import io
import json
import tracemalloc
import zlib

import numpy as np
import pytest
import zstandard
from safetensors.numpy import save

from service import wire
from service.unpacking import UnpackingDecoder, coding_of
from tests.service.conftest import as_npy

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((3000, 4)).round(3)
LIMITS = wire.Limits(
    max_body_bytes=1 << 30, max_points=1 << 30, max_dimensions=64, max_fortran_bytes=1 << 20, max_json_bytes=1 << 16
)
PACK = {"gzip": gzip.compress, "zstd": zstandard.compress}
CODINGS = sorted(PACK)


def sent(points: np.ndarray) -> dict[str, tuple[str, bytes, str]]:
    """Return the same points in every format: content type, body, query."""
    arrow = pytest.importorskip("pyarrow")
    table, stream = arrow.table([points[:, i] for i in range(points.shape[1])], names=list("abcd")), io.BytesIO()
    with arrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return {
        "npy": (wire.NPY, as_npy(points), ""),
        "undeclared": ("", as_npy(points), ""),
        "fortran": (wire.NPY, as_npy(np.asfortranarray(points)), ""),
        "raw": (wire.RAW, points.tobytes(), f"?dtype=float64&shape={points.shape[0]},{points.shape[1]}"),
        "safetensors": (wire.SAFETENSORS, save({"points": points}), ""),
        "json": (wire.JSON, json.dumps(points.tolist()).encode(), ""),
        "arrow": (wire.ARROW, stream.getvalue(), ""),
    }


def decoded(body: bytes, coding: str, step: int = 1 << 16, limits: wire.Limits = LIMITS) -> np.ndarray:
    decoder = UnpackingDecoder(wire.points_decoder(wire.NPY, None, None, {}, limits), coding)
    blocks = [rows for start in range(0, len(body), step) for rows in decoder.feed(body[start : start + step])]
    return np.vstack(blocks + list(decoder.finish()))


@pytest.mark.parametrize("coding", CODINGS)
async def test_every_format_may_come_compressed(service, coding):
    plain = await service.upload(POINTS)
    for name, (media, body, query) in sent(POINTS).items():
        headers = {"Content-Encoding": coding} | ({"Content-Type": media} if media else {})
        answer = await service.client.post(f"/v1/datasets{query}", content=PACK[coding](body), headers=headers)
        assert answer.status_code == 200, (name, answer.text)
        assert answer.json()["id"] == plain, name


async def test_a_graph_of_points_that_came_compressed(service):
    plain = await service.client.post("/v1/knn?k=3", content=as_npy(POINTS[:50]))
    packed = await service.client.post(
        "/v1/knn?k=3", content=gzip.compress(as_npy(POINTS[:50])), headers={"Content-Encoding": "X-GZIP"}
    )
    assert packed.status_code == 200
    assert packed.content == plain.content


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
def test_pieces_of_any_length_give_the_same_rows(coding, step):
    assert np.array_equal(decoded(PACK[coding](as_npy(POINTS)), coding, step), POINTS)


@pytest.mark.parametrize("coding", CODINGS)
def test_streams_may_follow_each_other(coding):
    body = as_npy(POINTS)
    parts = [body[:1], body[1:100], b"", body[100:70_000], body[70_000:]]
    for step in (1, 100, 1 << 20):
        assert np.array_equal(decoded(b"".join(map(PACK[coding], parts)), coding, step), POINTS)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kept", [0, 1, 20, 0.5, 0.999])
async def test_a_stream_that_stops_short_leaves_nothing(service, redis, coding, kept):
    body = PACK[coding](as_npy(POINTS))
    cut = body[: int(kept * len(body)) if isinstance(kept, float) else kept]
    answer = await service.client.post("/v1/datasets", content=cut, headers={"Content-Encoding": coding})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/wrong-length")
    assert f"before its {coding} stream does" in answer.json()["detail"]
    assert await redis.keys("*dataset*") == []
    assert await redis.keys("*staging*") == []


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("damage", ["plain", "flipped", "behind"])
async def test_what_is_no_such_stream_is_refused(service, redis, coding, damage):
    packed = bytearray(PACK[coding](as_npy(POINTS)))
    if damage == "flipped":
        packed[len(packed) // 2] ^= 0xFF
        packed[len(packed) // 2 + 1] ^= 0xFF
    body = {"plain": as_npy(POINTS), "flipped": bytes(packed), "behind": bytes(packed) + b"more"}[damage]
    answer = await service.client.post("/v1/datasets", content=body, headers={"Content-Encoding": coding})
    assert answer.status_code == 422
    assert answer.json()["type"] in ("/problems/malformed-array", "/problems/invalid-points")
    assert await redis.keys("*staging*") == []


def bomb(coding: str, head: bytes, zeros: int) -> bytes:
    """Return a body that unpacks to a head and zeros, made without holding them."""
    pack = zlib.compressobj(wbits=31) if coding == "gzip" else zstandard.ZstdCompressor().compressobj()
    return pack.compress(head) + b"".join(pack.compress(bytes(1 << 20)) for _ in range(zeros >> 20)) + pack.flush()


@pytest.mark.parametrize("coding", CODINGS)
def test_a_bomb_takes_little_memory_and_ends_where_its_array_does(coding):
    body = bomb(coding, wire.npy_header("float64", (1000, 2)), 256 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(wire.WrongLength, match="goes on behind"):
            decoded(body, coding, len(body))
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("coding", CODINGS)
def test_a_bomb_is_held_to_the_limits_of_what_comes_out(coding):
    small = LIMITS._replace(max_body_bytes=1 << 20)
    with pytest.raises(wire.BodyTooLarge, match="the limit is 1048576"):
        decoded(bomb(coding, wire.npy_header("float64", (1 << 20, 2)), 16 << 20), coding, limits=small)


async def test_a_json_bomb_is_cut_at_its_limit(start_service):
    async with start_service(max_json_bytes=10_000, worker=False) as service:
        body = gzip.compress(b"[" + b" " * (64 << 20))
        headers = {"Content-Encoding": "gzip", "Content-Type": wire.JSON}
        answer = await service.client.post("/v1/datasets", content=body, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")


def test_a_window_that_takes_much_memory_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = compressor.compress(as_npy(POINTS)) + compressor.flush()
    with pytest.raises(wire.MalformedArray, match="--ultra or --long"):
        decoded(body, "zstd")


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "zstd, gzip"])
async def test_other_codings_are_refused_with_those_that_are_read(service, coding):
    for call in ("/v1/datasets", "/v1/knn?k=3"):
        answer = await service.client.post(call, content=as_npy(POINTS), headers={"Content-Encoding": coding})
        assert (answer.status_code, answer.json()["type"]) == (415, "/problems/unsupported-body")
        assert answer.headers["accept-encoding"] == "zstd, gzip"
        assert answer.json()["detail"].endswith("send the body uncompressed or with zstd or with gzip")


@pytest.mark.parametrize("coding", CODINGS)
async def test_what_is_compressed_in_silence_is_told_how_to_say_it(service, coding):
    for headers in ({}, {"Content-Type": wire.NPY}, {"Content-Type": wire.RAW}):
        answer = await service.client.post("/v1/datasets", content=PACK[coding](as_npy(POINTS)), headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (415, "/problems/unsupported-body")
        assert f"Content-Encoding: {coding}" in answer.json()["detail"]


async def test_documents_are_small_and_come_as_they_are(service):
    headers = {"Content-Encoding": "gzip", "Content-Type": wire.JSON}
    answer = await service.client.post("/v1/graphs", content=gzip.compress(b"{}"), headers=headers)
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
    assert answer.json()["detail"].endswith("send the body uncompressed")


@pytest.mark.parametrize(("said", "coding"), [("GZIP ", "gzip"), ("x-gzip", "gzip"), ("zstd", "zstd"), (None, None)])
def test_coding_of_knows_its_names(said, coding):
    assert coding_of(said) == coding
