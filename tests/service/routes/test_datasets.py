import asyncio
import hashlib
import io

import numpy as np
import pytest

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((50, 3))
NPY = {"Content-Type": "application/x-npy"}


def npy(array) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def with_value(row: int, column: int, value: float):
    points = POINTS.copy()
    points[row, column] = value
    return points


async def keys(redis) -> list[bytes]:
    return sorted(await redis.keys("pcct:[ns]*"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
async def test_create_dataset_names_it_by_the_hash_of_its_npy_file(service, dtype):
    points = POINTS.astype(dtype)
    id = hashlib.sha256(npy(points)).hexdigest()
    answer = await service.client.post("/v1/datasets", content=npy(points), headers=NPY)
    assert answer.status_code == 201
    assert answer.json() == {"id": id, "n": 50, "d": 3, "dtype": dtype, "bytes": points.nbytes}
    assert answer.headers["location"] == f"/v1/datasets/{id}"
    again = await service.client.post("/v1/datasets", content=npy(points), headers=NPY)
    assert again.status_code == 200
    assert again.json() == answer.json()
    assert (await service.client.get(f"/v1/datasets/{id}")).json() == answer.json()


async def test_create_dataset_gives_every_encoding_one_id(service):
    bodies = [
        (npy(POINTS), {}, ""),
        (npy(np.asfortranarray(POINTS)), NPY, ""),
        (npy(POINTS.astype(">f8")), NPY, ""),
        (POINTS.tobytes(), {"Content-Type": "application/octet-stream"}, "?dtype=float64&shape=50,3"),
        (str(POINTS.tolist()).encode(), {"Content-Type": "application/json"}, ""),
        (npy(POINTS), {"Content-Type": "application/x-www-form-urlencoded"}, ""),
    ]
    ids = set()
    for body, headers, query in bodies:
        answer = await service.client.post(f"/v1/datasets{query}", content=body, headers=headers)
        ids.add(answer.json()["id"])
    assert ids == {hashlib.sha256(npy(POINTS)).hexdigest()}


async def test_create_dataset_keeps_the_points(service):
    points = np.random.default_rng(1).random((100_000, 8))  # several blocks and chunks
    id = await service.upload(points)
    stored = await service.app.state.backend.store.load_points(id)
    assert stored.dtype == points.dtype
    np.testing.assert_array_equal(stored, points)


async def test_create_dataset_takes_a_single_point(service):
    answer = await service.client.post("/v1/datasets", content=npy(np.zeros((1, 2))))
    assert answer.status_code == 201


BAD_ARRAYS = {
    "nan": (npy(with_value(7, 1, np.nan)), "invalid-points", 7, "row 7, column 1 is nan"),
    "inf": (npy(with_value(49, 2, -np.inf)), "invalid-points", 49, "row 49, column 2 is -inf"),
    "no rows": (npy(np.zeros((0, 3))), "invalid-points", None, "at least one row"),
    "no columns": (npy(np.zeros((3, 0))), "invalid-points", None, "at least one row and one column"),
    "1-D": (npy(np.zeros(9)), "invalid-points", None, "expected (n, d)"),
    "3-D": (npy(np.zeros((9, 2, 2))), "invalid-points", None, "expected (n, d)"),
    "object": (npy(np.array([[object(), 1]])), "invalid-points", None, "pickles, which are never read"),
    "integers": (npy(np.full((9, 2), 2**53 + 1)), "invalid-points", 0, "X - X.min(axis=0)"),
    "complex": (npy(np.zeros((9, 2), complex)), "invalid-points", None, "np.column_stack((X.real, X.imag))"),
    "text": (b"lon,lat\n1.0,2.0\n", "malformed-array", None, "not a .npy file"),
    "nothing": (b"", "malformed-array", None, "empty"),
    "cut header": (npy(POINTS)[:100], "wrong-length", None, "inside its .npy header"),
    "cut": (npy(POINTS)[:-1], "wrong-length", None, "cut short"),
    "more": (npy(POINTS) + b"x", "wrong-length", None, "goes on behind"),
    "claims more than is there": (
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 3)}") + bytes(240),
        "wrong-length",
        None,
        "24000000 bytes of numbers, the body holds 240",
    ),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
@pytest.mark.parametrize("chunked", [False, True])
async def test_create_dataset_refuses_a_bad_array_and_keeps_nothing(service, redis, name, chunked):
    body, slug, row, words = BAD_ARRAYS[name]
    before = await keys(redis)

    async def pieces():
        for start in range(0, len(body), 300):
            yield body[start : start + 300]

    answer = await service.client.post("/v1/datasets", content=pieces() if chunked else body, headers=NPY)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"/problems/{slug}"
    assert problem["status"] == 422
    assert problem["title"]
    assert words in problem["detail"]
    assert problem.get("row") == row
    assert await keys(redis) == before


async def test_create_dataset_refuses_late_faults_and_keeps_nothing(start_service, redis):
    points = np.zeros((50_000, 8))
    points[-1, 3] = np.nan
    async with start_service(chunk_bytes=1 << 16, worker=False) as service:
        answer = await service.client.post("/v1/datasets", content=npy(points))
        assert answer.status_code == 422
        assert answer.json()["row"] == 49_999
        assert await keys(redis) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_body_bytes": 1000}, "the limit is 1000"),
        ({"max_points": 49}, "the limit is 49"),
        ({"max_dimensions": 2}, "the limit is 2"),
    ],
)
async def test_create_dataset_refuses_what_is_too_large(start_service, settings, words):
    async with start_service(worker=False, **settings) as service:
        answer = await service.client.post("/v1/datasets", content=npy(POINTS))
        assert answer.status_code == 413
        assert answer.json()["type"] == "/problems/too-large"
        assert words in answer.json()["detail"]


