import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from pcct_core.errors import PcctError
from service import wire

LIMITS = wire.Limits(1 << 20, 1000, 64, 1 << 20, 1 << 20)
POINTS = np.random.default_rng(0).random((9, 2))


def decode(body, piece=7, length=True, **query):
    decoder = wire.points_decoder("application/x-safetensors", None, len(body) if length else None, query, LIMITS)
    rows = [block for start in range(0, len(body), piece) for block in decoder.feed(body[start : start + piece])]
    rows += list(decoder.finish())
    return np.concatenate(rows)


def framed(header):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_points_decoder_reads_safetensors(dtype, piece):
    points = POINTS.astype(dtype)
    read = decode(save({"points": points}, metadata={"made": "here"}), piece)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, points)


MODEL = {"bias": np.arange(5, dtype=np.int8), "points": POINTS, "weight": np.ones((3, 4), np.float16)}


@pytest.mark.parametrize("name", ["first", "points", "last"])
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize("length", [True, False])
def test_points_decoder_finds_the_tensor_that_is_named(name, piece, length):
    file = {"first": POINTS[:3], **MODEL, "last": POINTS[3:]}
    np.testing.assert_array_equal(decode(save(file), piece, length, tensor=name), file[name])


def test_several_tensors_are_listed_when_none_is_named():
    with pytest.raises(wire.MalformedArray, match=r"3 tensors: .*'points'.*\?tensor=NAME"):
        decode(save(MODEL))


def test_many_tensors_are_not_all_listed():
    with pytest.raises(wire.MalformedArray, match="and 80 more"):
        decode(save({f"layer {i}": POINTS for i in range(100)}), 1 << 20)


def test_a_tensor_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(wire.InvalidParameter, match="'bias'") as refused:
        decode(save(MODEL), tensor="Points")
    assert refused.value.field == "tensor"


@pytest.mark.parametrize("cut", [1, 30, 100])
@pytest.mark.parametrize("length", [True, False])
def test_a_file_of_several_tensors_that_stops_short_is_refused(cut, length):
    with pytest.raises(wire.WrongLength):
        decode(save(MODEL)[:-cut], length=length, tensor="points")


@pytest.mark.parametrize("length", [True, False])
def test_a_file_of_several_tensors_that_goes_on_is_refused(length):
    with pytest.raises(wire.WrongLength, match="goes on"):
        decode(save(MODEL) + b"x", length=length, tensor="points")


def test_tensor_means_nothing_to_other_formats():
    with pytest.raises(wire.InvalidParameter, match="safetensors"):
        wire.points_decoder(wire.NPY, None, None, {"tensor": "x"}, LIMITS)


BAD = {
    "two tensors": save({"a": POINTS, "b": POINTS}),
    "no tensor": save({}),
    "int64 that float64 rounds": save({"a": np.full((3, 2), (1 << 53) + 1)}),
    "one axis": save({"a": POINTS[0]}),
    "no rows": save({"a": POINTS[:0]}),
    "cut short": save({"a": POINTS})[:-1],
    "too long": save({"a": POINTS}) + b"x",
    "cut in the header": save({"a": POINTS})[:20],
    "empty": b"",
    "huge header": (1 << 40).to_bytes(8, "little"),
    "huge shape": framed({"a": {"dtype": "F64", "shape": [1 << 60, 1 << 60], "data_offsets": [0, 8]}}),
    "shape of text": framed({"a": {"dtype": "F64", "shape": "92", "data_offsets": [0, 8]}}),
    "shape of floats": framed({"a": {"dtype": "F64", "shape": [1.5, 2], "data_offsets": [0, 8]}}),
    "offsets": framed({"a": {"dtype": "F64", "shape": [1, 1], "data_offsets": [8, 16]}}) + bytes(16),
    "type of list": framed({"a": {"dtype": ["F64"], "shape": [1, 1], "data_offsets": [0, 8]}}) + bytes(8),
    "list": framed([1]),
    "entry": framed({"a": 1}),
}


@pytest.mark.parametrize("name", BAD)
def test_points_decoder_refuses_other_safetensors(name):
    with pytest.raises(PcctError):
        decode(BAD[name])


@given(st.binary(max_size=200), st.integers(0, 100))
def test_points_decoder_survives_damaged_safetensors(noise, place):
    body = save({"a": POINTS})
    with suppress(PcctError):
        decode(body[:place] + noise + body[place + len(noise) :])
