import hashlib
import io
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcct_core.errors import InvalidPoints, PcctError
from service import wire

LIMITS = wire.Limits(
    max_body_bytes=1 << 20, max_points=10_000, max_dimensions=100, max_fortran_bytes=1 << 16, max_json_bytes=1 << 12
)
POINTS = np.arange(60.0).reshape(20, 3)


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=version)
    return out.getvalue()


def decode(body: bytes, media: str | None = wire.NPY, *, step: int = 1 << 16, length: int | None = None, **query: str):
    decoder = wire.points_decoder(media, None, length, query, LIMITS)
    blocks = [rows for start in range(0, len(body), step) for rows in decoder.feed(body[start : start + step])]
    return np.concatenate([*blocks, *decoder.finish()])


def header(text: str, version: int = 1) -> bytes:
    raw = text.encode()
    return wire.NPY_MAGIC + bytes([version, 0]) + len(raw).to_bytes(2 if version == 1 else 4, "little") + raw


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("step", [1, 7, 1 << 16])
def test_npy_decoder_reads_every_encoding_of_an_array(dtype, fortran, version, step):
    array = np.asarray(POINTS, dtype, order="F" if fortran else "C")
    with warnings.catch_warnings(action="ignore"):  # NumPy warns that an unusual version was asked for
        body = npy(array, version)
    got = decode(body, step=step)
    assert got.dtype == np.dtype(dtype).newbyteorder("<")
    np.testing.assert_array_equal(got, POINTS)


@given(
    n=st.integers(1, 40),
    d=st.integers(1, 9),
    step=st.integers(1, 4096),
    fortran=st.booleans(),
    kind=st.sampled_from(["<f4", ">f8"]),
)
def test_decoder_does_not_depend_on_the_pieces(n, d, step, fortran, kind):
    array = np.asarray(np.random.default_rng(n).random((n, d)), kind, order="F" if fortran else "C")
    body = npy(array)
    np.testing.assert_array_equal(decode(body, step=step, length=len(body)), array)


def test_decoder_gives_rows_in_blocks_before_the_body_ends():
    big = np.zeros((9_000, 10))
    decoder = wire.points_decoder(wire.NPY, None, None, {}, LIMITS._replace(max_body_bytes=1 << 30))
    body = npy(np.tile(big, (1, 10)))
    sizes = [rows.nbytes for start in range(0, len(body), 65536) for rows in decoder.feed(body[start : start + 65536])]
    assert len(sizes) >= 6
    assert max(sizes) < 1_200_000


@pytest.mark.parametrize(
    ("descr", "dtype"),
    [
        *(
            ("'=f8'", "<f8"),
            ("'f8'", "<f8"),
            ("'|f8'", "<f8"),
            ("'float64'", "<f8"),
            ("'>d'", ">f8"),
            ("u'<f8'", "<f8"),
        ),
        *(("'=f4'", "<f4"), ("u'>f4'", ">f4"), ("'float32'", "<f4"), ("b'<f4'", "<f4")),
    ],
)
@pytest.mark.parametrize("shape", ["(20, 3)", "(20L, 3L)", "(20l, 3L,)"])
@pytest.mark.parametrize("key", ["'shape'", "u'shape'"])
def test_npy_decoder_reads_headers_of_python_2_and_other_writers(descr, dtype, shape, key):
    text = f"{{'descr': {descr}, 'fortran_order': False, {key}: {shape}, }}          \n"
    got = decode(header(text) + POINTS.astype(dtype).tobytes(), step=5)
    assert got.dtype == np.dtype(dtype).newbyteorder("<")
    np.testing.assert_array_equal(got, POINTS)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[[1700000000000000000, 1], [1700000000000000001, 2]]", "row 1, column 0"),
        ("[[0.5, 9007199254740993]]", "row 0, column 1"),
        ("[[-1700000000000000001]]", "row 0, column 0"),
        ("[[1700000000000000001.0], [1700000000000000000.0]]", "row 0, column 0"),
        ("[[1, 2], [1, 9007199254740992.5]]", "row 1, column 1"),
        ("[[1.700000000000000001e18]]", "row 0, column 0"),
    ],
)
def test_json_refuses_whole_numbers_that_float64_rounds(text, place):
    with pytest.raises(InvalidPoints, match=f"{place} is .*which float64 rounds to .*subtract an offset") as caught:
        decode(text.encode(), wire.JSON)
    assert caught.value.row == int(place[4])


