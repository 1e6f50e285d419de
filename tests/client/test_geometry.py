"""Points of geopandas and shapely: what is no point is named with its row, and coordinates are in the system that is asked."""

import re

import numpy as np
import pytest

from pcct_client import GeographicCoordinates, InvalidArray, UnknownCoordinates, dataset_id
from pcct_client.inputs import as_array
from tests.client.sides import points_and_queries, points_for

geopandas = pytest.importorskip("geopandas")
shapely = pytest.importorskip("shapely")

PLACES = np.array([[10.0, 50.0], [11.0, 51.5], [12.0, -3.0]])  # degrees
POINTS = [shapely.Point(place) for place in PLACES]
SQUARE = shapely.box(0, 0, 2, 2)
ODD = {
    "polygon": (SQUARE, "is a Polygon, not a point"),
    "line": (shapely.LineString([[0, 0], [2, 2]]), "is a LineString, not a point"),
    "polygons": (shapely.MultiPolygon([SQUARE]), "is a MultiPolygon, not a point"),
    "points": (shapely.MultiPoint([[0, 0], [2, 2]]), "is a MultiPoint"),
    "missing": (None, "is missing"),
    "empty": (shapely.Point(), "is an empty Point"),
    "empty polygon": (shapely.Polygon(), "is an empty Polygon"),
    "height": (shapely.Point(1, 1, 7), "has a third coordinate, Z"),
}


def series(*geometries, crs=None):
    return geopandas.GeoSeries(list(geometries), crs=crs)


def frame(*geometries, crs=None):
    return geopandas.GeoDataFrame({"depth": np.arange(float(len(geometries)))}, geometry=list(geometries), crs=crs)


def sequence(*geometries, crs=None):
    return list(geometries)


def followed(X, message):
    """Return what each piece of code in a message makes of X; it ends where its parentheses or brackets do."""
    names = {"X": X, "shapely": shapely, "np": np}
    codes = re.findall(r"(?:[X\w]+(?:\['geometry'\])?\.\w+\([^)]*\)|X\.centroid|X\[.*\]|\[each.*\])", message)
    assert codes, message
    for code in codes:
        exec(f"made = {code}", names)
        yield names["made"]


@pytest.mark.parametrize(
    "make", [series, frame, sequence, lambda *all: np.array(all, object)], ids=["series", "frame", "list", "array"]
)
def test_points_are_taken(make):
    np.testing.assert_array_equal(as_array(make(*POINTS)), PLACES)


def test_points_of_other_forms_are_taken():
    pandas = pytest.importorskip("pandas")
    np.testing.assert_array_equal(as_array(series(*POINTS).values), PLACES)
    np.testing.assert_array_equal(as_array(pandas.DataFrame({"geometry": POINTS})), PLACES)
    other = frame(*POINTS).rename_geometry("where")
    np.testing.assert_array_equal(as_array(other), PLACES)
    np.testing.assert_array_equal(as_array(other, ["depth", "where"]), np.column_stack((np.arange(3.0), PLACES)))
    with pytest.raises(InvalidArray, match="there is no column 'geometry'"):
        as_array(other, ["geometry"])


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("make", [series, frame, sequence])
def test_what_is_no_point_is_named_with_its_row_and_the_advice_works(make, odd):
    geometry, message = ODD[odd]
    X = make(POINTS[0], geometry, POINTS[1])
    with pytest.raises(InvalidArray, match=re.escape(f"row 1 of the geometry {message}; ")) as refused:
        as_array(X)
    for made in followed(X, str(refused.value)):
        assert as_array(made).shape[1] in (2, 3)


def test_a_column_of_areas_is_named():
    X = frame(SQUARE, SQUARE)
    with pytest.raises(
        InvalidArray, match=r"row 0 of column 'geometry' is a Polygon, .*X\['geometry'\].representative_point"
    ):
        as_array(X, ["geometry", "depth"])


def test_one_geometry_alone_is_no_column():
    for geometry in (POINTS[0], shapely.MultiPoint(PLACES)):
        with pytest.raises(InvalidArray, match=r"of shapely; use shapely\.get_coordinates\(X\)"):
            as_array(geometry)
    np.testing.assert_array_equal(as_array(shapely.get_coordinates(shapely.MultiPoint(PLACES))), PLACES)


@pytest.mark.parametrize("code", [3857, 32632, 4258, 4326])
@pytest.mark.parametrize("make", [series, frame])
def test_haversine_takes_longitude_and_latitude_out_of_any_system(make, code):
    X = make(*POINTS, crs=4326).to_crs(code)
    np.testing.assert_allclose(points_for("haversine", X), PLACES, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        points_for({"type": "haversine"}, X, ["geometry"]) if make is frame else PLACES, PLACES, atol=1e-6
    )


