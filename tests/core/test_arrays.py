import ast
import datetime
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse

import pcct_core as pc
from pcct_core.arrays import read_numbers
from pcct_core.points import as_points
from pcct_core.spec import Matern52, Residual, stored_array
from tests.core.judge import same_bytes

SECOND = 1_700_000_000_000_000_000  # nanoseconds since 1970, where neighbors in float64 are 256 apart
LARGE = np.array([[SECOND, 5], [SECOND + 1, 5], [SECOND + 3, 9]])
OFFSET = LARGE - LARGE.min(axis=0)


class Place:
    """A point, or something with a middle, as shapely has them."""

    def __init__(self, x: float, y: float, geom_type: str = "Point") -> None:
        self.x, self.y, self.geom_type = x, y, geom_type

    @property
    def centroid(self) -> "Place":
        return Place(self.x, self.y)


def do(code, **names):
    """Return the value of the last statement, after the others; what a user would paste."""
    *before, last = ast.parse(code).body
    scope = {"np": np, **names}
    exec(compile(ast.Module(before, []), "advice", "exec"), scope)
    return eval(compile(ast.Expression(last.value), "advice", "eval"), scope)  # noqa: S307


DAYS = np.array(["2020-01-01", "2020-01-02", "2020-01-04"], "M8[D]")
OBJECTS = "A = np.array(X, dtype=object); (A - A.min(axis=0)).astype('float64')"
COLUMNS = "np.column_stack([X[c] - X[c].min() for c in X.columns])"
MIXED = {"t": LARGE[:, 0], "x": [0.5, 0.25, 1.0]}

# What is given, the code in the message, and what that gives.
ADVICE = {
    "dict-of-columns": ({"x": [1, 2], "y": [3, 4]}, "np.column_stack(list(X.values()))", [[1, 3], [2, 4]]),
    "dict-of-points": ({"a": (1, 2), "b": (3, 4)}, "np.array(list(X.values()))", [[1, 2], [3, 4]]),
    "sparse": (scipy.sparse.csr_array(np.eye(2)), "X.toarray()", np.eye(2)),
    "lazy": (pl.DataFrame({"x": [1.0, 2.0]}).lazy(), "X.collect()", [[1], [2]]),
    "generator": ([(1, 2), (3, 4)].__iter__(), "np.array(list(X))", [[1, 2], [3, 4]]),
    "dict-view": ({"a": (1, 2)}.values(), "np.array(list(X))", [[1, 2]]),
    "points": ([Place(1, 2), Place(3, 4)], "np.array([(p.x, p.y) for p in X])", [[1, 2], [3, 4]]),
    "shapes": (
        np.array([Place(1, 2, "Polygon")]),
        "np.array([(p.centroid.x, p.centroid.y) for p in X])",
        [[1, 2]],
    ),
    "complex": (np.array([1 + 2j, 3]), "np.column_stack((X.real, X.imag))", [[1, 2], [3, 0]]),
    "complex-list": ([1 + 2j], "np.column_stack((np.asarray(X).real, np.asarray(X).imag))", [[1, 2]]),
    "text": ([["1", "2.5"]], "np.asarray(X, dtype='float64')", [[1, 2.5]]),
    "bytes": (np.array([[b"1"]]), "np.asarray(X, dtype='float64')", [[1]]),
    "objects": (np.array([[1, 2.5]], object), "np.asarray(X, dtype='float64')", [[1, 2.5]]),
    "decimals": ([[Decimal("1.5"), 2]], "np.asarray(X, dtype='float64')", [[1.5, 2]]),
    "longdouble": (np.ones((1, 2), np.longdouble), "X.astype('float64')", [[1, 1]]),
    "structured": (
        np.array([(1, "a", 2)], [("x", "f8"), ("name", "U1"), ("y", "i2")]),
        "np.column_stack([X['x'], X['y']])",
        [[1, 2]],
    ),
    "structured-vectors": (np.ones(2, [("at", "f8", 3)]), "np.column_stack([X['at']])", np.ones((2, 3))),
    "days": (DAYS, "((X - X.min()) / np.timedelta64(1, 's')).reshape(-1, 1)", [[0], [86400], [259200]]),
    "days-table": (DAYS.reshape(-1, 1), "(X - X.min()) / np.timedelta64(1, 's')", [[0], [86400], [259200]]),
    "spans": (np.array([[3]], "m8[m]"), "X / np.timedelta64(1, 's')", [[180]]),
    "frame-with-names": (pd.DataFrame({"x": [1.0], "name": ["a"]}), "X.select_dtypes('number')", [[1]]),
    "vector": (np.array([1.0, 2.0]), "X.reshape(-1, 1)", [[1], [2]]),
    "vector-list": ([1, 2], "np.asarray(X).reshape(-1, 1)", [[1], [2]]),
    "series": (pd.Series([1.0, 2.0]), "np.asarray(X).reshape(-1, 1)", [[1], [2]]),
    "number": (3.0, "np.asarray(X).reshape(1, 1)", [[3]]),
    "images": (np.ones((3, 2, 2)), "X.reshape(3, -1)", np.ones((3, 4))),
    "masked": (
        np.ma.array([[1, 2], [3, 4]], mask=[[0, 0], [1, 0]]),
        "X[~np.ma.getmaskarray(X).any(axis=1)]",
        [[1, 2]],
    ),
    "masked-filled": (np.ma.array([[1, 2]], mask=[[1, 0]]), "X.filled(0)", [[0, 2]]),
    "int64": (LARGE, "X - X.min(axis=0)", OFFSET),
    "int64-rounded": (LARGE, "np.asarray(X, dtype='float64')", LARGE.astype(float)),
    "int64-negative": (-LARGE, "X - X.min(axis=0)", -LARGE - (-LARGE).min(axis=0)),
    "uint64": (np.array([[2**64 - 1], [2**64 - 4]], np.uint64), "X - X.min(axis=0)", [[3], [0]]),
    "whole-list": (LARGE.tolist(), OBJECTS, OFFSET),
    "whole-objects": (np.array([[2**70 + 1], [2**70]], object), OBJECTS, [[1], [0]]),
    "mixed-list": ([[SECOND + 1, 0.5], [SECOND, 0.75]], OBJECTS, [[1, 0], [0, 0.25]]),
    "pandas": (pd.DataFrame(MIXED), COLUMNS, [[0, 0.25], [1, 0], [3, 0.75]]),
    "polars": (pl.DataFrame(MIXED), COLUMNS, [[0, 0.25], [1, 0], [3, 0.75]]),
    "too-wide": (np.array([[0], [2**53 + 1]]), "np.asarray(X, dtype='float64')", [[0], [2.0**53]]),
}


