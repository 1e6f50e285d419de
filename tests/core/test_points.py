import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcct_core.errors import InvalidPoints, InvalidSpec
from pcct_core.points import (
    EARTH_RADIUS_KM,
    as_points,
    check_finite,
    check_metric,
    check_request,
    check_shape,
    distances_out,
    embed,
    squared_reach,
)
from pcct_core.spec import Cosine, Euclidean, GraphSpec, Haversine
from tests import naive
from tests.core import clouds
from tests.core.judge import same_bytes

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@DTYPES
def test_as_points_returns_the_array_itself_when_it_can(dtype):
    X = clouds.uniform(9, 2).astype(dtype)
    assert as_points(X) is X


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.uint64, np.bool_, np.float16, ">f8", ">i4"])
def test_as_points_makes_float64_of_other_numbers(dtype):
    X = np.array([[0, 1], [1, 0]]).astype(dtype)
    points = as_points(X)
    same_bytes(points, np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert points.dtype.isnative


def test_as_points_keeps_float32_of_any_byte_order_and_layout():
    X = np.asfortranarray(clouds.uniform(9, 3).astype(">f4"))
    points = as_points(X)
    assert points.dtype == np.float32
    assert points.dtype.isnative
    assert points.flags.c_contiguous
    np.testing.assert_array_equal(points, X)


def test_as_points_takes_lists():
    same_bytes(as_points([[1, 2], [3, 4]]), np.array([[1.0, 2.0], [3.0, 4.0]]))


@pytest.mark.parametrize(
    ("X", "said"),
    [
        (np.zeros(3), r"shape \(3,\).*reshape\(-1, 1\)"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\); expected \(n, d\)"),
        (np.float64(1), r"shape \(\)"),
        (np.zeros((0, 3)), "at least one row"),
        (np.zeros((3, 0)), "at least one row and one column"),
        (np.zeros((2, 2), complex), "complex"),
        (np.zeros((2, 2), "V8"), "astype"),
    ],
)
def test_as_points_refuses_what_is_not_a_table_of_real_numbers(X, said):
    with pytest.raises(InvalidPoints, match=said) as caught:
        as_points(X)
    assert caught.value.row is None


@DTYPES
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 65_535, 65_536, 69_999])
def test_check_finite_names_the_first_bad_row(bad, row, dtype):
    X = np.zeros((70_000, 2), dtype)
    X[row, 1] = bad
    X[row + 1 :, 0] = np.nan
    with pytest.raises(InvalidPoints, match=f"row {row}, column 1 is {bad}") as caught:
        as_points(X)
    assert caught.value.row == row
    with pytest.raises(InvalidPoints) as caught:
        check_finite(X, first_row=100)
    assert caught.value.row == 100 + row


@pytest.mark.parametrize(
    ("n", "d", "spec", "field"),
    [
        (30, 2, GraphSpec(k=30), "k"),
        (2, 2, GraphSpec(k=2), "k"),
        (50, 3, GraphSpec(metric=Haversine()), "metric.type"),
        (50, 1, GraphSpec(metric=Haversine()), "metric.type"),
        (50, 3, GraphSpec(metric=Euclidean([1, 2])), "metric.lengthscale"),
        (50, 1, GraphSpec(metric=Euclidean([1, 2])), "metric.lengthscale"),
    ],
)
def test_check_shape_names_the_field_that_does_not_fit(n, d, spec, field):
    with pytest.raises(InvalidSpec) as caught:
        check_shape(n, d, spec)
    assert caught.value.field == field


@pytest.mark.parametrize("n", [0, 1])
def test_check_shape_refuses_less_than_two_points(n):
    with pytest.raises(InvalidPoints, match="at least 2 points"):
        check_shape(n, 2, GraphSpec(k=1))


def test_check_shape_takes_what_fits():
    check_shape(31, 1, GraphSpec(k=30))
    check_shape(31, 2, GraphSpec(metric=Haversine()))
    check_shape(31, 2, GraphSpec(metric=Euclidean([1, 2])))
    check_shape(31, 7, GraphSpec(metric=Euclidean(3)))


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ([0, 90.001], "latitude 90.001"),
        ([0, -91], "latitude -91"),
        ([361, 0], "longitude 361"),
        ([-360.5, 0], "longitude -360.5"),
        ([0, 90.0000001], "latitude 90.0000001 is"),
        ([0, np.nextafter(90.0, 91.0)], "latitude 90.00000000000001 is"),
        ([np.nextafter(-360.0, -361.0), 0], "longitude -360.00000000000006 is"),
    ],
)
def test_check_metric_names_the_first_place_off_the_globe(point, said):
    X = np.zeros((8, 2))
    X[5] = point
    X[6:] = 400
    with pytest.raises(InvalidPoints, match=f"row 5: {said}") as caught:
        check_request(X, GraphSpec(k=1, metric=Haversine()))
    assert caught.value.row == 5
    with pytest.raises(InvalidPoints) as caught:
        check_metric(X, Haversine(), first_row=10)
    assert caught.value.row == 15


def test_check_metric_shows_float32_beyond_the_bound():
    X = np.array([[0, np.nextafter(np.float32(90), np.float32(91))]], np.float32)
    with pytest.raises(InvalidPoints) as caught:
        check_metric(X, Haversine())
    assert float(str(caught.value).split("latitude ")[1].split()[0]) > 90


