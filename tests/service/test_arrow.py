import contextlib
import io
import re

import numpy as np
import pyarrow as pa
import pytest

from pcct_core.errors import InvalidPoints
from service import arrow, arrow_reader, wire
from service.settings import ServiceSettings

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(0).random((31, 3))
LIMITS = ServiceSettings().limits
END = b"\xff\xff\xff\xff\0\0\0\0"


@pytest.mark.parametrize("chunk_bytes", [1024, 1 << 20])
@pytest.mark.parametrize("kind", ["knn", "vecchia"])
async def test_graphs_come_as_tables(start_service, chunk_bytes, kind):
    async with start_service(chunk_bytes=chunk_bytes) as service:
        points = np.random.default_rng(2).random((300, 2))
        spec = {"kind": kind, "k": 4} | ({"order": "given"} if kind == "vecchia" else {})
        graph = f"/v1/graphs/{await service.graph(points, **spec)}"
        answer = await service.client.get(f"{graph}/arrays", headers={"Accept": wire.ARROW})
        assert answer.headers["content-type"] == wire.ARROW
        table = pa.ipc.open_stream(answer.content).read_all()
        arrays = np.load(io.BytesIO((await service.client.get(f"{graph}/arrays")).content))
        assert table.column_names == list(arrays.files)
        for name in arrays.files:
            read = np.array(table[name].to_pylist(), arrays[name].dtype)
            np.testing.assert_array_equal(read, arrays[name])
        part = await service.client.get(f"{graph}/neighbors?rows=3:9&k=2", headers={"Accept": wire.ARROW})
        column = pa.ipc.open_stream(part.content).read_all()["neighbors"]
        assert column.type == pa.list_(pa.int32(), 2)
        np.testing.assert_array_equal(column.to_pylist(), arrays["neighbors"][3:9, :2])


def stream(*columns, names=None, rows=8, **options):
    """Return the Arrow stream of these columns, in batches of so many rows."""
    table = pa.table(list(columns), names=names or [f"x{at}" for at in range(len(columns))])
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return out.getvalue()


def lists(points):
    return pa.FixedSizeListArray.from_arrays(pa.array(points.reshape(-1)), points.shape[1])


def decoded(body, limit=1 << 20, pieces=1000):
    decoder = arrow.ArrowDecoder(LIMITS._replace(max_fortran_bytes=limit))
    blocks = [rows for at in range(0, len(body), pieces) for rows in decoder.feed(body[at : at + pieces])]
    blocks += list(decoder.finish())
    points = np.concatenate(blocks)
    assert points.shape == (decoder.layout.n, decoder.layout.d)
    return points


def read_here(body):
    """Read a stream that is as it should be in this process, which is quicker."""
    sink = io.BytesIO()
    said = arrow_reader.read_points(io.BytesIO(body), sink, 1 << 20)
    return np.frombuffer(sink.getvalue(), said["dtype"]).reshape(said["shape"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"compression": "lz4"}])
def test_points_come_as_lists_or_as_columns(dtype, options):
    points = POINTS.astype(dtype)
    for body in (stream(lists(points), **options), stream(*map(pa.array, points.T.copy()), **options)):
        read = read_here(body)
        assert read.dtype == points.dtype
        np.testing.assert_array_equal(read, points)


def test_slices_of_larger_arrays_are_read():
    np.testing.assert_array_equal(read_here(stream(lists(POINTS)[3:20])), POINTS[3:20])


def test_what_another_process_reads_is_the_same():
    np.testing.assert_array_equal(decoded(stream(lists(POINTS))), POINTS)


async def test_an_upload_is_the_dataset_that_the_npy_file_is(service):
    said = {"Content-Type": wire.ARROW}
    arrived = await service.client.post("/v1/datasets", content=stream(lists(POINTS)), headers=said)
    assert arrived.status_code == 201
    assert arrived.json()["id"] == await service.upload(POINTS)
    again = await service.client.post("/v1/knn?k=3", content=stream(*POINTS.T.copy()), headers=said)
    assert again.status_code == 200
    bad = POINTS.copy()
    bad[9, 1] = np.nan
    refused = await service.client.post("/v1/datasets", content=stream(lists(bad)), headers=said)
    assert (refused.status_code, refused.json()["row"]) == (422, 9)


NULLS = pa.array([[1.0, 2.0], [3.0, None], [5.0, 6.0]], pa.list_(pa.float64(), 2))
NO_ROW = pa.array([[1.0, 2.0], [3.0, 4.0], None], pa.list_(pa.float64(), 2))


