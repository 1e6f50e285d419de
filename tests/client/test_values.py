"""What is no array of real numbers is refused, and the code in each message makes one of it when it is followed literally."""

import datetime
import io
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pcct_client import InvalidArray
from pcct_client.arrays import npy_body
from pcct_client.inputs import as_array
from pcct_client.values import EXACT_WHOLE, rounded_row
from pcct_core import InvalidPoints
from pcct_core.points import as_points

POINTS = np.array([[10.0, 50.0], [11.0, 51.5], [12.0, -3.0]])
NANOSECONDS = 1_700_000_000_000_000_000 + np.arange(6).reshape(3, 2) ** 3
DAY = np.datetime64("2024-02-28T12:00:00")


def follow(X, code):
    """Return what the client sends after the code of a message was followed."""
    names = {"X": X, "np": np, "io": io}
    *statements, last = code.split("; ")
    for statement in statements:
        exec(statement, names)
    exec(f"made = {last}", names)
    return npy_body(names["made"]).points


@pytest.mark.parametrize(
    ("X", "said", "code", "points"),
    [
        (
            np.array([("a", 10.0, 50.0), ("b", 11.0, 51.5)], [("name", "U1"), ("lon", "f8"), ("lat", "f8")]),
            "points have type",
            "np.column_stack([X['lon'], X['lat']])",
            POINTS[:2],
        ),
        (POINTS.astype(complex), "type complex128", "np.column_stack((X.real, X.imag))", None),
        (POINTS[:, 0] + 1j * POINTS[:, 1], "type complex128", "np.column_stack((X.real, X.imag))", POINTS),
        (
            [*POINTS.tolist(), [1j, 0.0]],
            "type complex128",
            "np.column_stack((np.asarray(X).real, np.asarray(X).imag))",
            None,
        ),
        (POINTS.astype(str), "type <U", "np.asarray(X, dtype='float64')", POINTS),
        (POINTS.astype(bytes), "type |S", "np.asarray(X, dtype='float64')", POINTS),
        ([["1", 2], ["3", 4]], "type <U", "np.asarray(X, dtype='float64')", [[1, 2], [3, 4]]),
        ([["1700000000000000001"]], "type <U", "np.asarray(X, dtype='int64') - 1700000000000000000", [[1]]),
        (POINTS.astype(object), "type object", "np.asarray(X, dtype='float64')", POINTS),
        ([[Fraction(1, 2), Decimal("0.1")]], "type object", "np.asarray(X, dtype='float64')", [[0.5, 0.1]]),
        (POINTS.astype(np.longdouble), "type float128", "X.astype('float64')", POINTS),
        ({"x": POINTS[:, 0], "y": POINTS[:, 1]}, "a dictionary", "np.column_stack(list(X.values()))", POINTS),
        (dict(enumerate(POINTS.tolist())), "a dictionary", "np.array(list(X.values()))", POINTS),
        ({(1.0, 2.0)}, "a set, which is no array", "np.array(list(X))", [[1, 2]]),
        (
            DAY + np.arange(3) * np.timedelta64(1500, "ms"),
            "datetime64",
            "((X - X.min()) / np.timedelta64(1, 's')).reshape(-1, 1)",
            [[0], [1.5], [3]],
        ),
        (np.array([[5, 7]], "m8[s]"), "timedelta64", "X / np.timedelta64(1, 's')", [[5, 7]]),
        (
            [datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 2)],
            "row 0 is a time",
            "X = np.asarray(X, dtype='datetime64[us]'); ((X - X.min()) / np.timedelta64(1, 's')).reshape(-1, 1)",
            [[0], [86400]],
        ),
        (npy_body(POINTS).header + POINTS.tobytes(), "are bytes", "np.load(io.BytesIO(X))", POINTS),
        (POINTS[:, 0], r"expected (n, d)", "X.reshape(-1, 1)", POINTS[:, :1]),
        (POINTS[:, 0].tolist(), r"expected (n, d)", "np.asarray(X).reshape(-1, 1)", POINTS[:, :1]),
        (5.0, r"expected (n, d)", "np.asarray(X).reshape(1, 1)", [[5]]),
        (POINTS[:, None], r"expected (n, d)", "X.reshape(3, -1)", POINTS),
        (
            np.ma.masked_equal(POINTS, 51.5),
            "row 1, column 1 is masked",
            "X[~np.ma.getmaskarray(X).any(axis=1)]",
            POINTS[[0, 2]],
        ),
        (
            np.ma.masked_equal(POINTS, 51.5),
            "row 1, column 1 is masked",
            "X.filled(0)",
            np.where(POINTS == 51.5, 0, POINTS),
        ),
        (
            NANOSECONDS,
            "row 0, column 1 is 1700000000000000001, which float64 rounds to 1700000000000000000",
            "X - X.min(axis=0)",
            NANOSECONDS - NANOSECONDS.min(axis=0),
        ),
        (
            NANOSECONDS,
            "subtract an offset, which changes no Euclidean distance",
            "np.asarray(X, dtype='float64')",
            None,
        ),
        (
            NANOSECONDS.tolist(),
            "row 0, column 1 is 1700000000000000001",
            "A = np.array(X, dtype=object); (A - A.min(axis=0)).astype('float64')",
            NANOSECONDS - NANOSECONDS.min(axis=0),
        ),
        (
            NANOSECONDS.astype(object),
            "row 1, column 0 is 1700000000000000008",
            "A = np.array(X, dtype=object); (A - A.min(axis=0)).astype('float64')",
            NANOSECONDS - NANOSECONDS.min(axis=0),
        ),
        (
            [[0.5, 2**60 + 1], [1.5, 2**60 + 2]],
            "row 0, column 1 is 1152921504606846977",
            "A = np.array(X, dtype=object); (A - A.min(axis=0)).astype('float64')",
            [[0, 0], [1, 1]],
        ),
        (
            [[2**70 + 1], [2**70 + 3]],
            "row 0, column 0 is 1180591620717411303425",
            "A = np.array(X, dtype=object); (A - A.min(axis=0)).astype('float64')",
            [[0], [2]],
        ),
        (
            np.array([[Decimal("1700000000.000000001")], [Decimal("1700000000.000000002")]]),
            "row 1, column 0 is 1700000000.000000002, which float64 does not tell from 1700000000.000000001",
            "A = np.array(X, dtype=object); (A - A.min(axis=0)).astype('float64')",
            [[0], [1e-9]],
        ),
        (
            np.array([[2**63], [2**64 - 1]], np.uint64),
            "row 1, column 0 is 18446744073709551615",
            "np.asarray(X, dtype='float64')",
            None,
        ),
    ],
)
def test_the_advice_of_a_message_works_as_it_stands(X, said, code, points):
    with pytest.raises(InvalidArray) as refused:
        npy_body(X)
    assert said in str(refused.value)
    for statement in code.split("; ") if "datetime64[us]" not in code else ["np.asarray(X, dtype='datetime64[us]')"]:
        assert statement.partition(" - 17")[0] in str(refused.value)
    sent = follow(X, code)
    if points is not None:
        np.testing.assert_array_equal(sent, points)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (None, "points are None; give an array"),
        (object(), "not one object"),
        ([[1.0, None]], "row 0, column 1 is None; remove or fill such rows"),
        ([["a", 1]], "row 0, column 0 is 'a', which is no number; give columns of numbers alone"),
        ([[1.0], [2.0, 3.0]], "rows of different lengths: row 1 has 2 values, row 0 has 1; give every row as many"),
        ([[1.0], 2.0], "row 1 is one value and others are rows of them"),
        ([np.ma.masked_equal([1, 2], 2), [3, 4]], "row 0 has masked values"),
        ([[3, 4], [1, np.ma.masked]], "row 1 has masked values"),
        (np.zeros(3, [("name", "U3")]), "none of its fields is a number"),
        (Path("places.npy"), "the text 'places.npy', not an array; use np.load('places.npy')"),
        ("places.csv", "use np.loadtxt('places.csv', delimiter=',')"),
        ("some words", "read the file, and give its numbers"),
        ([[2**63, -(2**62) - 1]], "row 0, column 1 is -4611686018427387905, which float64 rounds to"),
        ([[10**400]], "which float64 cannot hold; use a larger unit"),
    ],
)
def test_what_cannot_be_sent_is_named(X, message):
    with pytest.raises(InvalidArray) as refused:
        npy_body(X)
    assert message in str(refused.value)