@pytest.mark.parametrize(("X", "code", "points"), ADVICE.values(), ids=ADVICE.keys())
def test_as_points_says_what_to_do_and_that_works(X, code, points):
    with pytest.raises(pc.InvalidPoints) as caught:
        as_points(X)
    assert code in str(caught.value)
    same_bytes(as_points(do(code, X=X)), np.asarray(points, float))


def test_as_points_converts_times_in_two_steps():
    times = [datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 2)]
    with pytest.raises(pc.InvalidPoints, match=r"np.asarray\(X, dtype='datetime64\[us\]'\)"):
        as_points(times)
    with pytest.raises(pc.InvalidPoints, match="count seconds"):
        as_points(do("np.asarray(X, dtype='datetime64[us]')", X=times))


@pytest.mark.parametrize("write", [str, Path, lambda path: str(path).encode()])
def test_as_points_says_how_to_load_a_file(write, tmp_path):
    for name, save, code in (
        ("points.npy", np.save, "np.load({!r})"),
        ("points.csv", lambda path, X: np.savetxt(path, X, delimiter=","), "np.loadtxt({!r}, delimiter=',')"),
        ("points.txt", np.savetxt, "np.loadtxt({!r})"),
    ):
        path = tmp_path.relative_to(tmp_path.parents[2]) / name  # short enough to be shown whole
        save(tmp_path / name, np.ones((2, 2)))
        with pytest.raises(pc.InvalidPoints) as caught:
            as_points(write(path))
        assert code.format(str(path)) in str(caught.value)
        same_bytes(as_points(do(code.format(str(tmp_path / name)))), np.ones((2, 2)))


