import numpy as np
import pytest

from pcct_client import Client, InvalidArray, dataset_id
from pcct_client.arrays import npy_body
from pcct_client.inputs import as_array

POINTS = np.array([[10.0, 50.0], [11.0, 51.5], [12.0, -3.0]])


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


class Points:
    """A geopandas.GeoSeries of points."""

    geom_type = "Point"

    def __init__(self, points):
        self.x, self.y = points.T


class Areas:
    geom_type = "Polygon"

    @property
    def x(self):
        raise ValueError("x attribute access only provided for Point geometries")


class Frame:
    """A geopandas.GeoDataFrame, as far as it matters."""

    def __init__(self, **columns):
        self._columns = columns
        self.columns = list(columns)
        if "geometry" in columns:
            self.geometry = columns["geometry"]

    def __getitem__(self, name):
        return self._columns[name]

    def to_numpy(self):
        raise AssertionError("columns are read one by one")


@pytest.mark.parametrize("wrap", [Dlpack, Tensor], ids=["DLPack", "__array__"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_array_shares_the_memory_of_other_libraries(wrap, dtype):
    points = POINTS.astype(dtype)
    assert as_array(wrap(points)).dtype == dtype
    assert np.shares_memory(npy_body(wrap(points)).points, points)


def test_as_array_takes_what_torch_differentiates():
    assert np.shares_memory(as_array(Tensor(POINTS, differentiated=True)), POINTS)


def test_as_array_takes_jax_and_torch():
    for library, make in (("torch", "from_numpy"),):
        module = pytest.importorskip(library)
        tensor = getattr(module, make)(POINTS).requires_grad_()
        assert dataset_id(tensor) == dataset_id(POINTS)


def test_as_array_refuses_memory_of_another_device():
    with pytest.raises(InvalidArray, match=r"the CPU can read: .*Use Tensor\.cpu\(\)"):
        as_array(Tensor(POINTS, device="cuda"))


def test_as_array_refuses_what_would_lose_something():
    with pytest.raises(InvalidArray, match="masked values"):
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


def test_as_array_takes_columns_of_a_frame_in_their_order(frame):
    np.testing.assert_array_equal(as_array(frame, ["lon", "lat"]), POINTS)
    np.testing.assert_array_equal(as_array(frame, ["lat", "lon"]), POINTS[:, ::-1])
    assert dataset_id(frame, ["lon", "lat"]) == dataset_id(POINTS)


def test_as_array_keeps_or_widens_the_types_of_a_frame(frame):
    assert as_array(frame, ["depth"]).dtype == np.float32
    assert as_array(frame, "depth").shape == (3, 1)
    assert as_array(frame, ["depth", "lon"]).dtype == np.float64
    assert as_array(frame, ["depth", "count"]).dtype == np.float64
    assert npy_body(frame, ["count"]).points.dtype == np.float64


def test_as_array_takes_a_frame_of_numbers_whole(frame):
    numbers = frame.drop("name", axis=1) if hasattr(frame, "iloc") else frame.drop("name")
    assert as_array(numbers).shape == (3, 4)


def test_as_array_says_what_is_wrong_with_a_frame(frame):
    with pytest.raises(InvalidArray, match=r"column 'name' has type .*choose columns of numbers"):
        as_array(frame)
    with pytest.raises(InvalidArray, match=r"no column 'x'; the frame has 'name', 'lon', 'lat', 'depth', 'count'"):
        as_array(frame, ["x"])
    with pytest.raises(InvalidArray, match="no column is chosen"):
        as_array(frame, [])


def test_as_array_leaves_missing_values_for_the_service_to_name():
    pandas = pytest.importorskip("pandas")
    nullable = pandas.DataFrame(
        {"x": pandas.array([1, None, 3], "Int64"), "y": pandas.array([1.5, 2.5, None], "Float32")}
    )
    np.testing.assert_array_equal(as_array(nullable), [[1, 1.5], [np.nan, 2.5], [3, np.nan]])
    assert as_array(nullable, ["y"]).dtype == np.float32


def test_as_array_refuses_two_columns_of_one_name():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InvalidArray, match="several columns 'x'; rename them"):
        as_array(pandas.DataFrame(POINTS, columns=["x", "x"]))


def test_as_array_cuts_a_long_list_of_columns():
    with pytest.raises(InvalidArray, match=r"'c11' and 8 more$"):
        as_array(Frame(**{f"c{i}": POINTS[:, 0] for i in range(20)}), ["x"])


def test_as_array_takes_the_geometry_of_a_frame():
    frame = Frame(name=np.array(["a", "b", "c"]), geometry=Points(POINTS), depth=np.arange(3.0))
    np.testing.assert_array_equal(as_array(frame), POINTS)
    np.testing.assert_array_equal(as_array(frame.geometry), POINTS)
    np.testing.assert_array_equal(as_array(frame, ["geometry", "depth"]), np.column_stack((POINTS, np.arange(3.0))))


def test_as_array_refuses_a_geometry_that_is_no_point():
    with pytest.raises(InvalidArray, match=r"column 'geometry' holds more than points .*\.centroid"):
        as_array(Frame(geometry=Areas()), ["geometry"])


def test_the_client_takes_frames(client, service, frame):
    graph = client.knn(frame, k=2, columns=["lon", "lat"])
    assert set(service.datasets) == {dataset_id(POINTS)}
    np.testing.assert_array_equal(graph.points, POINTS)
    client.query(frame, frame, k=2, columns=["lat", "lon"])
    assert client.upload(frame, columns=["lat"]) == dataset_id(POINTS[:, 1:])


def test_the_client_refuses_columns_of_a_dataset_id():
    with Client() as client, pytest.raises(InvalidArray, match="the id of a dataset; leave them out"):
        client.knn("d" * 64, columns=["x"])