def test_files_are_read_as_a_message_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("places.npy", POINTS)
    np.savetxt("places.csv", POINTS, delimiter=",")
    np.savetxt("places.txt", POINTS)
    for name, code in (
        ("places.npy", "np.load('places.npy')"),
        ("places.csv", "np.loadtxt('places.csv', delimiter=',')"),
        ("places.txt", "np.loadtxt('places.txt')"),
    ):
        for X in (name, Path(name)):
            with pytest.raises(InvalidArray) as refused:
                npy_body(X)
            assert f"use {code}" in str(refused.value)
            np.testing.assert_array_equal(follow(X, code), POINTS)


@pytest.mark.parametrize("dtype", [np.float16, np.bool_, np.int8, np.uint64])
def test_small_types_become_float64(dtype):
    sent = npy_body((POINTS > 11).astype(dtype)).points
    assert sent.dtype == np.float64
    np.testing.assert_array_equal(sent, POINTS > 11)


def test_whole_numbers_that_float64_holds_are_taken_however_large():
    held = np.array([[EXACT_WHOLE, -EXACT_WHOLE], [2**62, -(2**63)], [2**53 + 2, -(2**60) - 2**10]])
    np.testing.assert_array_equal(npy_body(held).points.astype(object), held.astype(object))
    np.testing.assert_array_equal(npy_body(held.tolist()).points, npy_body(held).points)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_rounded_row_is_the_first_that_python_finds(dtype):
    rng, limits = np.random.default_rng(1), np.iinfo(dtype)
    for _ in range(200):
        shift = int(rng.integers(0, 63))
        whole = (
            rng.integers(limits.min, limits.max, 4, dtype, endpoint=True)
            >> dtype(shift)
            << dtype(rng.integers(0, shift + 1))
        )
        expected = next((row for row, value in enumerate(whole.tolist()) if int(float(value)) != value), None)
        assert rounded_row(whole) == expected


