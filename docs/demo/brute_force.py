"""The demo's judge: a Vecchia graph of places against brute force in NumPy, sharing no code with the service."""

import numpy as np
from numpy.typing import NDArray

EARTH_RADIUS_KM = 6371.0088
TOLERANCE_KM = 1e-6  # a millimetre: far above float64 rounding, far below the distance of any two different places


class WrongGraph(Exception):
    """The graph is not the exact one; the message names the row and what is wrong with it."""


def check_vecchia(
    places: NDArray[np.float64],
    order: NDArray[np.int64],
    neighbors: NDArray[np.int32],
    distances: NDArray[np.float64],
    rows: NDArray[np.int64],
) -> None:
    """Compare rows of a Vecchia graph with brute force, and the whole graph with what every Vecchia graph is.

    places: (n, 2) longitude and latitude in degrees. order: (n,) place of each rank.
    neighbors: (n, k) ranks, -1 where there is none. distances: (n, k) km.
    rows: ranks to compare. Places at equal distance may stand in for each other.
    Raises WrongGraph.
    """
    n, k = neighbors.shape
    if not np.array_equal(np.sort(order), np.arange(n)):
        raise WrongGraph("the order does not list every place once")
    late = np.flatnonzero((neighbors >= np.arange(n)[:, None]).any(axis=1))
    if late.size:
        raise WrongGraph(f"row {late[0]} lists a neighbor that does not come before it")
    ranked = places[order]
    for row in rows:
        _check_row(ranked, int(row), neighbors[row], distances[row], min(k, int(row)))


def great_circle_km(place: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return km from one (longitude, latitude) in degrees to others (m, 2), by the haversine formula."""
    longitude, latitude = np.radians(place)
    longitudes, latitudes = np.radians(others).T
    across = np.sin((longitudes - longitude) / 2) ** 2 * np.cos(latitude) * np.cos(latitudes)
    along = np.sin((latitudes - latitude) / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.minimum(1.0, along + across))))


def _check_row(
    ranked: NDArray[np.float64],
    row: int,
    neighbors: NDArray[np.int32],
    distances: NDArray[np.float64],
    count: int,
) -> None:
    """Check one row, which must hold `count` neighbors and then nothing."""
    found = neighbors[:count]
    if (found < 0).any() or len(np.unique(found)) != count:
        raise WrongGraph(f"row {row} does not list {count} different neighbors")
    if (neighbors[count:] != -1).any() or not np.isposinf(distances[count:]).all():
        raise WrongGraph(f"row {row} has more neighbors than places before it")
    truth = great_circle_km(ranked[row], ranked[:row])
    if not np.allclose(distances[:count], truth[found], rtol=0, atol=TOLERANCE_KM):
        raise WrongGraph(f"row {row} states distances that are not those of its neighbors")
    nearest = np.sort(truth)[:count]
    if not np.allclose(distances[:count], nearest, rtol=0, atol=TOLERANCE_KM):
        raise WrongGraph(f"row {row} misses a nearer neighbor, or does not list the nearest first")