def test_json_advice_for_large_whole_numbers_works():
    with pytest.raises(InvalidPoints) as caught:
        decode(b"[[1700000000000000003], [1700000000000000001]]", wire.JSON)
    offset = int(str(caught.value).split("Euclidean distance: ")[1].split()[0])
    rounded = str(caught.value).rpartition(" ")[2]
    assert decode(f"[[{1700000000000000003 - offset}], [0]]".encode(), wire.JSON).tolist() == [[2], [0]]
    assert decode(f"[[{rounded}]]".encode(), wire.JSON).tolist() == [[1.7e18]]
    with pytest.raises(InvalidPoints, match=r"rounds to 1.*; take it rounded"):
        decode(b"[[0], [1700000000000000001]]", wire.JSON)
    assert decode(b"[[9007199254740992, 1152921504606846976, 1e300]]", wire.JSON)[0, 1] == 2**60


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[1e-400]]", "row 0, column 0 is 1e-400, which float64 takes for 0; use a smaller unit"),
        ("[[0, 1], [2, -0.01e-399999999999999999999]]", "row 1, column 1 is .*takes for 0"),
        ("[[0.0, 1e400]]", "row 0, column 1 is 1e400, which float64 cannot hold; use a larger unit"),
        ("[[0.10000000000000001], [3], [0.100000000000000011]]", "row 2.*tell from 0.10000000000000001; subtract 0 fr"),
        (
            "[[1000000000000000.01], [1000000000000000.02]]",
            "tell from 1000000000000000.01; subtract 1000000000000000 f",
        ),
        ("[[1.00000000000000001], [1.00000000000000002], [1e300]]", "row 1.*; take fewer digits"),
        (
            f"[[9007199254740993.{'0' * 99}]]",
            "row 0, column 0 is 9007199254740993.0*…, which float64 rounds to 9007199254",
        ),
    ],
)
def test_json_refuses_numbers_that_float64_does_not_tell_apart(text, said):
    with pytest.raises(InvalidPoints, match=said):
        decode(text.encode(), wire.JSON)


def test_json_takes_what_is_printed_of_float64():
    values = np.ldexp(np.random.default_rng(3).normal(size=8), [-1060, -40, 0, 0, 57, 70, 400, 900])
    for form in (repr, "{:.18e}".format, "{:.17g}".format, "{:.6e}".format, "{:.30f}".format):
        text = "[" + ",".join(f"[{form(float(value))}]" for value in values) + "]"
        rows = decode(text.encode(), wire.JSON)
        np.testing.assert_array_equal(rows[:, 0], [float(form(float(value))) for value in values])
    assert decode(b"[[0.0, -0e-9, 0E999999999999999999999, 0.1, 1.10]]", wire.JSON).tolist() == [[0, 0, 0, 0.1, 1.1]]


@pytest.mark.parametrize("media", [None, "", "application/x-www-form-urlencoded", "application/octet-stream"])
def test_undeclared_npy_is_recognised(media):
    np.testing.assert_array_equal(decode(npy(POINTS), media, step=3), POINTS)


def test_undeclared_json_is_recognised():
    np.testing.assert_array_equal(decode(b"[[1,2],[3,4.5]]", "application/x-www-form-urlencoded"), [[1, 2], [3, 4.5]])


@pytest.mark.parametrize("media", [None, wire.RAW])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_raw_numbers_need_dtype_and_shape(media, dtype):
    got = decode(POINTS.astype(dtype).tobytes(), media, dtype=dtype, shape="20,3")
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, POINTS)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"dtype": "complex64", "shape": "20,3"}, "dtype"),
        ({"shape": "20,3"}, "dtype"),
        ({"dtype": "float32"}, "shape"),
        ({"dtype": "float32", "shape": "20,x"}, "shape"),
        ({"dtype": "float32", "shape": "-1,3"}, "shape"),
    ],
)
def test_raw_parameters_are_named_when_wrong(query, field):
    with pytest.raises(wire.InvalidParameter) as caught:
        decode(b"", wire.RAW, **query)
    assert caught.value.field == field