@pytest.mark.parametrize(
    "X",
    [
        NANOSECONDS,
        NANOSECONDS.tolist(),
        NANOSECONDS[:, :1].astype(object),
        [[10**20 + 1], [1]],
        np.array([[2**63], [2**64 - 1]], np.uint64),
        POINTS.astype(complex),
        POINTS.astype(str),
        POINTS.astype(object),
        POINTS[None],
        POINTS[:0],
        5.0,
        {"x": POINTS[:, 0]},
        {(1.0, 2.0)},
        None,
        "places.npy",
        Path("places.csv"),
        [[1, None]],
        [[1, "a"]],
        [[1.0], [2.0, 3.0]],
        [[1.0], 2.0],
        np.ma.masked_equal(POINTS, 51.5),
        np.array([DAY]),
        np.zeros(2, [("lon", "f8"), ("lat", "f8")]),
    ],
)
def test_the_library_says_the_same(X):
    with pytest.raises(InvalidArray) as refused:
        npy_body(X)
    with pytest.raises(InvalidPoints) as by_library:
        as_points(X)
    assert str(refused.value) == str(by_library.value)


@pytest.mark.parametrize("read", [lambda values: values, lambda values: pandas_frame(values)], ids=["list", "frame"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Decimal("1700000000000000001.5"), "rounds to 1700000000000000000; subtract an offset"),
        (Fraction(2**54 + 1), "rounds to 18014398509481984; subtract"),
        (Decimal("-1e400"), "cannot hold; use a larger unit"),
        (Decimal("1e-400"), "takes for 0; use a smaller unit"),
    ],
)
def test_decimals_that_float64_does_not_hold_are_named(read, value, said):
    with pytest.raises(InvalidArray, match=f"row 1.* which float64 {said}"):
        as_array(read([[Decimal(1)], [value]]))
    assert as_array(pandas_frame([[Decimal("1e300")], [Decimal("0.1")]])).tolist() == [[1e300], [0.1]]


def pandas_frame(rows):
    return pytest.importorskip("pandas").DataFrame({"a": [value for (value,) in rows]})


@pytest.mark.parametrize(
    ("X", "said"),
    [
        ({}, "an empty dictionary"),
        (bytearray(8), "points are bytes, not an array"),
        ([{"x": 1}, {"x": 2}], r"row 0 is a dictionary; use np\.array\(\[list\(row\.values\(\)\) for row in X\]\)"),
    ],
)
def test_what_is_no_array_is_named(X, said):
    with pytest.raises(InvalidArray, match=said):
        as_array(X)


def test_a_column_of_128_bits_alone_is_named():
    polars = pytest.importorskip("polars")
    X = polars.Series([1, 2]).cast(polars.Int128)
    with pytest.raises(InvalidArray, match=r"type Int128, .*X\.cast\(int\)\.to_frame\(\)"):
        as_array(X)
    assert as_array(X.cast(int).to_frame()).tolist() == [[1], [2]]
