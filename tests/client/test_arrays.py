import hashlib
import io
import json

import numpy as np
import pytest

from pcct_client import BadAnswer, InvalidArray, calls, dataset_id
from pcct_client.arrays import PIECE_BYTES, NpyReader, as_column, npy_body

POINTS = np.arange(12.0).reshape(6, 2)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dataset_id_is_the_sha256_of_what_np_save_writes(npy, dtype):
    assert dataset_id(POINTS.astype(dtype)) == sha256(npy(POINTS.astype(dtype)))


@pytest.mark.parametrize(
    "same",
    [np.asfortranarray(POINTS), POINTS.astype(">f8"), POINTS.astype(np.int32), POINTS[::-1][::-1], POINTS.tolist()],
    ids=["fortran", "big-endian", "int32", "negative strides", "list"],
)
def test_dataset_id_depends_on_values_not_on_memory_layout(npy, same):
    assert dataset_id(same) == sha256(npy(POINTS))


def test_dataset_id_tells_float32_from_float64():
    assert dataset_id(POINTS.astype(np.float32)) != dataset_id(POINTS)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (POINTS.astype(object), "type object"),
        (POINTS.astype(complex), "complex"),
        (np.array([["a", "b"]]), "is 'a', which is no number"),
        (POINTS[:, 0], r"X.reshape\(-1, 1\)"),
        (POINTS[None], r"expected \(n, d\)"),
        (POINTS[:0], "at least one row"),
        ([[1.0], [2.0, 3.0]], "rows of different lengths"),
    ],
)
def test_npy_body_refuses_what_cannot_be_sent(bad, words):
    with pytest.raises(InvalidArray, match=words):
        npy_body(bad)


def test_npy_body_does_not_copy_points_that_are_canonical():
    assert np.shares_memory(npy_body(POINTS).points, POINTS)


def test_pieces_together_are_the_npy_file(npy):
    points = np.random.default_rng(0).normal(size=(PIECE_BYTES // 8 + 3, 2))
    pieces = list(npy_body(points).pieces())
    assert len(pieces) == 4
    assert b"".join(pieces) == npy(points)
    assert npy_body(points).nbytes == len(npy(points))


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
@pytest.mark.parametrize("array", [POINTS, np.arange(5), np.zeros((0, 3), np.int32)], ids=["2-d", "1-d", "empty"])
def test_reader_gives_the_array_back_whatever_the_pieces(npy, array, size):
    data = npy(array)
    reader = NpyReader(len(data))
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
    back = reader.finish()
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("keep", [0, 5, 64, -1])
def test_reader_refuses_an_array_cut_short(npy, keep):
    reader = NpyReader()
    reader.feed(npy(POINTS)[:keep])
    with pytest.raises(BadAnswer, match="cut short"):
        reader.finish()


def test_reader_refuses_more_bytes_than_the_header_says(npy):
    with pytest.raises(BadAnswer, match="longer"):
        NpyReader().feed(npy(POINTS) + b"x")


def test_reader_refuses_a_false_header_before_taking_memory():
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**55, 2)})
    with pytest.raises(BadAnswer, match="promises"):
        NpyReader(expected_bytes=200).feed(header.getvalue())


@pytest.mark.parametrize("array", [np.array([None]), np.array(["a"]), np.asfortranarray(POINTS)])
def test_reader_refuses_objects_text_and_fortran_order(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    with pytest.raises(BadAnswer, match="expected C-ordered numbers"):
        NpyReader().feed(file.getvalue())


def test_reader_refuses_other_content():
    with pytest.raises(BadAnswer, match=r"not a \.npy array"):
        NpyReader().feed(b"<html>welcome</html>")
    with pytest.raises(BadAnswer, match=r"not a \.npy array"):
        NpyReader().feed(b"\x93NUMPY\x01\x00\x02\x00{}")


def test_as_column_is_one_float64_for_every_point():
    for values in ([2, 0, 1], np.array([2, 0, 1], np.int8), np.array([[2.0], [0.0], [1.0]], np.float32)):
        column = as_column(values, "order")
        assert (column.dtype, column.tolist()) == (np.float64, [[2.0], [0.0], [1.0]])
    for values in (np.zeros((3, 2)), 3.0, np.ma.array([0, 1], mask=[0, 1]), ["a", "b"]):
        with pytest.raises(InvalidArray):
            as_column(values, "order")


def test_a_track_names_the_order_that_it_has_uploaded():
    order = np.array([2, 0, 1])
    flow = calls.create_track("d" * 64, {"kind": "vecchia", "order": order}, {}, calls.Deadline(5))
    track = {"id": "t", "version": 1, "dataset": "d" * 64, "spec": {"kind": "vecchia", "metric": {}}}
    sent, answers = [], iter([calls.Reply(200, {}), calls.Reply(201, {}, json.dumps(track).encode())])
    column = next(flow)
    body = flow.send(column.work())  # the column, then its name
    sent.append(flow.send(body.work()))
    sent.append(flow.send(next(answers)))
    with pytest.raises(StopIteration):
        flow.send(next(answers))
    name = dataset_id(order.reshape(-1, 1).astype(float))
    assert [call.path for call in sent] == [f"v1/datasets/{name}", "v1/tracks"]
    assert sent[-1].document["spec"]["order"] == {"by": "given", "dataset": name}