DICT = "{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        (b"", wire.MalformedArray, "empty"),
        (b"\x93NUMPY", wire.WrongLength, "inside its .npy header"),
        (npy(POINTS)[:50], wire.WrongLength, "inside its .npy header"),
        (b"lon,lat\n1,2\n", wire.MalformedArray, "not a .npy file"),
        (b"\x93NUMPY\x09\x00", wire.MalformedArray, "9.0"),
        (header("x" * 5000), wire.MalformedArray, "5000 bytes"),
        (header("[" * 3000), wire.MalformedArray, "cannot be read"),
        (header("__import__('os')"), wire.MalformedArray, "cannot be read"),
        (header("{'descr': '<f8'}"), wire.MalformedArray, "must hold"),
        (header(DICT.format(descr="'<f8'", shape="[2, 2]")), wire.MalformedArray, "shape"),
        (header(DICT.format(descr="'<f8'", shape="(True, 2)")), wire.MalformedArray, "shape"),
        (header(DICT.format(descr="'|O'", shape="(2, 2)")), InvalidPoints, "never read"),
        (header(DICT.format(descr="'<f16'", shape="(2, 2)")), InvalidPoints, "astype"),
        (
            header(DICT.format(descr="[('x', '<f8'), ('y', '<f4')]", shape="(2,)")),
            InvalidPoints,
            r"\[X\['x'\], X\['y'\]\]",
        ),
        (header(DICT.format(descr="'<c16'", shape="(2, 2)")), InvalidPoints, r"column_stack\(\(X.real, X.imag\)\)"),
        (header(DICT.format(descr="'<M8[s]'", shape="(2, 2)")), InvalidPoints, "count seconds"),
        (header(DICT.format(descr="'no such type'", shape="(2, 2)")), InvalidPoints, "no such type"),
        (header(DICT.format(descr="'<f8'", shape="(7,)")), InvalidPoints, r"reshape\(-1, 1\)"),
        (header(DICT.format(descr="'<f8'", shape="(7, 2, 2)")), InvalidPoints, r"expected \(n, d\)"),
        (header(DICT.format(descr="'<f8'", shape="(0, 2)")), InvalidPoints, "at least one row"),
        (header(DICT.format(descr="'<f8'", shape="(2, 0)")), InvalidPoints, "at least one row"),
        (header(DICT.format(descr="'<f8'", shape="(-5, 2)")), InvalidPoints, "at least one row"),
        (header(DICT.format(descr="'<f8'", shape="(10**30, 2)")), wire.MalformedArray, "cannot be read"),
        (header(DICT.format(descr="'<f8'", shape=f"({10**30}, 2)")), wire.BodyTooLarge, "limit"),
        (header(DICT.format(descr="'<f4'", shape="(10001, 1)")), wire.BodyTooLarge, "10001 points"),
        (header(DICT.format(descr="'<f4'", shape="(2, 101)")), wire.BodyTooLarge, "101 columns"),
        (npy(np.asfortranarray(np.zeros((9000, 2)))), wire.BodyTooLarge, "ascontiguousarray"),
        (npy(POINTS)[:-1], wire.WrongLength, "cut short"),
        (npy(POINTS) + b"\n", wire.WrongLength, "goes on"),
        (npy(np.asfortranarray(POINTS))[:-1], wire.WrongLength, "cut short"),
        (npy(np.asfortranarray(POINTS)) + b"1", wire.WrongLength, "goes on"),
    ],
)
def test_npy_decoder_names_the_fault(body, error, words):
    with pytest.raises(error, match=words):
        decode(body)


@given(
    start=st.integers(0, 130), noise=st.binary(max_size=20), cut=st.integers(0, 700), keep=st.sampled_from([8, 10, 128])
)
def test_npy_decoder_refuses_any_noise_by_name(start, noise, cut, keep):
    body = npy(POINTS)
    altered = body[:start] + noise + body[start + len(noise) :]
    for candidate in (altered, altered[:cut], body[:keep] + noise, wire.NPY_MAGIC + b"\x01\x00" + noise):
        try:
            points = decode(candidate)
        except PcctError:
            continue
        assert points.ndim == 2