@pytest.mark.parametrize(
    ("X", "said", "row"),
    [
        (LARGE, "row 1, column 0 is 1700000000000000001, which float64 rounds to 1700000000000000000", 1),
        ([[0.5, 1], [2, 2**53 + 1]], "row 1, column 1 is 9007199254740993", 1),
        (np.array([[-(2**63)], [2**63 - 1]]), "row 1, column 0 is 9223372036854775807", 1),
        (np.ma.array(np.ones((4, 2)), mask=[[0, 0], [0, 0], [0, 1], [1, 0]]), "row 2, column 1 is masked", 2),
        (np.ma.array([(1, 2.0), (3, 4.0)], [("a", "i4"), ("b", "f8")], mask=[(0, 0), (0, 1)]), "row 1 is masked", 1),
        ([np.ma.array([1, 2]), np.ma.array([1, 2], mask=[1, 0])], "row 1 has masked values", 1),
        ([[1, 2], [3, np.ma.masked]], "row 1 has masked values", 1),
        ([[1, 2], [3]], "row 1 has 1 values, row 0 has 2", 1),
        ([[1, 2], 3], "row 1 is one value", 1),
        ([[1, [2]], [3, 4]], "cannot be read as an array", None),
        (np.array([[1.0, None]], object), "row 0, column 1 is None; remove or fill", 0),
        (pd.DataFrame({"x": pd.array([[1]], object)}), "row 0, column 0 is \\[1\\], which is no number", 0),
        (np.array([["1"], ["x"]]), "row 1, column 0 is 'x'|row 0, column 0 is '1'", 0),
        (np.zeros(2, [("name", "U1")]), "none of its fields is a number", None),
        ([[10**400]], "float64 cannot hold", None),
        (None, "points are None", None),
        (len, "give an array of shape", None),
    ],
)
def test_as_points_names_what_it_refuses(X, said, row):
    with pytest.raises(pc.InvalidPoints, match=said) as caught:
        as_points(X)
    assert caught.value.row == row


def test_as_points_takes_whole_numbers_that_float64_holds():
    for X in (
        np.array([[2**53], [-(2**53)]]),
        np.array([[2**60], [-(2**63)], [3 * 2**61 - 2**63]]),
        np.array([[2**63]], np.uint64),
        [[2**60, 0.5]],
        np.zeros((2, 1), np.uint64),
    ):
        assert [[int(value) for value in row] for row in as_points(X)] == [[int(value) for value in row] for row in X]


def test_as_points_takes_masked_arrays_without_a_masked_value():
    X = np.ma.array([[1.0, 2.0], [3.0, 4.0]])
    same_bytes(as_points(X), X.data)
    same_bytes(as_points([X[0], X[1]]), X.data)
    X[1, 1] = np.ma.masked
    X[1, 1] = 5.0
    same_bytes(as_points(X), np.array([[1.0, 2.0], [3.0, 5.0]]))


def test_as_points_shares_the_memory_of_other_libraries():
    class Elsewhere:
        def __init__(self, array):
            self.__array_interface__ = array.__array_interface__
            self.kept = array

    X = np.ones((3, 2))
    assert np.shares_memory(as_points(Elsewhere(X)), X)


MASKED = np.ma.array(np.random.default_rng(0).random((40, 2)), mask=np.arange(80).reshape(40, 2) == 9)
PLAIN = np.ma.array(MASKED.data)


@pytest.mark.parametrize(
    "use",
    [
        lambda X: pc.knn_graph(X, k=2),
        lambda X: pc.vecchia_graph(X, k=2),
        lambda X: pc.radius_graph(X, 0.1),
        lambda X: pc.build_graph(X, pc.GraphSpec(k=2)),
        lambda X: pc.CoverTree.fit(X),
        lambda X: pc.CoverTree.fit(PLAIN).query(X, k=2),
        lambda X: pc.CoverTree.fit(PLAIN).query_radius(X, 0.1),
        lambda X: Residual(Matern52(), X),
        lambda X: Residual.from_factors(X, np.ones(len(X)), Matern52()),
        lambda X: Residual.from_factors(np.ones((len(X), 1)), X[:, 1], Matern52()),
    ],
)
@pytest.mark.parametrize(
    ("bad", "said"),
    [(MASKED, "row 4.* is masked"), (np.full((40, 2), SECOND) + np.arange(80).reshape(40, 2), "which float64 rounds")],
)
def test_every_door_refuses_what_would_be_lost(use, bad, said):
    with pytest.raises(pc.InvalidInput, match=said):
        use(bad)


def test_every_door_takes_masked_arrays_without_a_masked_value():
    same_bytes(pc.knn_graph(PLAIN, k=2).neighbors, pc.knn_graph(MASKED.data, k=2).neighbors)
    tree = pc.CoverTree.fit(PLAIN)
    same_bytes(tree.query(PLAIN, k=2).neighbors, tree.query(MASKED.data, k=2).neighbors)
    assert stored_array(PLAIN, "metric.inducing") == stored_array(MASKED.data, "metric.inducing")


