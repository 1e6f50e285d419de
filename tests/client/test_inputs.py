import numpy as np
import pytest

from pcct_client import Client, InvalidArray, UnknownColumns, dataset_id, names
from pcct_client.arrays import npy_body
from pcct_client.inputs import as_array
from tests.client.sides import points_and_queries, points_for

POINTS = np.array([[10.0, 50.0], [11.0, 51.5], [12.0, -3.0]])


@pytest.fixture(autouse=True)
def _nothing_sent_before(monkeypatch):
    monkeypatch.setattr(names, "_known", {})


class Dlpack:
    """Memory of another library, with DLPack and nothing else."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class Tensor:
    """A torch tensor as NumPy meets it: it gives no array while it is differentiated, or lies on another device."""

    def __init__(self, array, differentiated=False, device="cpu"):
        self.array, self.differentiated, self.device = array, differentiated, device

    def detach(self):
        return Tensor(self.array, device=self.device)

    def __array__(self, dtype=None, copy=None):
        if self.differentiated:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.device != "cpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")
        return self.array

    def __dlpack__(self, **options):
        raise AssertionError("the array is tried first")


@pytest.mark.parametrize("wrap", [Dlpack, Tensor], ids=["DLPack", "__array__"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_array_shares_the_memory_of_other_libraries(wrap, dtype):
    points = POINTS.astype(dtype)
    assert as_array(wrap(points)).dtype == dtype
    assert np.shares_memory(npy_body(wrap(points)).points, points)


def test_as_array_takes_what_torch_differentiates():
    assert np.shares_memory(as_array(Tensor(POINTS, differentiated=True)), POINTS)


def test_as_array_takes_tensors_of_a_torch_that_knows_another_numpy():
    class Old(Dlpack):
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("Numpy is not available")

    assert np.shares_memory(as_array(Old(POINTS)), POINTS)


def test_as_array_takes_jax_and_torch():
    for library, make in (("torch", "from_numpy"),):
        module = pytest.importorskip(library)
        tensor = getattr(module, make)(POINTS).requires_grad_()
        assert dataset_id(tensor) == dataset_id(POINTS)


def test_as_array_refuses_memory_of_another_device():
    with pytest.raises(InvalidArray, match=r"the CPU can read: .*Use Tensor\.cpu\(\)"):
        as_array(Tensor(POINTS, device="cuda"))


def test_as_array_refuses_what_would_lose_something():
    with pytest.raises(InvalidArray, match="row 1, column 0 is masked"):
        as_array(np.ma.masked_equal(POINTS, 11.0))
    assert as_array(np.ma.array(POINTS)).shape == (3, 2)
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(InvalidArray, match=r"sparse matrix .*X\.toarray\(\)"):
        as_array(sparse.csr_array(POINTS))


def test_as_array_refuses_a_lazy_frame_and_says_how():
    polars = pytest.importorskip("polars")
    with pytest.raises(InvalidArray, match=r"LazyFrame, which holds no values yet; use X\.collect\(\)"):
        as_array(polars.LazyFrame({"x": [1.0, 2.0]}))


def test_as_array_refuses_columns_of_what_has_none():
    with pytest.raises(InvalidArray, match=r"this is ndarray; leave them out, or slice"):
        as_array(POINTS, ["x"])


@pytest.fixture(params=["pandas", "polars"])
def frames(request):
    return pytest.importorskip(request.param)


def test_the_client_takes_frames(client, service, frames):
    frame = frames.DataFrame({"name": ["a", "b", "c"], "lon": POINTS[:, 0], "lat": POINTS[:, 1]})
    graph = client.knn(frame, k=2, columns=["lon", "lat"])
    assert set(service.datasets) == {dataset_id(POINTS)}
    np.testing.assert_array_equal(graph.points, POINTS)
    client.query(frame, frame, k=2, columns=["lat", "lon"])
    assert client.upload(frame, columns=["lat"]) == dataset_id(POINTS[:, 1:])


def test_the_client_refuses_columns_of_a_dataset_id():
    with Client() as client, pytest.raises(InvalidArray, match="the id of a dataset; leave them out"):
        client.knn("d" * 64, columns=["x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "points.npy",
            r"'points.npy' is not the id of a dataset, .* to send points from a file use np.load\('points.npy'\)",
        ),
        ("D" * 64, "64 digits 0 to f; give an array of points, or the id that upload returned"),
        ("d" * 63, "is not the id of a dataset"),
    ],
)
def test_the_client_refuses_text_that_is_no_dataset_id(text, message):
    with Client() as client:
        for ask in (
            client.knn,
            client.track,
            lambda text: client.query(POINTS, text),
            lambda text: client.query(text, POINTS),
        ):
            with pytest.raises(InvalidArray, match=message):
                ask(text)


def test_queries_are_matched_by_the_names_of_their_columns(client, service, frames):
    ours = frames.DataFrame({"lat": POINTS[:, 1], "lon": POINTS[:, 0]})
    theirs = frames.DataFrame({"lon": POINTS[::-1, 0], "lat": POINTS[::-1, 1]})
    client.query(ours, theirs, k=2)
    assert set(service.datasets) == {dataset_id(POINTS[:, ::-1]), dataset_id(POINTS[::-1, ::-1])}


def test_columns_of_other_names_are_refused(frames):
    ours, theirs = frames.DataFrame({"lat": [1.0], "lon": [2.0]}), frames.DataFrame({"y": [1.0], "x": [2.0]})
    with pytest.raises(InvalidArray) as refused:
        points_and_queries("euclidean", ours, theirs)
    assert str(refused.value).startswith("the points have the columns 'lat', 'lon' and the queries 'y', 'x'; give both")
    assert "as an array: np.asarray(Q)" in str(refused.value)
    points, queries = points_and_queries("euclidean", ours, np.asarray(theirs))
    np.testing.assert_array_equal(points, queries)
    more = frames.DataFrame({"lat": [1.0], "lon": [2.0], "depth": [3.0]})
    with pytest.raises(InvalidArray, match="the queries 'lat', 'lon', 'depth'"):
        points_and_queries("euclidean", ours, more)
    points, queries = points_and_queries("euclidean", ours, more, ["lon", "lat"])
    np.testing.assert_array_equal(points, queries)


def test_columns_are_of_the_side_that_is_a_frame(client, service, frames):
    frame = frames.DataFrame({"name": ["a", "b", "c"], "lat": POINTS[:, 1], "lon": POINTS[:, 0]})
    id = dataset_id(POINTS)
    for points, queries in ((POINTS, frame), (frame, POINTS), (id, frame), (frame, id)):
        client.query(points, queries, k=2, columns=["lon", "lat"])
    assert set(service.datasets) == {id}
    with pytest.raises(InvalidArray, match="these are ndarray and list; leave them out"):
        points_and_queries("euclidean", POINTS, POINTS.tolist(), ["lon", "lat"])


def test_columns_without_names_are_matched_by_position():
    pandas = pytest.importorskip("pandas")
    named, bare = pandas.DataFrame(POINTS, columns=["lon", "lat"]), pandas.DataFrame(POINTS)
    for ours, theirs in ((named, bare), (bare, named), (named, POINTS), (POINTS, named)):
        points, queries = points_and_queries("euclidean", ours, theirs)
        np.testing.assert_array_equal(points, queries)
    _, queries = points_and_queries("euclidean", bare, bare[[1, 0]])
    np.testing.assert_array_equal(queries, POINTS)


def test_queries_are_named_where_they_cannot_be_read():
    with pytest.raises(InvalidArray, match=r"use X\.toarray\(\)"):
        points_and_queries("euclidean", POINTS, pytest.importorskip("scipy.sparse").csr_array(POINTS))


@pytest.mark.parametrize("metric", ["cosine", {"type": "cosine"}, None])
def test_points_for_leaves_arrays_and_ids_as_they_are(metric):
    assert points_for(metric, POINTS) is POINTS
    assert points_for(metric, "a" * 64) == "a" * 64


def lon_lat(frames, rows=POINTS):
    return frames.DataFrame({"lon": rows[:, 0], "lat": rows[:, 1]})


def lat_lon(frames, rows=POINTS):
    return frames.DataFrame({"lat": rows[:, 1], "lon": rows[:, 0]})


def ask_upload(client, frame):
    return client.upload(frame)


def ask_knn(client, frame):
    return client.knn(frame, k=2).dataset


@pytest.mark.parametrize("send", [ask_upload, ask_knn])
def test_queries_of_a_dataset_that_was_sent_are_matched_by_its_names(client, service, frames, send):
    id = send(client, lon_lat(frames))
    client.upload(POINTS)  # the same numbers without names
    client.query(id, lat_lon(frames, POINTS[::-1]), k=2)
    client.query(id, lat_lon(frames, POINTS[::-1]), k=2, columns=["lat", "lon"])
    assert set(service.datasets) == {id, dataset_id(POINTS[::-1])}
    with pytest.raises(
        InvalidArray, match=r"columns 'lon', 'lat' and the queries 'x', 'y'.* columns=\[…\], or give the q"
    ):
        client.query(id, frames.DataFrame({"x": [1.0], "y": [2.0]}))
    client.query(id, frames.DataFrame({"x": POINTS[:, 0], "y": POINTS[:, 1]}), columns=["x", "y"])
    client.upload(frames.DataFrame({"x": POINTS[:, 0], "y": POINTS[:, 1]}))
    for queries in (frames.DataFrame({"y": POINTS[:, 1], "x": POINTS[:, 0]}), lat_lon(frames)):
        client.query(id, queries)
    assert set(service.datasets) == {id, dataset_id(POINTS[::-1])}


def test_a_dataset_of_queries_in_another_order_is_refused(client, service, frames):
    queries = client.upload(lat_lon(frames, POINTS[:2]))
    for points in (lon_lat(frames), client.upload(lon_lat(frames))):
        with pytest.raises(
            InvalidArray, match=r"queries has the columns 'lat', 'lon', and the points 'lon', 'lat'; upload"
        ):
            client.query(points, queries)
    client.query(lon_lat(frames), queries, columns=["lat", "lon"])
    client.query(POINTS, queries)


def test_a_frame_against_a_dataset_from_elsewhere_is_warned_of(client, frames):
    id = "a" * 64
    with pytest.warns(
        UnknownColumns, match=r"'lon', 'lat' are taken as those of dataset aaaaaaaaaaaa….*\['lon', 'lat'\]$"
    ):
        client.query(id, lon_lat(frames))
    with pytest.warns(UnknownColumns):
        client.query(lon_lat(frames), id)
    for queries, columns in (
        (POINTS, None),
        (lon_lat(frames), ["lat", "lon"]),
        (frames.DataFrame({"x": POINTS[:, 0]}), None),
    ):
        client.query(id, queries, columns=columns)


def test_inducing_points_are_uploaded_with_the_columns_of_the_points(client, service, frames):
    def ask(points, inducing, **fields):
        metric = {"type": "residual", "kernel": "rbf", "inducing": inducing}
        client.vecchia(points, k=2, metric=metric, **fields)
        return service.documents[-1]["spec"]["metric"]["inducing"]["dataset"]

    some, there = POINTS[:2], dataset_id(POINTS[:2])
    more = frames.DataFrame({"depth": some[:, 0], "lat": some[:, 1], "lon": some[:, 0]})
    points, id = lon_lat(frames), client.upload(lon_lat(frames))
    for given in (lat_lon(frames, some), lon_lat(frames, some), some, some.tolist(), {"dataset": there}):
        assert ask(points, given) == ask(id, given) == ask(POINTS, lon_lat(frames, some)) == there
    assert ask(points, more, columns=["lon", "lat"]) == there
    with pytest.raises(InvalidArray, match="the inducing points 'depth', 'lat', 'lon'; give both the same names"):
        ask(points, more)
    other = client.upload(lat_lon(frames, some))
    with pytest.raises(
        InvalidArray, match="the dataset of the inducing points has the columns 'lat', 'lon', and the points"
    ):
        ask(points, {"dataset": other})
    assert ask(POINTS, {"dataset": other}) == other