def test_npy_decoder_never_unpickles():
    body = io.BytesIO()
    np.save(body, np.array([[object()]], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidPoints, match="pickle"):
        decode(body.getvalue())


@pytest.mark.parametrize(("extra", "words"), [(-8, "cut short"), (8, "goes on")])
def test_content_length_is_judged_when_the_header_is_known(extra, words):
    body = npy(POINTS)
    decoder = wire.points_decoder(wire.NPY, None, len(body) + extra, {}, LIMITS)
    with pytest.raises(wire.WrongLength, match=words):
        list(decoder.feed(body[:128]))


def test_content_length_over_the_limit_is_refused_before_the_body():
    with pytest.raises(wire.BodyTooLarge, match="limit"):
        wire.points_decoder(wire.NPY, None, 1 << 30, {}, LIMITS)


@pytest.mark.parametrize("media", ["text/csv", "text/plain; charset=utf-8", "multipart/form-data; boundary=x"])
def test_other_types_are_refused_with_what_to_send(media):
    with pytest.raises(wire.UnsupportedBody, match="--data-binary"):
        wire.points_decoder(media, None, None, {}, LIMITS)


@pytest.mark.parametrize("media", [wire.NPZ, "application/zip", None, wire.RAW])
def test_npz_is_refused_with_the_reason(media):
    body = io.BytesIO()
    np.savez(body, points=POINTS)
    with pytest.raises(wire.UnsupportedBody, match=r"zip archives.*np\.save"):
        decode(body.getvalue(), media)


def test_compressed_bodies_are_refused():
    with pytest.raises(wire.UnsupportedBody, match="gzip"):
        wire.points_decoder(wire.NPY, "gzip", None, {}, LIMITS)


def test_undeclared_text_is_refused_with_what_to_send():
    with pytest.raises(wire.UnsupportedBody, match="--data-binary"):
        decode(b"lon,lat\n", "application/x-www-form-urlencoded")


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        (b"", wire.MalformedArray, "not JSON"),
        (b"{", wire.MalformedArray, "not JSON"),
        (b"[" * 4000, wire.MalformedArray, "not JSON"),
        (b'{"a": 1}', wire.MalformedArray, "not a list"),
        (b"[]", InvalidPoints, "at least one row"),
        (b"[[]]", InvalidPoints, "at least one row"),
        (b"[1, 2]", InvalidPoints, "row 0"),
        (b"[[1], [1, 2]]", InvalidPoints, "row 1 has 2"),
        (b"[[1], [[2]]]", InvalidPoints, "row 1"),
        (b'[[1], ["2"]]', InvalidPoints, "row 1"),
        (b"[[1], [null]]", InvalidPoints, "row 1"),
        (b"[[1], [true]]", InvalidPoints, "row 1"),
        (b"[[1" + b"0" * 400 + b"]]", InvalidPoints, "too large"),
        (b"[[1]]" + b" " * 5000, wire.BodyTooLarge, "as the whole body"),
    ],
)
def test_json_decoder_names_the_fault(body, error, words):
    with pytest.raises(error, match=words):
        decode(body, wire.JSON)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
@pytest.mark.parametrize("shape", [(1, 1), (20, 3), (2**31 - 2, 16384), (7,), (1234567,)])
def test_npy_header_is_what_np_save_writes(dtype, shape):
    out = io.BytesIO()
    fields = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, fields)
    assert wire.npy_header(dtype, shape) == out.getvalue()


def stream(name: str, array: np.ndarray) -> wire.ArrayStream:
    async def rows():
        for start in range(0, len(array), 3):
            yield array[start : start + 3].tobytes()

    return wire.ArrayStream(name, array.dtype.name, array.shape, rows())


@pytest.mark.anyio
async def test_write_npy_is_the_file_that_np_save_writes():
    body = b"".join([piece async for piece in wire.write_npy(stream("x", POINTS))])
    assert hashlib.sha256(body).digest() == hashlib.sha256(npy(POINTS)).digest()


@pytest.mark.anyio
async def test_write_npz_is_read_by_numpy_and_deterministic():
    arrays = {"neighbors": np.arange(12, dtype=np.int32).reshape(4, 3), "order": np.arange(4)}
    first, second = [
        b"".join([piece async for piece in wire.write_npz(stream(name, array) for name, array in arrays.items())])
        for _ in range(2)
    ]
    assert first == second
    assert wire.npz_bytes([stream(name, array) for name, array in arrays.items()]) == len(first)
    with np.load(io.BytesIO(first), allow_pickle=False) as got:
        assert got.files == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(got[name], array)
            assert got[name].dtype == array.dtype


def test_npz_bytes_leaves_large_files_open():
    fields = {"name": "neighbors", "dtype": "int32", "rows": stream("x", POINTS).rows}
    assert wire.npz_bytes([wire.ArrayStream(shape=(1_000_000, 400), **fields)]) > 1_600_000_000
    assert wire.npz_bytes([wire.ArrayStream(shape=(1_000_000, 550), **fields)]) is None


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, wire.NPZ),
        ("*/*", wire.NPZ),
        ("application/*", wire.NPZ),
        (wire.NPY, wire.NPY),
        (f"{wire.NPZ};q=0.1, {wire.NPY}", wire.NPY),
        (f"text/html, {wire.NPY};q=0.5, */*;q=0.1", wire.NPY),
        (f"{wire.NPZ};q=0, */*", wire.NPY),
    ],
)
def test_choose_format_follows_accept(accept, chosen):
    assert wire.choose_format(accept, (wire.NPZ, wire.NPY)) == chosen


@pytest.mark.parametrize("accept", ["text/html", f"{wire.NPY};q=0", "nonsense", "*/*;q=x"])
def test_choose_format_refuses_what_it_cannot_write(accept):
    with pytest.raises(wire.NothingAcceptable, match=r"application/x-npy"):
        wire.choose_format(accept, (wire.NPY,))
