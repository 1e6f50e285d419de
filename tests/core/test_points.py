import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcct_core.errors import InvalidPoints, InvalidSpec
from pcct_core.points import (
    EARTH_RADIUS_KM,
    Scale,
    as_points,
    check_extent,
    check_finite,
    check_metric,
    check_request,
    check_shape,
    choose_scale,
    embed,
    finish_distances,
    last_key,
    measure_extent,
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
@pytest.mark.parametrize("lengthscale", [None, 3.0, (0.1, 7.0)])
def test_embed_leaves_the_points_of_a_euclidean_metric_as_they_are(lengthscale, dtype):
    X = clouds.uniform(9, 2).astype(dtype)
    assert embed(X, Euclidean(lengthscale)) is X


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


@pytest.mark.parametrize("size", [20.0, 90.0, 100.0])
def test_embed_knows_one_place_however_it_is_written(size):
    """Longitudes a turn apart, any longitude at a pole, and zeros of both signs; 20 degrees and 100 are no multiples of 45."""
    written = [
        [[size, 8], [size - 360, 8]],
        [[180, size / 2], [-180, size / 2]],
        [[360, -0.0], [0.0, 0.0], [-360, 0.0]],
    ]
    written += [[[size, pole], [-size, pole], [0, pole]] for pole in (90.0, -90.0)]
    for same in written:
        vectors = embed(np.array(same), Haversine())
        for other in vectors[1:]:
            same_bytes(other, vectors[0])


def test_embed_is_exact_at_quarter_turns():
    vectors = embed(np.array([[0.0, 0], [90, 0], [180, 0], [-90, 0], [270, 0], [13, 90], [13, -90]]), Haversine())
    expected = [[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]
    np.testing.assert_array_equal(vectors, expected)


@DTYPES
def test_check_extent_names_the_first_row_whose_distances_overflow(dtype):
    limit = np.finfo(dtype).max / np.sqrt(2) / 2

    def check(metric):
        check_extent(X, measure_extent(X, metric), metric)

    X = np.zeros((6, 2), dtype)
    X[1, 0] = limit * 0.99
    check(Euclidean())
    X[3:, 1] = -limit * 1.01
    with pytest.raises(InvalidPoints, match="row 3") as caught:
        check(Euclidean())
    assert caught.value.row == 3
    X[3:, 1] = 0
    check(Euclidean(2))
    for halved in (0.5, (0.5, 1.0)):
        with pytest.raises(InvalidPoints, match="row 1"):
            check(Euclidean(halved))


@DTYPES
@given(exponent=st.integers(-140, 120), numbers=st.lists(st.integers(-99, 99), min_size=1, max_size=9))
def test_measure_extent_is_the_largest_and_the_least_but_zero(dtype, exponent, numbers):
    X = np.ldexp(np.array(numbers), exponent).astype(dtype).reshape(1, -1)
    sizes = np.abs(X[X != 0])
    extent = measure_extent(X, Euclidean())
    assert extent.largest == (sizes.max() if sizes.size else 0)
    assert extent.least == (sizes.min() if sizes.size else np.inf)


@DTYPES
def test_choose_scale_does_nothing_where_nothing_can_be_lost(dtype):
    X = np.vstack([clouds.uniform(50, 3) * 1e6, np.zeros((1, 3))]).astype(dtype)
    assert choose_scale(measure_extent(X, Euclidean()), 3, Euclidean(), np.dtype(dtype)) == (None, 0, 1.0, 0.0)


def test_choose_scale_refuses_lengthscales_that_no_power_of_two_brings_together():
    X, metric = clouds.uniform(5, 2), Euclidean((1e-300, 1e300))
    with pytest.raises(InvalidSpec, match="too far apart for float64"):
        choose_scale(measure_extent(X, metric), 2, metric, X.dtype)


@pytest.mark.parametrize("lengthscale", [1e-50, 1e50, [1.0, 1e300], [1e-320, 1.0]])
def test_check_metric_refuses_lengthscales_that_the_type_cannot_hold(lengthscale):
    X = clouds.uniform(5, 2)
    check_metric(X, Euclidean(lengthscale))
    with pytest.raises(InvalidSpec, match="float64") as caught:
        check_request(X.astype(np.float32), GraphSpec(k=1, metric=Euclidean(lengthscale)))
    assert caught.value.field == "metric.lengthscale"


@pytest.mark.parametrize("metric", [Euclidean(), Euclidean(3.0), Haversine(), Cosine()])
def test_finish_distances_keeps_what_is_missing(metric):
    keys = np.array([0.0, 2.0, np.nextafter(2.0, 3.0), np.inf])
    scale = Scale(divisor=3.0) if metric == Euclidean(3.0) else Scale()
    distances = finish_distances(keys, metric, scale, keys.dtype)
    assert distances[0] == 0
    assert np.isfinite(distances[:3]).all()
    assert distances[3] == np.inf


def test_finish_distances_never_falls_where_chords_change_sides():
    """Up to a quarter of the circumference keys are chords, beyond it they are 4 less the chord from the antipode."""
    quarter = np.sqrt(2.0)
    steps = np.arange(-50, 51) * np.spacing(quarter)
    keys = np.concatenate([quarter + steps, np.linspace(quarter, 4 - quarter, 50)[1:-1], 4 - quarter - steps[::-1]])
    distances = finish_distances(np.sort(keys), Haversine(), Scale(), keys.dtype)
    assert (np.diff(distances) >= 0).all()
    np.testing.assert_allclose(distances, np.pi * EARTH_RADIUS_KM / 2, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", [Euclidean(3.0), Haversine(), Cosine()])
class TestLastKey:
    @given(key=st.floats(0, 2), beside=st.sampled_from([-1, 0, 1]), squared=st.booleans())
    def test_last_key_is_the_last_whose_distance_is_within(self, metric, dtype, key, beside, squared):
        scale = Scale(divisor=3.0) if isinstance(metric, Euclidean) else Scale()

        def distance(key):
            found = np.array([key], dtype)
            return finish_distances(np.sqrt(found) if squared else found, metric, scale, dtype)[0]

        radius = max(0.0, float(np.nextafter(distance(key), dtype(9e9 * beside), dtype=dtype)))
        last = last_key(radius, metric, scale, np.dtype(dtype), np.dtype(dtype), squared=squared)
        assert last.dtype == dtype
        assert distance(last) <= dtype(radius)
        beyond = np.nextafter(last, dtype(np.inf))
        assert distance(beyond) > dtype(radius) or distance(dtype(4)) <= dtype(radius)

    def test_last_key_of_nothing_and_of_everything(self, metric, dtype):
        kind = np.dtype(dtype)
        assert last_key(0.0, metric, Scale(), kind, kind, squared=True) >= 0
        assert last_key(1e308, metric, Scale(), kind, kind, squared=True) >= 4


def test_last_key_goes_around_the_whole_sphere():
    half, kind = float(np.pi * EARTH_RADIUS_KM), np.dtype(np.float64)
    assert last_key(half, Haversine(), Scale(), kind, kind, squared=False) >= 4