def test_haversine_takes_what_nobody_said_the_system_of_as_it_is():
    np.testing.assert_array_equal(points_for("haversine", series(*POINTS)), PLACES)


def test_a_point_without_longitude_and_latitude_is_named():
    with pytest.raises(InvalidArray, match=r"row 1 of the geometry has no longitude and latitude: .* EPSG:32632"):
        points_for("haversine", series(shapely.Point(500_000, 5_500_000), shapely.Point(1e30, 1e30), crs=32632))
    local = 'LOCAL_CS["a mine", UNIT["metre", 1]]'
    with pytest.raises(
        InvalidArray, match=r"the points are in a mine, which cannot be turned into longitude and latitude"
    ):
        points_for("haversine", series(*POINTS, crs=local))


@pytest.mark.parametrize("metric", ["euclidean", {"type": "residual"}, "cosine"])
def test_degrees_under_lengths_are_warned_of_by_name(metric):
    X = frame(*POINTS, crs=4326)
    with pytest.warns(GeographicCoordinates, match=r"in EPSG:4326, in degrees, .*metric='haversine'") as caught:
        np.testing.assert_array_equal(points_for(metric, X), PLACES)
    assert caught[0].filename == points_for.__code__.co_filename  # who called
    for silent in (X.to_crs(X.estimate_utm_crs()), X.set_crs(None, allow_override=True), PLACES):
        points_for(metric, silent)
    points_for(metric, X, ["depth"])


def test_points_and_queries_are_in_one_system():
    lengths, degrees = series(*POINTS, crs=4326).to_crs(3857), frame(*POINTS, crs=4326)
    points, queries = points_and_queries("haversine", lengths, degrees)
    np.testing.assert_allclose(points, queries, atol=1e-9)
    with pytest.raises(InvalidArray) as refused:
        points_and_queries("euclidean", lengths, degrees)
    assert str(refused.value) == "the points are in EPSG:3857 and the queries in EPSG:4326; use Q.to_crs(X.crs)"
    points, queries = points_and_queries("euclidean", lengths, degrees.to_crs(lengths.crs))
    np.testing.assert_allclose(points, queries)
    points_and_queries("euclidean", lengths, np.asarray(points))
    with pytest.warns(GeographicCoordinates):
        points_and_queries("euclidean", np.asarray(points), degrees)


def test_geometries_and_frames_are_matched_by_x_and_y():
    pandas = pytest.importorskip("pandas")
    swapped = pandas.DataFrame({"y": PLACES[:, 1], "x": PLACES[:, 0]})
    points, queries = points_and_queries("haversine", series(*POINTS), swapped)
    np.testing.assert_array_equal(points, queries)
    named = pandas.DataFrame(PLACES, columns=["lon", "lat"])
    with pytest.raises(
        InvalidArray, match=r"the columns 'lon', 'lat' and the queries 'x', 'y'; .*Q\.get_coordinates\(\)\.to_numpy"
    ):
        points_and_queries("haversine", named, series(*POINTS))
    points, queries = points_and_queries("haversine", named, series(*POINTS).get_coordinates().to_numpy())
    np.testing.assert_array_equal(points, queries)


def test_the_client_takes_geometries(client, service):
    X = frame(*POINTS, crs=4326)
    client.knn(X, k=2, metric="haversine")
    assert set(service.datasets) == {dataset_id(PLACES)}
    with pytest.warns(GeographicCoordinates) as caught:
        client.vecchia(X, k=2)
    assert "pcct_client" not in caught[0].filename


@pytest.mark.parametrize("make", [series, frame])
def test_coordinates_of_a_system_and_of_none_are_warned_of_by_name(make, client):
    known, bare = make(*POINTS, crs=3857), make(*POINTS)
    message = "the points are in EPSG:3857 and the queries do not say what they are in.*use Q.set_crs(X.crs) if that"
    with pytest.warns(UnknownCoordinates, match=message.replace("(", r"\(").replace(")", r"\)")) as caught:
        points_and_queries("euclidean", known, bare)
    assert caught[0].filename == points_and_queries.__code__.co_filename
    with pytest.warns(
        UnknownCoordinates, match=r"queries are in EPSG:3857 and the points do not .*X\.set_crs\(Q\.crs\)"
    ):
        points_and_queries("euclidean", bare, known)
    id = client.upload(bare)
    with pytest.warns(UnknownCoordinates):
        client.query(id, known)
    for points, queries in ((known, PLACES), (PLACES, known), (known, POINTS), (bare, bare), (known, known)):
        points_and_queries("euclidean", points, queries)
