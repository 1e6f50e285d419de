"""The demo's picture: a few places with their Vecchia neighbors, on the map and close up."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

matplotlib.use("Agg")

# Share of the way through the order, and where on the map (longitude, latitude) to look for a place of about that rank.
PICKS = ((0.004, (20.0, 5.0)), (0.04, (-58.0, -15.0)), (0.25, (78.0, 22.0)), (0.98, (10.5, 46.5)))
COLORS = ("#c2255c", "#e8590c", "#1971c2", "#6741d9")
CREDIT = "Places: GeoNames, CC BY 4.0. Altitude: pvlib, from Terrain Tiles (sources: docs/demo/README.md)."


def draw_map(
    path: Path,
    places: NDArray[np.float64],
    altitude: NDArray[np.float32],
    order: NDArray[np.int64],
    neighbors: NDArray[np.int32],
    distances: NDArray[np.float64],
) -> None:
    """Draw the map of a Vecchia graph and write it as a PNG.

    places: (n, 2) longitude and latitude in degrees. altitude: (n,) m. order: (n,) place of each rank.
    neighbors: (n, k) ranks, -1 where there is none. distances: (n, k) km.
    """
    n, k = neighbors.shape
    ranked, heights = places[order], altitude[order]
    figure = Figure(figsize=(13, 10), layout="constrained")
    figure.suptitle(f"{n:,} places in maximin order: each is joined to its {k} nearest predecessors", fontsize=15)
    grid = figure.add_gridspec(2, 4, height_ratios=(1.75, 1))
    world = figure.add_subplot(grid[0, :])
    _draw_places(world, ranked)
    for column, (rank, color) in enumerate(zip(pick_ranks(ranked), COLORS, strict=True)):
        reach_km = distances[rank][neighbors[rank] >= 0].max(initial=0.0)
        label = f"rank {rank:,}: within {reach_km:,.0f} km"
        _join(world, ranked, rank, neighbors[rank], color, label)
        close = figure.add_subplot(grid[1, column])
        colored = _draw_close(close, ranked, heights, rank, neighbors[rank], color)
        close.set_title(label, color=color, fontsize=11)
        close.set_xlabel("longitude (°)")
        if column == 0:
            close.set_ylabel("latitude (°)")
    world.legend(loc="lower left", title="a place, joined to its neighbors", framealpha=0.95)
    bar = {"aspect": 60, "extend": "max", "label": "altitude of earlier places (m)"}
    figure.colorbar(colored, ax=figure.axes[1:], location="bottom", **bar)
    figure.supxlabel(
        f"Grey: all places above; below, those that come later in the order and cannot be neighbors. {CREDIT}",
        fontsize=8,
    )
    figure.savefig(path, dpi=110)


def pick_ranks(ranked: NDArray[np.float64]) -> list[int]:
    """Return one rank for each of PICKS: of the ranks around that share of the order, the place nearest to the spot."""
    n = len(ranked)
    picked = []
    for share, spot in PICKS:
        low, high = int(0.8 * share * n), min(n, int(1.2 * share * n) + 1)
        squared = ((ranked[low:high] - np.array(spot)) ** 2).sum(axis=1)
        picked.append(low + int(np.argmin(squared)))
    return picked


def _draw_places(axes: Axes, ranked: NDArray[np.float64]) -> None:
    axes.scatter(*ranked.T, s=1.2, color="#adb5bd", linewidths=0, label=None)
    axes.set(xlim=(-180, 180), ylim=(-58, 80), aspect="equal", xlabel="longitude (°)", ylabel="latitude (°)")
    axes.set_xticks(range(-180, 181, 30))
    axes.set_yticks(range(-45, 76, 15))
    axes.grid(color="#e9ecef", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_close(
    axes: Axes,
    ranked: NDArray[np.float64],
    heights: NDArray[np.float32],
    rank: int,
    row: NDArray[np.int32],
    color: str,
) -> Any:
    """Draw one neighborhood close up; returns the artist that the colour bar explains."""
    around = ranked[np.append(row[row >= 0], rank)]
    center = (around.min(axis=0) + around.max(axis=0)) / 2
    # A degree of longitude is shorter than one of latitude by this; without it the nearest would not look the nearest.
    shorter = np.cos(np.radians(center[1]))
    half = 0.62 * max(float((np.ptp(around, axis=0) * (shorter, 1.0)).max()), 0.02)
    axes.scatter(*ranked[rank + 1 :].T, s=4, color="#dee2e6", linewidths=0)
    colored = axes.scatter(
        *ranked[:rank].T, s=14, c=heights[:rank], cmap="viridis", vmin=0, vmax=1500, linewidths=0, zorder=3
    )
    _join(axes, ranked, rank, row, color, None)
    axes.set(
        xlim=center[0] + np.array((-half, half)) / shorter, ylim=center[1] + np.array((-half, half)), aspect=1 / shorter
    )
    axes.locator_params(nbins=4)
    return colored


def _join(
    axes: Axes, ranked: NDArray[np.float64], rank: int, row: NDArray[np.int32], color: str, label: str | None
) -> None:
    place = ranked[rank]
    for neighbor in ranked[row[row >= 0]]:
        axes.plot(*np.stack((place, neighbor)).T, color=color, linewidth=0.9, alpha=0.8, zorder=2)
    axes.scatter(*place, s=42, color=color, edgecolors="white", linewidths=0.9, zorder=4, label=label)
