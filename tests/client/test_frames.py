"""Columns of data frames: by name, exactly, and advice on columns that hold no numbers, which works as it stands."""

import datetime
import re
from decimal import Decimal

import numpy as np
import pytest

from pcct_client import InvalidArray, dataset_id
from pcct_client.arrays import npy_body
from pcct_client.frames import read_frame

POINTS = np.array([[10.0, 50.0], [11.0, 51.5], [12.0, -3.0]])
NANOSECONDS = [1_700_000_000_000_000_000, 1_700_000_000_000_000_001, 1_700_000_000_000_000_003]


def read(frame, columns=None):
    return read_frame(frame, columns, in_degrees=False).values


@pytest.fixture(params=["pandas", "polars"])
def frames(request):
    return pytest.importorskip(request.param)


@pytest.fixture(params=["pandas", "polars"])
def frame(request):
    """A frame of mixed types."""
    module = pytest.importorskip(request.param)
    columns = {
        "name": ["a", "b", "c"],
        "lon": POINTS[:, 0],
        "lat": POINTS[:, 1],
        "depth": POINTS[:, 0].astype(np.float32),
        "count": np.array([1, 2, 3]),
    }
    return module.DataFrame(columns)


def test_read_frame_takes_columns_of_a_frame_in_their_order(frame):
    np.testing.assert_array_equal(read(frame, ["lon", "lat"]), POINTS)
    np.testing.assert_array_equal(read(frame, ["lat", "lon"]), POINTS[:, ::-1])
    assert dataset_id(frame, ["lon", "lat"]) == dataset_id(POINTS)


def test_read_frame_keeps_or_widens_the_types_of_a_frame(frame):
    assert read(frame, ["depth"]).dtype == np.float32
    assert read(frame, "depth").shape == (3, 1)
    assert read(frame, ["depth", "lon"]).dtype == np.float64
    assert read(frame, ["depth", "count"]).dtype == np.float64
    assert npy_body(frame, ["count"]).points.dtype == np.float64


def test_read_frame_takes_a_frame_of_numbers_whole(frame):
    numbers = frame.drop("name", axis=1) if hasattr(frame, "iloc") else frame.drop("name")
    assert read(numbers).shape == (3, 4)


def test_read_frame_says_what_is_wrong_with_a_frame(frame):
    with pytest.raises(InvalidArray, match=r"column 'name' has type .*choose columns of numbers"):
        read(frame)
    with pytest.raises(InvalidArray, match=r"no column 'x'; the frame has 'name', 'lon', 'lat', 'depth', 'count'"):
        read(frame, ["x"])
    with pytest.raises(InvalidArray, match="no column is chosen"):
        read(frame, [])


def test_read_frame_leaves_missing_values_for_the_service_to_name():
    pandas = pytest.importorskip("pandas")
    nullable = pandas.DataFrame(
        {"x": pandas.array([1, None, 3], "Int64"), "y": pandas.array([1.5, 2.5, None], "Float32")}
    )
    np.testing.assert_array_equal(read(nullable), [[1, 1.5], [np.nan, 2.5], [3, np.nan]])
    assert read(nullable, ["y"]).dtype == np.float32


def test_read_frame_refuses_two_columns_of_one_name():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InvalidArray, match="several columns 'x'; rename them"):
        read(pandas.DataFrame(POINTS, columns=["x", "x"]))


def test_read_frame_cuts_a_long_list_of_columns(frames):
    with pytest.raises(InvalidArray, match=r"'c11' and 8 more$"):
        read(frames.DataFrame({f"c{i}": POINTS[:, 0] for i in range(20)}), ["x"])


def follow(X, message):
    """Return the column t after the code of a message was followed."""
    names = {"X": X, "np": np}
    exec("made = " + re.search(r"(X\.\w+\(.*?\))(?:; or take| makes numbers|$)", message)[1], names)
    return npy_body(names["made"], ["t"]).points[:, 0]


@pytest.mark.parametrize(
    ("values", "message", "expected"),
    [
        (NANOSECONDS, "row 1 of column 't' is 1700000000000000001, which float64 rounds to", [0, 1, 3]),
        ([Decimal(value) / 8 for value in NANOSECONDS], "float64 does not tell from", [0, 0.125, 0.375]),
        (["1.5", "2", "1e3"], "column 't' has type", [1.5, 2, 1000]),
        ([datetime.datetime(2024, 1, 1, 0, 0, s, 500000 * (s % 2)) for s in (0, 1, 2)], "count seconds", [0, 1.5, 2]),
        ([datetime.date(2024, 1, day) for day in (1, 2, 4)], "count seconds", [0, 86400, 259200]),
        ([datetime.timedelta(seconds=s / 2) for s in (1, 2, 3)], "count seconds", [0.5, 1, 1.5]),
        ([datetime.datetime(2024, 1, s, tzinfo=datetime.UTC) for s in (1, 2, 3)], "count seconds", [0, 86400, 172800]),
    ],
    ids=["nanoseconds", "decimals", "text", "moments", "days", "durations", "moments of a zone"],
)
def test_the_advice_on_a_column_works_as_it_stands(frames, values, message, expected):
    X = frames.DataFrame({"t": values})
    with pytest.raises(InvalidArray) as refused:
        npy_body(X)
    assert message in str(refused.value)
    np.testing.assert_array_equal(follow(X, str(refused.value)), expected)


def test_integers_beside_missing_values_are_not_rounded_without_a_word():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    held = [None, *NANOSECONDS]
    for column in (
        pandas.array(held, "Int64"),
        pandas.array(held, "UInt64"),
        pandas.array(held, "int64[pyarrow]"),
        pandas.Series(held, dtype=object),
        polars.Series(held),
        polars.Series(held, dtype=polars.Int128),
    ):
        X = (polars if isinstance(column, polars.Series) else pandas).DataFrame({"t": column})
        with pytest.raises(InvalidArray, match="row 2 of column 't' is 1700000000000000001, which float64 rounds"):
            read(X)


def test_numbers_of_any_type_are_taken():
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    for X in (
        pandas.DataFrame({"a": [Decimal("0.1"), 2], "b": [True, None], "c": [np.float16(0.5), 1], "d": [2**60, 1]}),
        polars.DataFrame({"a": [Decimal("0.1"), Decimal(2)], "b": [True, None], "c": [0.5, 1.0], "d": [2**60, 1]}),
    ):
        np.testing.assert_array_equal(read(X), [[0.1, 1, 0.5, 2**60], [2, np.nan, 1, 1]])


def test_a_column_of_other_objects_is_named_with_its_row():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InvalidArray, match=r"row 1 of column 'x' is \[2.0\], which is no number"):
        read(pandas.DataFrame({"x": [1.0, [2.0]]}))


def test_an_arrow_table_is_to_become_a_frame():
    pyarrow = pytest.importorskip("pyarrow")
    with pytest.raises(InvalidArray, match=r"a Table of Arrow; use X.to_pandas\(\)"):
        npy_body(pyarrow.table({"x": [1.0, 2.0]}))
