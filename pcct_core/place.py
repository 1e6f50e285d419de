"""Points where they are searched: coordinates, what their differences count, and what measures the candidates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcct_core.errors import InvalidPoints
from pcct_core.measure import BY_COORDINATES, ON_SPHERE, Measure, Reach, Rows, find_reach, lay_out_rows, measure_angles
from pcct_core.parallel import Crew
from pcct_core.points import (
    EARTH_RADIUS_KM,
    Extent,
    Points,
    Scale,
    check_extent,
    choose_origin,
    choose_scale,
    embed,
    finish_distances,
    last_key,
    measure_extent,
)
from pcct_core.spec import Cosine, Haversine, Metric, Residual, Stored


class Placed(NamedTuple):
    """Points of one metric, ready to be searched.

    points: T (n, e), coordinates, see `points.embed`. scale: what their differences count. rows: under the cosine metric what
    decides, else None. extent: sizes of the coordinates as given. dtype: of the distances that are returned. origin: under the
    residual metric what was subtracted from coordinates, see `points.choose_origin`, else None.
    """

    points: NDArray[Any]
    metric: Metric
    scale: Scale
    rows: Rows | None
    extent: Extent
    dtype: Any
    origin: NDArray[np.float64] | None

    @property
    def key_type(self) -> Any:
        """Type of the keys that order candidates: float64 where a metric measures by itself, else that of the coordinates."""
        return self.points.dtype if self.rows is None else np.dtype(np.float64)

    def taken(self, rows: NDArray[np.int64]) -> Placed:
        """Return these rows, in this order."""
        angles = self.rows and Rows(self.rows.rows[rows], self.rows.squares[rows], self.rows.d)
        return self._replace(points=self.points[rows], rows=angles)

    def measure(self, queries: Placed | None = None) -> Measure:
        """Return how candidates are measured from queries, placed as these are; None for the points themselves."""
        asked = self if queries is None else queries
        if self.rows is not None and asked.rows is not None:
            return measure_angles(self.rows, asked.rows)
        return ON_SPHERE if isinstance(self.metric, Haversine) else BY_COORDINATES

    def reach(self, radius: float) -> Reach:
        """Return the reach of all points whose distance, as it is returned, is at most radius; see `points.last_key`."""
        measure = self.measure()
        if measure is BY_COORDINATES:
            square = last_key(radius, self.metric, self.scale, self.points.dtype, self.dtype, squared=True)
            return Reach(square, square, square)
        key = last_key(radius, self.metric, self.scale, np.dtype(np.float64), self.dtype, squared=False)
        return find_reach(measure, key, self.points.dtype)

    def span(self, low: NDArray[Any], high: NDArray[Any]) -> float:
        """Return a distance in the metric's unit that none is above between points of a box; low, high: T (e,), its corners."""
        if isinstance(self.metric, Haversine):
            return float(np.pi * EARTH_RADIUS_KM)
        if isinstance(self.metric, Cosine):
            return 2.0
        sides = (high.astype(np.float64) - low) * (1.0 if self.scale.weights is None else self.scale.weights)
        diagonal = np.array([np.sqrt(np.square(sides).sum())])
        return float(finish_distances(diagonal, self.metric, self.scale, np.float64)[0])

    def finish(self, keys: NDArray[Any], out: NDArray[Any], crew: Crew) -> None:
        """Write keys as distances in the metric's unit, in the type of the points; out: as keys, maybe keys itself."""
        if out is keys and isinstance(self.metric, Cosine):
            return

        def finish_some(start: int, stop: int) -> None:
            out[start:stop] = finish_distances(keys[start:stop], self.metric, self.scale, self.dtype)

        width = 1 if keys.ndim == 1 else keys.shape[1]
        crew.run("", len(keys), finish_some, grain=max(1, (1 << 18) // width))


def place_points(points: Points, metric: Metric, crew: Crew, origin: NDArray[np.float64] | None = None) -> Placed:
    """Return points, (n, d), checked for the metric, where they are searched.

    origin: of the points that these are compared with, under the residual metric; None for these points' own.
    Raises InvalidPoints and InvalidSpec where distances overflow the type of the points.
    """
    extent = measure_extent(points, metric)
    check_extent(points, extent, metric)
    if isinstance(metric, Residual):
        origin = choose_origin(points) if origin is None else origin
    embedded = _embed(points, metric, origin, crew)
    rows = lay_out_rows(points, crew) if isinstance(metric, Cosine) else None
    scale = choose_scale(extent, points.shape[1], metric, embedded.dtype)
    return Placed(embedded, metric, scale, rows, extent, embedded.dtype, origin)


def move_inducing(metric: Residual, origin: NDArray[np.float64] | None) -> Residual:
    """Return the metric with given inducing points less the origin of the points that it is for."""
    given = metric.inducing
    if origin is None or not isinstance(given, Stored) or np.shape(given.array)[1:] != origin.shape:
        return metric
    return replace(metric, inducing=replace(given, array=np.asarray(given.array, np.float64) - origin))


def join_scales(points: Placed, queries: Placed) -> tuple[Placed, Placed]:
    """Return points and queries with one scale, which keeps the squares of both from vanishing and overflowing."""
    extent = points.extent.joined(queries.extent)
    scale = choose_scale(extent, points.points.shape[1], points.metric, points.points.dtype)
    return points._replace(scale=scale), queries._replace(scale=scale)


def refuse_lost(
    points: Placed,
    queries: Placed,
    rows: NDArray[np.int64],
    neighbors: NDArray[np.int32],
    keys: NDArray[Any],
    order: NDArray[np.int64] | None = None,
) -> None:
    """Raise InvalidPoints naming the first query whose distance to a neighbor is too small beside the largest coordinate.

    rows: int64 (pairs,), the query of each neighbor. neighbors, keys: (pairs,). order: as in `finish_rows`.
    Equal points are at distance 0, rightly.
    """
    lost = np.flatnonzero((keys < points.scale.least) & (neighbors >= 0))
    differ = (points.points[neighbors[lost]] != queries.points[rows[lost]]).any(axis=1)
    if differ.any():
        at = lost[int(np.argmax(differ))]
        row, other = (int(index if order is None else order[index]) for index in (rows[at], neighbors[at]))
        raise InvalidPoints(
            f"row {row} is so near to row {other} that {points.points.dtype} cannot hold the square of their distance "
            "beside the largest coordinates; "
            + ("use float64" if points.points.dtype == np.float32 else "rescale or drop the largest"),
            row,
        )


def finish_rows(
    points: Placed,
    queries: Placed,
    neighbors: NDArray[np.int32],
    keys: NDArray[Any],
    crew: Crew,
    order: NDArray[np.int64] | None = None,
) -> NDArray[Any]:
    """Return the keys of the neighbors of every query, (m, k), as distances in the metric's unit, maybe in place.

    order: int64 (m,), the row that each query and point is called by in errors, None for its own number.
    Raises InvalidPoints for distances that are lost, see `refuse_lost`.
    """
    if points.scale.least:
        rows = np.repeat(np.arange(len(keys)), keys.shape[1])
        refuse_lost(points, queries, rows, neighbors.reshape(-1), keys.reshape(-1), order)
    distances = keys if keys.dtype == points.dtype else np.empty(keys.shape, points.dtype)
    points.finish(keys, distances, crew)
    return distances


def _embed(points: Points, metric: Metric, origin: NDArray[np.float64] | None, crew: Crew) -> Points:
    """Embed the points; on the sphere on all threads, for its sines and cosines cost as much as a tree."""
    if not isinstance(metric, Haversine):
        return embed(points, metric, origin)
    embedded = np.empty((len(points), 3))

    def embed_some(start: int, stop: int) -> None:
        embedded[start:stop] = embed(points[start:stop], metric)

    crew.run("", len(points), embed_some, grain=8192)
    return embedded