@pytest.mark.parametrize(
    ("columns", "said", "row"),
    [
        ([pa.array([b"1", b"2"])], "points have type binary", None),
        ([pa.array([1.0]), pa.array(["a"])], "column 'x1' is string, the first one is double", None),
        ([pa.array([1.0]), pa.array([1.0], pa.float32())], "column 'x1' is float", None),
        ([pa.array([[1.0]])], "points have type list<", None),
        ([pa.array(["a", "b"]).dictionary_encode()], "points have type dictionary<", None),
        ([NULLS], "row 1 has a null", 1),
        ([NO_ROW], "row 2 has a null", 2),
        ([pa.array([1.0, 2.0, 3.0, None]), pa.array([1.0, 2.0, None, 3.0])], "row 2 has a null", 2),
        ([pa.array([[]], pa.list_(pa.float64(), 0))], "no numbers", None),
        ([], "points have type null", None),
    ],
)
def test_tables_without_points_are_refused(columns, said, row):
    with pytest.raises(arrow_reader.Refused, match=re.escape(said)) as refused:
        read_here(stream(*columns, rows=2))
    assert refused.value.verdict["fault"] == "points"
    assert refused.value.verdict["row"] == row


def test_a_refusal_is_that_of_points():
    with pytest.raises(InvalidPoints, match="row 1 has a null") as refused:
        decoded(stream(NULLS))
    assert refused.value.row == 1
    with pytest.raises(InvalidPoints, match="at least one row"):
        decoded(stream(pa.array([], pa.float64())))


def test_larger_streams_than_allowed_are_refused():
    with pytest.raises(wire.BodyTooLarge, match="may have 500 bytes"):
        decoded(stream(lists(POINTS)), limit=500)
    with pytest.raises(wire.BodyTooLarge, match="more than 100000 bytes of numbers"):
        decoded(stream(lists(np.zeros((99_999, 3))), rows=999, compression="zstd"), limit=100_000)
    huge = stream(lists(np.zeros((1 << 24, 3))), rows=1 << 24, compression="zstd")
    with pytest.raises(wire.BodyTooLarge, match="takes too much memory"):
        decoded(huge, pieces=1 << 20)


def test_what_does_not_end_or_goes_on_is_refused():
    body = stream(lists(POINTS))
    for cut in (0, 1, 100, len(body) - 8, len(body) - 1):
        with pytest.raises(wire.WrongLength, match="end mark"):
            decoded(body[:cut])
    with pytest.raises(wire.MalformedArray, match="goes on behind"):
        decoded(body + body)
    for garbage in (END, b"x" * 500 + END):
        with pytest.raises((wire.MalformedArray, wire.BodyTooLarge)):
            decoded(garbage)


@pytest.mark.parametrize("seed", range(6))
def test_damaged_streams_are_decoded_or_refused(seed):
    """By name and never by the end of this process."""
    random = np.random.default_rng(seed)
    body = bytearray(stream(lists(POINTS), compression=[None, "lz4", "zstd"][seed % 3]))
    for at in random.integers(0, len(body) - 8, 1 + seed):
        body[at] = random.integers(256)
    with contextlib.suppress(wire.WireError, InvalidPoints):
        assert decoded(bytes(body)).ndim == 2


def test_a_reader_that_crashes_is_a_malformed_body(monkeypatch, tmp_path, capfd):
    crash = tmp_path / "crash.py"
    crash.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(arrow, "_READER", crash)
    with pytest.raises(wire.MalformedArray, match="can be read"):
        decoded(stream(lists(POINTS)))


def test_a_reader_that_hangs_is_given_up(monkeypatch, tmp_path):
    hang = tmp_path / "hang.py"
    hang.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(arrow, "_READER", hang)
    monkeypatch.setattr(arrow, "_READER_S", 0.2)
    with pytest.raises(wire.MalformedArray, match=r"not read within 0.2 s"):
        decoded(stream(lists(POINTS)))


async def test_without_pyarrow_the_extra_is_named(service, monkeypatch):
    graph = await service.graph(POINTS, k=3)
    monkeypatch.setattr(arrow, "find_spec", lambda name: None)
    asked = await service.client.get(f"/v1/graphs/{graph}/neighbors", headers={"Accept": wire.ARROW})
    assert asked.status_code == 406
    assert "pcct[arrow]" in asked.json()["detail"]
    sent = await service.client.post("/v1/datasets", content=stream(POINTS[:, 0]), headers={"Content-Type": wire.ARROW})
    assert sent.status_code == 415
    assert "pcct[arrow]" in sent.json()["detail"]