def test_check_metric_names_the_lowest_row_whatever_is_wrong_with_it():
    X = np.array([[0.0, 0.0], [999.0, 0.0], [0.0, 99.0]])
    with pytest.raises(InvalidPoints) as caught:
        check_metric(X, Haversine())
    assert caught.value.row == 1


def test_check_metric_takes_the_edges_of_the_globe():
    check_metric(np.array([[-360.0, -90.0], [360.0, 90.0]]), Haversine())


def test_check_metric_names_the_first_row_without_a_direction():
    X = np.ones((5, 3))
    X[3:] = [[0.0, -0.0, 0.0], [0.0, 0.0, 0.0]]
    with pytest.raises(InvalidPoints, match="row 3 is all zeros") as caught:
        check_metric(X, Cosine())
    assert caught.value.row == 3
    check_metric(X, Euclidean())


@DTYPES
def test_embed_divides_by_lengthscales(dtype):
    X = clouds.uniform(9, 2).astype(dtype)
    assert embed(X, Euclidean()) is X
    for lengthscale in (3, [0.1, 7]):
        same_bytes(embed(X, Euclidean(lengthscale)), naive.scaled(X, lengthscale))


@DTYPES
def test_embed_puts_places_on_the_unit_sphere_in_float64(dtype):
    X = (clouds.uniform(50, 2) * 90).astype(dtype)
    points = embed(X, Haversine())
    same_bytes(points, naive.unit_vectors(X))
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1)


@DTYPES
@pytest.mark.parametrize("size", ["smallest_subnormal", "tiny", "max"])
def test_embed_gives_rows_of_any_size_a_direction(size, dtype):
    X = np.array([[3, -4], [1, 0]], dtype)
    unit = getattr(np.finfo(dtype), size)
    sized = X / 4 * unit if size == "max" else X * unit
    np.testing.assert_allclose(embed(sized, Cosine()), [[0.6, -0.8], [1, 0]], rtol=1e-6)


@DTYPES
def test_embed_names_the_first_row_whose_squares_overflow(dtype):
    limit = np.sqrt(np.finfo(dtype).max / 2) / 4
    X = np.zeros((6, 2), dtype)
    X[1, 0] = limit * 0.99
    embed(X, Euclidean())
    X[3:, 1] = -limit * 1.01
    with pytest.raises(InvalidPoints, match="row 3") as caught:
        embed(X, Euclidean())
    assert caught.value.row == 3
    embed(X, Euclidean(2))
    with pytest.raises(InvalidPoints, match="row 1"):
        embed(X, Euclidean(0.5))


@pytest.mark.parametrize("lengthscale", [1e-50, 1e50, [1.0, 1e300], [1e-320, 1.0]])
def test_check_metric_refuses_lengthscales_that_the_type_cannot_hold(lengthscale):
    X = clouds.uniform(5, 2)
    check_metric(X, Euclidean(lengthscale))
    with pytest.raises(InvalidSpec, match="float64") as caught:
        check_request(X.astype(np.float32), GraphSpec(k=1, metric=Euclidean(lengthscale)))
    assert caught.value.field == "metric.lengthscale"


@DTYPES
@pytest.mark.parametrize("metric", [Euclidean(), Euclidean(2.0), Haversine(), Cosine()])
def test_distances_out_are_those_of_the_metric(metric, dtype):
    X = (clouds.uniform(20, 2) * 80).astype(dtype)
    embedded = embed(X, metric)
    distances = naive.distance_block(embedded, embedded)
    distances_out(distances, metric)
    if isinstance(metric, Haversine):
        expected = naive.great_circle_km(X, X)
    elif isinstance(metric, Cosine):
        expected = naive.cosine_distances(X, X)
    else:
        expected = np.linalg.norm(X[:, None] - X, axis=2) / (metric.lengthscale or 1)
    np.testing.assert_allclose(distances, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", [Euclidean(), Haversine(), Cosine()])
def test_distances_out_keeps_what_is_missing(metric):
    distances = np.array([0.0, 2.0, np.nextafter(2.0, 3.0), np.inf])
    distances_out(distances, metric)
    assert distances[0] == 0
    assert np.isfinite(distances[:3]).all()
    assert distances[3] == np.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", [Euclidean(3.0), Haversine(), Cosine()])
class TestSquaredReach:
    @given(chord=st.floats(0, 2), beside=st.sampled_from([-1, 0, 1]))
    def test_squared_reach_is_the_last_square_whose_distance_is_within(self, metric, dtype, chord, beside):
        def distance(squared):
            found = np.sqrt(np.array([squared], dtype))
            distances_out(found, metric)
            return found[0]

        radius = max(0.0, float(np.nextafter(distance(chord * chord), dtype(9e9 * beside), dtype=dtype)))
        reach = squared_reach(radius, metric, np.dtype(dtype))
        assert reach.dtype == dtype
        assert distance(reach) <= dtype(radius)
        beyond = np.nextafter(reach, dtype(np.inf))
        assert distance(beyond) > dtype(radius) or distance(dtype(4)) <= dtype(radius)

    def test_squared_reach_of_nothing_and_of_everything(self, metric, dtype):
        assert squared_reach(0.0, metric, dtype) >= 0
        assert squared_reach(1e308, metric, dtype) >= 4


def test_squared_reach_goes_around_the_whole_sphere():
    half = float(np.pi * EARTH_RADIUS_KM)
    assert squared_reach(half, Haversine(), np.float64) == np.finfo(np.float64).max
