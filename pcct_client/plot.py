"""One row of a graph as a picture: a point, its neighbors, the rest faint."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcct_client.extras import load

_REST, _LATER, _POINT, _NEIGHBORS = "#adb5bd", "#e9ecef", "#c2255c", "#1971c2"
_MARGIN = 2.5  # the view reaches this many times as far as the farthest neighbor, so that the rest is seen too


def plot_row(
    cloud: NDArray[Any],
    place: NDArray[Any],
    neighbors: NDArray[Any],
    title: str,
    *,
    allowed: int | None,
    geographic: bool,
    whole: bool,
    axes: Any,
) -> Any:
    """Draw one row, return the matplotlib axes.

    cloud: (n, d) every point that could be a neighbor, in the order of the graph. place: (d,) the point itself.
    neighbors: indices into cloud. allowed: points from this one on come later in a Vecchia order; None for other graphs.
    geographic: columns are longitude and latitude. whole: show all points, not only the surroundings.
    """
    if axes is None:
        pyplot = load("matplotlib.pyplot", "Graph.plot")
        axes = pyplot.subplots(figsize=(6.4, 6.0), layout="constrained")[1]
    d = cloud.shape[1]
    flat, spot = _plane(cloud), _plane(place[None])[0]
    if geographic:
        flat = _beside(flat, spot)
    stop = len(flat) if allowed is None else allowed
    size = float(np.clip(2e4 / len(flat), 1.0, 12.0))
    rest = {"s": size, "linewidths": 0, "rasterized": True}
    axes.scatter(*flat[:stop].T, color=_REST, label="points" if allowed is None else "earlier points", **rest)
    if allowed is not None:
        axes.scatter(*flat[stop:].T, color=_LATER, label="later points", zorder=0, **rest)
    for neighbor in flat[neighbors]:
        axes.plot(*np.stack((spot, neighbor)).T, color=_NEIGHBORS, linewidth=0.8, alpha=0.6, zorder=2)
    axes.scatter(*flat[neighbors].T, s=22, color=_NEIGHBORS, linewidths=0, zorder=3, label="its neighbors")
    axes.scatter(*spot, s=48, color=_POINT, edgecolors="white", linewidths=0.9, zorder=4, label="the point")
    names = ("longitude (°)", "latitude (°)") if geographic else ("column 0", "column 1" if d > 1 else "")
    axes.set(title=title if d <= 2 else f"{title}\n(columns 0 and 1 of {d})", xlabel=names[0], ylabel=names[1])
    # A degree of longitude is shorter than one of latitude; without this the nearest would not look the nearest.
    latitude = float(flat[:, 1].mean() if whole else spot[1])
    aspect = 1 / max(np.cos(np.radians(latitude)), 0.05) if geographic else 1.0
    axes.set_aspect(aspect, adjustable="datalim" if whole and not geographic else "box")  # no latitude is above 90°
    if not whole:
        _look_around(axes, flat, spot, neighbors, aspect)
    if d == 1:
        axes.set_aspect("auto")
        axes.set_yticks([])
    axes.legend(loc="best", fontsize="small")
    return axes


def _plane(points: NDArray[Any]) -> NDArray[Any]:
    """Return the first two columns; points on a line lie at height 0."""
    return points[:, :2] if points.shape[1] > 1 else np.column_stack((points[:, 0], np.zeros(len(points))))


def _beside(degrees: NDArray[Any], spot: NDArray[Any]) -> NDArray[Any]:
    """Return (longitude, latitude) with longitudes within 180° of the spot's: neighbors across the date line lie beside it."""
    longitude = spot[0] + (degrees[:, 0] - spot[0] + 180.0) % 360.0 - 180.0
    return np.column_stack((longitude, degrees[:, 1]))


def _look_around(axes: Any, flat: NDArray[Any], spot: NDArray[Any], neighbors: NDArray[Any], aspect: float) -> None:
    """Show a square around the spot; a unit of its x axis is as long as 1 / aspect of its y axis."""
    reach = _MARGIN * (np.abs(flat[neighbors] - spot) / (aspect, 1.0)).max(initial=0.0)
    if reach > 0:
        axes.set(xlim=spot[0] + np.array((-reach, reach)) * aspect, ylim=spot[1] + np.array((-reach, reach)))
