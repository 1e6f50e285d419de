"""The demo's judge must itself be right: it accepts the exact graph and ties, and finds each kind of fault."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

PLACES = Path(__file__).parents[2] / "docs/demo/places.npy"
K = 5


@pytest.fixture(scope="module")
def judge():
    path = PLACES.with_name("brute_force.py")
    spec = importlib.util.spec_from_file_location("demo_brute_force", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def graph():
    """places, order, neighbors and distances of 60 places, from chords of the sphere, the order reversed."""
    places = np.load(PLACES)[:60]
    places[7] = places[30]  # a duplicate, at distance 0: ranks 52 and 29
    places[0] = places[30] + 0.1  # rank 59, which has both as neighbors
    order = np.arange(60)[::-1].copy()
    longitude, latitude = np.radians(places[order]).T
    points = np.stack(
        (np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)), axis=1
    )
    neighbors = np.full((60, K), -1, np.int32)
    distances = np.full((60, K), np.inf)
    for row in range(60):
        chord = np.linalg.norm(points[:row] - points[row], axis=1)
        nearest = np.argsort(chord, kind="stable")[:K]
        neighbors[row, : len(nearest)] = nearest
        distances[row, : len(nearest)] = 2 * 6371.0088 * np.arcsin(chord[nearest] / 2)
    return places, order, neighbors, distances


def check(judge, graph):
    judge.check_vecchia(*graph, rows=np.arange(60))


def test_check_vecchia_accepts_the_exact_graph(judge, graph):
    assert graph[3][52, 0] == 0
    check(judge, graph)


def test_check_vecchia_accepts_a_tie_the_other_way(judge, graph):
    places, order, neighbors, _ = graph
    assert neighbors[59, :2].tolist() == [29, 52]
    neighbors[59, :2] = [52, 29]
    assert (places[order[29]] == places[order[52]]).all()
    check(judge, graph)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda order, neighbors, distances: neighbors.__setitem__((20, 0), 20), "row 20 .* come before it"),
        (lambda order, neighbors, distances: neighbors.__setitem__((20, 0), neighbors[20, 1]), "row 20 .* different"),
        (lambda order, neighbors, distances: neighbors.__setitem__((20, 4), -1), "row 20 .* different"),
        (lambda order, neighbors, distances: neighbors.__setitem__((3, 4), 0), "row 3 has more"),
        (lambda order, neighbors, distances: distances.__setitem__((3, 4), 1.0), "row 3 has more"),
        (lambda order, neighbors, distances: distances.__setitem__((20, 2), distances[20, 2] + 1e-5), "row 20 states"),
        (lambda order, neighbors, distances: order.__setitem__(0, order[1]), "every place once"),
    ],
)
def test_check_vecchia_finds_the_fault(judge, graph, fault, words):
    fault(*graph[1:])
    with pytest.raises(judge.WrongGraph, match=words):
        check(judge, graph)


def test_check_vecchia_finds_a_neighbor_that_is_not_among_the_nearest(judge, graph):
    places, order, neighbors, distances = graph
    ranked = places[order]
    others = np.setdiff1d(np.arange(59), neighbors[59])
    far = others[np.argmax(judge.great_circle_km(ranked[59], ranked[others]))]
    neighbors[59, -1] = far
    distances[59, -1] = judge.great_circle_km(ranked[59], ranked[[far]])[0]
    with pytest.raises(judge.WrongGraph, match="row 59 misses"):
        check(judge, graph)


def test_great_circle_km_knows_distances_on_the_globe(judge):
    quarter = np.pi / 2 * 6371.0088
    origin = np.array([0.0, 0.0])
    others = np.array([[90.0, 0.0], [0.0, 90.0], [180.0, 0.0], [-1.0, 0.0], [360.0, 0.0]])
    expected = [quarter, quarter, 2 * quarter, quarter / 90, 0.0]
    np.testing.assert_allclose(judge.great_circle_km(origin, others), expected, atol=1e-9)


def test_places_are_what_the_readme_says():
    places = np.load(PLACES)
    altitude = np.load(PLACES.with_name("altitude.npy"))
    assert (places.dtype, places.shape) == (np.float64, (32768, 2))
    assert (altitude.dtype, altitude.shape) == (np.float32, (32768,))
    assert (np.abs(places) <= (180, 90)).all()
    assert len(np.unique(places, axis=0)) == 32764
    assert f"{32768 - 32764} of them repeat" in PLACES.with_name("README.md").read_text()


def test_the_id_of_the_places_is_what_the_readme_says():
    from pcct_client import dataset_id

    assert dataset_id(np.load(PLACES)) in PLACES.with_name("README.md").read_text()