async def test_create_dataset_refuses_a_lying_header_before_the_rest_has_come(start_service):
    taken = 0

    async def endless():
        nonlocal taken
        yield header("{'descr': '<f8', 'fortran_order': False, 'shape': (2000000000, 4000)}")
        while True:
            taken += 1
            yield bytes(65536)

    async with start_service(worker=False) as service:
        answer = await service.client.post("/v1/datasets", content=endless(), headers=NPY)
        assert answer.status_code == 413
        assert taken <= 1


@pytest.mark.parametrize("media", ["text/csv", "multipart/form-data; boundary=x", "application/zip"])
async def test_create_dataset_says_what_to_send(service, media):
    answer = await service.client.post("/v1/datasets", content=b"1,2\n", headers={"Content-Type": media})
    assert answer.status_code == 415
    assert answer.json()["type"] == "/problems/unsupported-body"
    assert "--data-binary" in answer.json()["detail"]


async def test_create_dataset_refuses_undeclared_text(service):
    answer = await service.client.post("/v1/datasets", content=b"lon,lat\n1,2\n")
    assert answer.status_code == 415
    assert "--data-binary" in answer.json()["detail"]


async def test_create_dataset_refuses_unknown_parameters(service):
    answer = await service.client.post("/v1/datasets?dtpye=float32", content=npy(POINTS))
    assert answer.status_code == 422
    assert answer.json()["field"] == "dtpye"


async def send_raw(app, messages: list[dict], size: int) -> list[dict]:
    """Call the application with these receive messages; return what it sent."""
    sent = []

    async def receive():
        return messages.pop(0) if messages else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/datasets",
        "raw_path": b"/v1/datasets",
        "query_string": b"",
        "scheme": "http",
        "headers": [(b"content-type", b"application/x-npy"), (b"content-length", str(size).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
    }
    await app(scope, receive, send)
    return sent


async def test_create_dataset_keeps_nothing_of_a_connection_that_broke(start_service, redis):
    body = npy(np.zeros((50_000, 8)))
    async with start_service(worker=False, chunk_bytes=1 << 16) as service:
        messages = [
            {"type": "http.request", "body": body[:2_500_000], "more_body": True},
            {"type": "http.disconnect"},
        ]
        await send_raw(service.app, messages, len(body))
        assert await keys(redis) == []


async def test_create_dataset_gives_up_a_stalled_upload(start_service, redis):
    body = npy(np.zeros((50_000, 8)))
    async with start_service(worker=False, chunk_bytes=1 << 16, upload_idle_s=0.05) as service:
        messages = [{"type": "http.request", "body": body[:2_500_000], "more_body": True}]
        sent = await send_raw(service.app, messages, len(body))
        assert sent[0]["status"] == 408
        assert await keys(redis) == []


async def test_read_dataset_answers_head(service):
    id = await service.upload(POINTS)
    answer = await service.client.head(f"/v1/datasets/{id}")
    assert answer.status_code == 200
    assert (await service.client.head(f"/v1/datasets/{'0' * 64}")).status_code == 404


@pytest.mark.parametrize("id", ["0" * 64, "x", "A" * 64, "0" * 64 + ":points"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_unknown_datasets_are_not_found(service, id, method):
    answer = await service.client.request(method, f"/v1/datasets/{id}")
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/unknown-dataset"
    assert id in answer.json()["detail"]


async def test_points_of_a_dataset_cannot_be_reached_as_a_dataset(service):
    id = await service.upload(POINTS)
    assert (await service.client.get(f"/v1/datasets/{id}:points")).status_code == 404


async def test_delete_dataset_removes_all_of_it(service, redis):
    before = await keys(redis)
    id = await service.upload(POINTS)
    assert (await service.client.delete(f"/v1/datasets/{id}")).status_code == 204
    assert (await service.client.get(f"/v1/datasets/{id}")).status_code == 404
    assert await keys(redis) == before


async def test_read_dataset_is_revalidated_by_its_id(service):
    id = await service.upload(np.zeros((3, 2)))
    url = f"/v1/datasets/{id}"
    answer = await service.client.get(url)
    assert (answer.headers["etag"], answer.headers["cache-control"]) == (f'"{id}"', "private, no-cache")
    for method in ("GET", "HEAD"):
        again = await service.client.request(method, url, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", f'"{id}"')
    await service.client.delete(url)
    assert (await service.client.get(url, headers={"If-None-Match": answer.headers["etag"]})).status_code == 404
