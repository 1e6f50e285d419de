"""Distances mean what they say: exact where theory is, right near 0 and near the antipode, whatever the size of the numbers."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pcct_core as pc
from pcct_core.measure import lay_out_rows, measure_angles, reach_inside, reach_outside
from pcct_core.parallel import Crew
from tests import naive
from tests.core.judge import check_graph, naive_metric, same_bytes

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
TYPES = st.sampled_from([np.float32, np.float64])
KINDS = ("knn", "vecchia", "radius")


def graphs(X, metric, k=4):
    """One graph of each kind; the radius is a distance that occurs."""
    k = min(k, len(X) - 1)
    nearest = pc.knn_graph(X, k, metric)
    yield nearest
    yield pc.vecchia_graph(X, k, metric=metric)
    occurring = np.unique(nearest.distances)
    yield pc.radius_graph(X, float(occurring[len(occurring) // 2]), metric)


def check_everything(X, metric):
    """Compare graphs of X, and queries to half of it, with brute force."""
    for graph in graphs(X, metric):
        check_graph(graph, X)
    points, block, finish = naive_metric(X, metric)
    found = pc.CoverTree.fit(X[::2], metric).query(X, 1 + len(X[::2]) // 2)
    neighbors, keys = naive.query(points[::2], points, 1 + len(X[::2]) // 2, block)
    same_bytes(found.neighbors, neighbors)
    same_bytes(found.distances, finish(keys))


def pair(x, y, dtype):
    """The cosine distance of two rows."""
    there, back = pc.knn_graph(np.array([x, y], dtype), 1, "cosine").distances[:, 0]
    assert there == back
    return float(there)


class TestCosine:
    @DTYPES
    def test_axes_are_at_one(self, dtype):
        assert len(pc.radius_graph(np.eye(6, dtype=dtype), 1.0, "cosine").neighbors) == 30
        assert len(pc.radius_graph(np.eye(6, dtype=dtype), np.nextafter(1.0, 0.0) - 1e-7, "cosine").neighbors) == 0

    @DTYPES
    @pytest.mark.parametrize(
        ("x", "y", "distance"),
        [
            ((1, 1, 0), (1, 0, 1), 0.5),
            ((1, 1, 0), (-1, 0, -1), 1.5),
            ((1, 2, -3), (7, 14, -21), 0),
            ((1, 2, -3), (-11, -22, 33), 2),
            ((0.1, 0.2, 0.7), (0.1, 0.2, 0.7), 0),
            ((0.1, 0.2, 0.7), (-0.1, -0.2, -0.7), 2),
            ((3, -1, 2), (1, 1, -1), 1),
        ],
    )
    def test_distances_that_theory_knows_are_exact(self, x, y, distance, dtype):
        assert pair(x, y, dtype) == distance

    @pytest.mark.jitless
    @given(
        rows=st.lists(st.tuples(*[st.integers(-3, 3)] * 3).filter(any), min_size=3, max_size=40),
        powers=st.lists(st.integers(-60, 60), min_size=40, max_size=40),
        dtype=TYPES,
    )
    def test_directions_of_a_lattice_equal_brute_force_at_any_length(self, rows, powers, dtype):
        X = np.array(rows, dtype)
        check_everything(X, pc.Cosine())
        sized = np.ldexp(X, np.array(powers[: len(X)])[:, None])
        for one, other in zip(graphs(X, pc.Cosine()), graphs(sized, pc.Cosine()), strict=True):
            if one.order is None:  # a maximin order measures rounded unit rows, which are the same here, too
                same_bytes(other.neighbors, one.neighbors)
                same_bytes(other.distances, one.distances)

    @settings(max_examples=15)
    @given(
        d=st.integers(2, 11), spread=st.sampled_from([1e-3, 1e-5, 2e-7, 1e-12]), seed=st.integers(0, 99), dtype=TYPES
    )
    def test_rows_near_each_other_equal_brute_force(self, d, spread, seed, dtype):
        rng = np.random.default_rng(seed)
        X = (rng.normal(size=d) + 2 + spread * rng.normal(size=(60, d))).astype(dtype)
        check_everything(X, pc.Cosine())

    @DTYPES
    @pytest.mark.parametrize("spread", [0.3, 1e-2, 1.4e-3, 1e-5, 2e-7])
    def test_distances_are_right_however_near(self, spread, dtype):
        rng = np.random.default_rng(3)
        X = (rng.normal(size=5) + spread * rng.normal(size=(40, 5))).astype(dtype)
        graph = pc.knn_graph(X, 3, "cosine")
        exact = np.array([[exact_cosine(X[i], X[j]) for j in row] for i, row in enumerate(graph.neighbors)])
        np.testing.assert_allclose(graph.distances, exact, rtol=6e-8 if dtype == np.float32 else 2e-9, atol=0)

    @DTYPES
    @pytest.mark.parametrize("d", [1, 3, 8, 40])
    def test_reaches_hold_what_they_must(self, d, dtype):
        """Squared distances of unit rows lie between the bounds that their cosine distances give."""
        rng = np.random.default_rng(d)
        ends = rng.normal(size=(2, d)), rng.normal(size=(60, d)) * 10.0 ** rng.integers(-12, 1, (60, 1))
        X = np.vstack([ends[0], ends[0][0] + ends[1], -ends[0]]).astype(dtype)
        unit, D = naive.unit_rows(X), naive.cosine_block(X, X)
        squared = np.square(naive.distance_block(unit, unit).astype(np.float64))
        with Crew(1) as crew:
            rows = lay_out_rows(X, crew)
        measure = measure_angles(rows, rows)
        for s, key in zip(squared.ravel(), D.ravel(), strict=True):
            assert s <= reach_outside(measure, key) * (1 + 1e-6 * (dtype == np.float32))
            assert reach_inside(measure, key) <= max(s, 0)

    def test_a_kept_tree_answers_the_same(self, tmp_path):
        X = np.random.default_rng(0).integers(-3, 4, (200, 5)).astype(np.float32) + np.float32(0.5)
        tree = pc.CoverTree.fit(X, "cosine")
        tree.save(tmp_path / "tree")
        loaded = pc.CoverTree.load(tmp_path / "tree")
        narrow = tree.query(X[::3], 7)
        assert loaded.query(X[::3], 7) == narrow
        wide = loaded.query(X[::3].astype(np.float64) * 2.0**-200, 7)
        same_bytes(wide.neighbors, narrow.neighbors)
        same_bytes(wide.distances.astype(np.float32), narrow.distances)
        same_bytes(loaded.radius_graph(0.25).neighbors, pc.radius_graph(X, 0.25, "cosine").neighbors)


def exact_cosine(x, y):
    """1 - cos of two rows, from whole numbers alone but for the last root."""
    x, y = ([Fraction(float(value)) for value in row] for row in (x, y))
    a, b, p = (sum(s * t for s, t in zip(*rows, strict=True)) for rows in ((x, x), (y, y), (x, y)))
    return float((a * b - p * p) / (a * b)) / (1 + float(p * p / (a * b)) ** 0.5)


def grid(step):
    lon, lat = np.meshgrid(np.arange(-180.0, 181, step), np.arange(-90.0, 91, step))
    return np.column_stack([lon.ravel(), lat.ravel()])


def sphere_km(X, Q):
    """The km between places, right near 0 and near the antipode: by the haversine, and by that from the antipode."""
    lon, lat = X.astype(np.float64).T
    lon_q, lat_q = Q.astype(np.float64).T[:, :, None]
    across = np.abs(lon - lon_q) % 360
    across = np.minimum(across, 360 - across)

    def half(degrees):
        return np.square(np.sin(np.radians(degrees / 2)))

    both = np.cos(np.radians(lat)) * np.cos(np.radians(lat_q))
    near = half(lat - lat_q) + both * half(across)
    far = half(lat + lat_q) + both * half(180 - across)
    return 2 * naive.EARTH_RADIUS_KM * np.arctan2(np.sqrt(near), np.sqrt(far))


class TestSphere:
    @DTYPES
    def test_places_written_twice_are_one(self, dtype):
        X = grid(5).astype(dtype)
        same = pc.radius_graph(X, 0.0, "haversine")
        assert len(same.neighbors) == 10582
        assert not same.distances.any()
        pole = np.flatnonzero(X[:, 1] == 90)
        nearest = pc.knn_graph(X, 1, "haversine")
        assert nearest.neighbors[pole, 0].tolist() == [pole[1], *[pole[0]] * (len(pole) - 1)]

    @pytest.mark.jitless
    @given(
        places=st.lists(st.tuples(st.integers(-8, 8), st.integers(-6, 6)), min_size=3, max_size=40),
        spellings=st.lists(st.sampled_from([0, 360, -360]), min_size=40, max_size=40),
        dtype=TYPES,
    )
    def test_lattices_equal_brute_force_however_written(self, places, spellings, dtype):
        X = np.array(places, dtype) * dtype([22.5, 15])
        check_everything(X, pc.Haversine())
        turned = X[:, 0] + np.array(spellings[: len(X)], dtype)
        written = np.column_stack([np.where(np.abs(turned) <= 360, turned, X[:, 0]), X[:, 1]])
        for one, other in zip(graphs(X, pc.Haversine()), graphs(written, pc.Haversine()), strict=True):
            for name, array in one.arrays().items():
                same_bytes(other.arrays()[name], array)

    @settings(max_examples=15)
    @given(size=st.sampled_from([1.0, 1e-3, 1e-6, 1e-9]), seed=st.integers(0, 99), dtype=TYPES)
    def test_antipodes_equal_brute_force_and_are_right_to_a_micrometre(self, size, seed, dtype):
        rng = np.random.default_rng(seed)
        here, there = (size * rng.normal(size=(n, 2)) for n in (4, 90))
        middle = np.array([rng.choice([0.0, 13.0, 90.0, 180.0]), rng.choice([0.0, 48.0])])
        X = np.vstack([middle + here, [[-180.0, 0.0]] + middle * [1, -1] + there]).astype(dtype)
        check_everything(X, pc.Haversine())
        graph = pc.knn_graph(X, 20, "haversine")
        kilometres = sphere_km(X, X)
        np.testing.assert_allclose(
            graph.distances, np.take_along_axis(kilometres, graph.neighbors, axis=1), rtol=0, atol=1e-9
        )
        np.fill_diagonal(kilometres, np.inf)
        np.testing.assert_allclose(graph.distances, np.sort(kilometres, axis=1)[:, :20], rtol=0, atol=1e-9)

    def test_radii_around_the_antipode_hold_what_lies_within(self):
        around = np.array([180.0, 0.0]) + np.random.default_rng(1).normal(0, 1e-6, (300, 2))
        X = np.vstack([[[0.0, 0.0]], around])
        kilometres = sphere_km(X, X[:1])[0, 1:]
        for radius in np.quantile(kilometres, [0.1, 0.5, 0.9]):
            graph = pc.radius_graph(X, float(radius), "haversine")
            check_graph(graph, X)
            assert abs(graph.offsets[1] - (kilometres <= radius).sum()) <= 1


def lattice(shape, origin, step=1.0):
    axes = [np.arange(n) * step for n in shape]
    return np.random.default_rng(1).permutation(
        np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, len(shape)) + np.array(origin)
    )


class TestOffsets:
    @DTYPES
    @pytest.mark.parametrize("lengthscale", [3.0, (3.0, 3.0), (3.0, 7.0), (0.3, 1e5)])
    def test_a_grid_in_metres_far_from_zero_keeps_its_neighbors(self, lengthscale, dtype):
        X = lattice((30, 25), (500000, 4500000)).astype(dtype)
        metric = pc.Euclidean(lengthscale)
        graph = pc.knn_graph(X, 13, metric)
        check_graph(graph, X)
        differences = (X.astype(np.float64)[:, None] - X.astype(np.float64)) / np.array(lengthscale)
        exact = np.sqrt(np.square(differences).sum(axis=2))
        np.fill_diagonal(exact, np.inf)
        np.testing.assert_allclose(graph.distances, np.sort(exact, axis=1)[:, :13], rtol=3e-7)
        found = np.take_along_axis(exact, graph.neighbors, axis=1)
        assert (found <= np.sort(exact, axis=1)[:, 12:13] * (1 + 1e-12)).all()
        check_everything(X[:80], metric)

    def test_times_in_nanoseconds_keep_their_ticks(self):
        ticks = np.random.default_rng(2).integers(0, 5000, 400)
        X = np.column_stack([1.7e18 + 256.0 * ticks, ticks % 7])
        graph = pc.knn_graph(X, 3, pc.Euclidean((1e9, 1e6)))
        exact = np.hypot(256e-9 * (ticks[:, None] - ticks), 1e-6 * (ticks[:, None] % 7 - ticks % 7))
        np.fill_diagonal(exact, np.inf)
        np.testing.assert_allclose(graph.distances, np.sort(exact, axis=1)[:, :3], rtol=1e-14)

    @DTYPES
    @pytest.mark.parametrize("shift", [0, -100])
    def test_dense_searches_weigh_differences_too(self, shift, dtype):
        X = np.ldexp((np.random.default_rng(4).normal(size=(2200, 24)) + 1e4).astype(dtype), shift)
        graph = pc.knn_graph(X, 5, pc.Euclidean(tuple(np.linspace(0.8, 1.2, 24))))
        assert graph.certificate.method == "dense"
        check_graph(graph, X)


class TestSizes:
    """Multiplying all points by a power of two multiplies all distances by it."""

    @settings(max_examples=25)
    @given(
        shift=st.integers(-120, 120),
        lengthscale=st.sampled_from([None, 3.0, (0.7, 11.0)]),
        seed=st.integers(0, 9),
        dtype=TYPES,
    )
    def test_answers_scale_exactly(self, shift, lengthscale, seed, dtype):
        shift = shift * (8 if dtype == np.float64 else 1)
        X = np.random.default_rng(seed).integers(-30, 30, (90, 2)).astype(dtype)
        sized = np.ldexp(X, shift)
        metric = pc.Euclidean(lengthscale)
        check_everything(sized, metric)
        for one, other in zip(graphs(X, metric), graphs(sized, metric), strict=True):
            same_bytes(other.neighbors, one.neighbors)
            np.testing.assert_array_equal(other.distances, np.ldexp(one.distances, shift))

    @DTYPES
    def test_queries_of_another_size_than_the_points(self, dtype):
        least = np.finfo(dtype).tiny
        X = np.random.default_rng(5).integers(1, 9, (80, 2)).astype(dtype) * least
        tree = pc.CoverTree.fit(X)
        np.testing.assert_array_equal(tree.query(X, 1).distances, 0)
        for asked, distance in (((1.0, 1.0), 2**0.5), ((1e30, 0.0), 1e30)):
            np.testing.assert_allclose(tree.query(np.array([asked], dtype), 5).distances, [[distance] * 5], rtol=1e-6)

    def test_small_differences_beside_large_coordinates_are_refused_where_they_would_be_lost(self):
        X = np.zeros((40, 2), np.float32)
        X[:, 0] = np.arange(40) * 1e-30
        X[:, 1] = np.repeat([0, 1], 20) * 1e30
        with pytest.raises(pc.InvalidPoints, match="beside the largest coordinates; use float64"):
            pc.knn_graph(X, 3)
        with pytest.raises(pc.InvalidPoints, match="is so near to row"):
            pc.radius_graph(X, 1e-29)
        check_graph(pc.knn_graph(X.astype(np.float64), 3), X.astype(np.float64))
        X[:, 0] = 0  # equal points are at distance 0 rightly, and a lonely small number harms nobody
        X[7, 0] = 1e-30
        X[7, 1] = 1e29
        check_graph(pc.knn_graph(X, 3), X)