def test_read_numbers_calls_things_by_their_names():
    with pytest.raises(pc.InvalidPoints, match=r"^queries have type object.*np.asarray\(Q, dtype='float64'\)"):
        read_numbers(np.array([[1]], object), "queries", "Q")
    with pytest.raises(pc.InvalidSpec, match=r"^factors V are a sparse matrix.*use V.toarray\(\)") as caught:
        Residual.from_factors(scipy.sparse.eye_array(3), np.ones(3), Matern52())
    assert caught.value.field == "metric.v"


def shapes():
    """Return geometries that are not one point of two coordinates, as lists and as columns of geopandas."""
    geopandas, shapely = pytest.importorskip("geopandas"), pytest.importorskip("shapely")
    here, area = shapely.Point(0, 1), shapely.box(0, 0, 2, 2)
    odd = {
        "missing": ([area, here, None], "row 2 is missing", 2),
        "empty": ([area, shapely.Point(), here], "row 1 is empty", 2),
        "mixed": ([here, area], "row 1 is a Polygon", 2),
        "height": ([here, shapely.Point(1, 2, 3), here], "row 1 has a third coordinate, Z", 2),
        "all with height": ([shapely.Point(1, 2, 3)] * 2, "row 0 has a third coordinate, Z", 3),
        "points": ([here, here], "row 0 is a Point", 2),
    }
    for name, (rows, said, d) in odd.items():
        frame = geopandas.GeoDataFrame({"v": np.arange(len(rows))}, geometry=rows)
        for X in (rows, geopandas.GeoSeries(rows), frame):
            yield name, X, said, d


def test_as_points_says_what_to_do_about_geometries_and_that_works():
    for name, X, said, d in shapes():
        with pytest.raises(pc.InvalidPoints, match=said) as caught:
            as_points(X)
        while True:  # rows are left out before coordinates are taken
            code = re.search(r"out: (.*)$|(np\.array\(\[.*?\]\))", str(caught.value))
            X = do(code[1] or code[2], X=X)
            if isinstance(X, np.ndarray):
                break
            with pytest.raises(pc.InvalidPoints) as caught:
                as_points(X)
        assert as_points(X).shape[1] == (3 if "height" in name and d == 3 else X.shape[1]), name


@pytest.mark.parametrize(
    ("X", "said"),
    [
        ({}, "points are an empty dictionary; give an array"),
        (b"\x93NUMPY\x01\x00", r"bytes of an \.npy file, not an array; use np\.load\(io\.BytesIO\(X\)\)"),
        (bytearray(16), r"points are bytes, not an array; use np\.frombuffer\(X, dtype='float64'\)\.reshape\(-1, d\)"),
        ([], r"points have shape \(0,\); at least one row"),
        (np.zeros((0, 2, 2)), "at least one row and one column are needed"),
        ([[Decimal("NaN")], [Decimal(1)]], "row 0, column 0 is NaN; remove or fill such rows"),
        ([[Decimal(1), Decimal("1e400")]], r"row 0, column 1 is 1E\+400, which float64 cannot hold; use a larger unit"),
        ([[Decimal("1e-400")]], "which float64 takes for 0; use a smaller unit"),
        (
            [[Decimal("9007199254740992.5"), 0.5]],
            "column 0 is 9007199254740992.5, which float64 rounds to 9007199254740992; sub",
        ),
        (
            [[Decimal("0.1")], [Decimal("1e300")], [Decimal("0.10000000000000000001")]],
            "row 2.*does not tell from 0.1; take it",
        ),
        (
            [[Fraction(1, 3)], [Fraction(1, 3) + Fraction(1, 10**20)]],
            "row 1, .*, which float64 does not tell from 1/3; subtract",
        ),
    ],
)
def test_as_points_names_what_would_be_lost_or_is_no_array(X, said):
    with pytest.raises(pc.InvalidPoints, match=said):
        as_points(X)


def test_as_points_says_what_to_do_about_dictionaries_and_integers_of_128_bits():
    polars = pytest.importorskip("polars")
    wide = [polars.DataFrame({"a": [3, 4], "b": [1, 2]}).cast({"b": kind}) for kind in (polars.Int128, polars.UInt128)]
    for X, code in (
        ([{"x": 1, "y": 2}, {"x": 3, "y": 4}], "np.array([list(row.values()) for row in X])"),
        (wide[0], "X.cast({'b': int})"),
        (wide[1], "X.cast({'b': float})"),
    ):
        with pytest.raises(pc.InvalidPoints) as caught:
            as_points(X)
        assert code in str(caught.value)
        assert as_points(do(code, X=X)).shape == (2, 2)
    with pytest.raises(
        pc.InvalidPoints, match=r"points have type Int128, of which polars makes no array; use X\.cast\(int\)"
    ):
        as_points(wide[0]["b"])
