"""Draws the pictures of the concept pages from the demo's places: `python docs/site/pictures.py` writes docs/pictures.

Takes about half a minute. The track's picture is of a fit that runs while it is drawn, beside a service of its own.
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import pcct_core as pc
from pcct_core.certificate import Certificate

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs/pictures"
sys.path.insert(0, str(ROOT / "docs/demo"))
matplotlib.use("Agg")

POINT, NEIGHBORS, EARLIER, LATER, GATE = "#c2255c", "#1971c2", "#495057", "#ced4da", "#e8590c"
WIDTH = 8.0  # inches; the site shows it about as wide
K = 12
QUERIES = 100  # looked at for the gate's picture
# Where to look for a place, (longitude, latitude), and of about which rank.
PICKS = (((13.0, 44.0), 400), ((10.0, 50.0), 2_500), ((10.0, 50.0), 24_000))


def main() -> None:
    """Draw all three."""
    OUT.mkdir(exist_ok=True)
    places = np.load(ROOT / "docs/demo/places.npy")
    draw_predecessors(OUT / "predecessors.png", places)
    draw_gate(OUT / "gate.png", places)
    draw_track(OUT / "track.png", places)


def draw_predecessors(path: Path, places: NDArray[np.float64]) -> None:
    """Draw three rows of the Vecchia graph of places, (n, 2) longitude and latitude in degrees: early, middle and late."""
    graph = pc.vecchia_graph(places, k=K, metric="haversine")
    assert graph.order is not None  # noqa: S101  (every Vecchia graph has one)
    ranked = places[graph.order]
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    for axes, (spot, about) in zip(figure.subplots(1, 3), PICKS, strict=True):
        ranks = np.arange(int(0.8 * about), int(1.2 * about))
        rank = int(ranks[((ranked[ranks] - spot) ** 2).sum(axis=1).argmin()])
        _draw_row(axes, ranked, rank, graph.neighbors[rank])
        axes.set_title(f"rank {rank:,}\nwithin {graph.distances[rank].max():,.0f} km", fontsize=11)
        axes.set_xlabel("longitude (°)")
    figure.axes[0].set_ylabel("latitude (°)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, markerscale=1.6)
    _save(figure, path, f"{len(places):,} places in maximin order, k = {K}")


def _draw_row(axes: Axes, ranked: NDArray[np.float64], rank: int, row: NDArray[np.int32]) -> None:
    place, near = ranked[rank], ranked[row]
    shorter = np.cos(np.radians(place[1]))  # a degree of longitude, beside one of latitude
    half = 1.35 * np.abs((near - place) * (shorter, 1.0)).max()
    window = (place[0] - half / shorter, place[0] + half / shorter, place[1] - half, place[1] + half)
    inside = (ranked[:, 0] > window[0]) & (ranked[:, 0] < window[1]) & (ranked[:, 1] > window[2])
    inside &= ranked[:, 1] < window[3]
    later, earlier = np.flatnonzero(inside[rank + 1 :]) + rank + 1, np.flatnonzero(inside[:rank])
    axes.scatter(*ranked[later].T, s=3, color=LATER, linewidths=0, rasterized=True, label="later: cannot be neighbors")
    axes.scatter(*ranked[earlier].T, s=16, color=EARLIER, linewidths=0, label="earlier")
    for neighbor in near:
        axes.plot(*np.stack((place, neighbor)).T, color=NEIGHBORS, linewidth=0.9, zorder=2)
    axes.scatter(*near.T, s=24, color=NEIGHBORS, linewidths=0, zorder=3, label=f"the {K} nearest of these")
    axes.scatter(*place, s=60, color=POINT, edgecolors="white", zorder=4, label="the point")
    axes.set(xlim=window[:2], ylim=window[2:], aspect=1 / shorter)
    axes.locator_params(nbins=4)


class Gated(NamedTuple):
    """One query of a gated graph: scaled distance and residual distance of every candidate, float64 (candidates,).

    neighbors: candidates that the graph lists. missed: those that it should. gate: how far it looked, in lengthscales.
    """

    scaled: NDArray[np.float64]
    residual: NDArray[np.float64]
    neighbors: NDArray[np.int64]
    missed: NDArray[np.int64]
    gate: float


def draw_gate(path: Path, places: NDArray[np.float64]) -> None:
    """Draw what the gate sees of two queries: all candidates by scaled distance, and by the residual distance that counts."""
    looked, certificate = gated_queries(places)
    by_reach = sorted(looked, key=lambda each: (each.scaled[each.neighbors] / each.gate).max())
    worst = max(looked, key=lambda each: len(each.missed))
    figure = Figure(figsize=(WIDTH, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_query(left, by_reach[len(by_reach) // 2], f"the median of {QUERIES} queries")
    _draw_query(right, worst, f"the worst of {QUERIES}: misses {len(worst.missed)} of 20")
    left.set_ylabel("residual distance √(1 - |ρ|): costly")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=5, frameon=False, columnspacing=1.2, handletextpad=0.3
    )
    said = (
        f"{100 * certificate.confidence:.0f} % sure that it has {100 * certificate.recall_lower:.1f} % of all neighbors"
    )
    _save(figure, path, f"A gated graph of 16,384 places: {said}")


def _draw_query(axes: Axes, found: Gated, title: str) -> None:
    passed = found.scaled <= found.gate
    dots = {"linewidths": 0, "rasterized": True}
    reach = 1.25 * max(found.gate, found.scaled[found.missed].max(initial=0.0))
    axes.axvspan(found.gate, reach, color="#f1f3f5", zorder=0)
    axes.scatter(found.scaled[~passed], found.residual[~passed], s=6, color="#adb5bd", label="kept out", **dots)
    axes.scatter(found.scaled[passed], found.residual[passed], s=10, color=EARLIER, label="passes", **dots)
    near, missed = found.neighbors, found.missed
    axes.scatter(found.scaled[near], found.residual[near], s=26, color=NEIGHBORS, linewidths=0, label="the 20 it found")
    axes.scatter(
        found.scaled[missed], found.residual[missed], s=40, facecolors="none", edgecolors=POINT, label="missed"
    )
    axes.axvline(found.gate, color=GATE, linewidth=1.8, label="gate")
    axes.set(xlim=(0, reach), xlabel="scaled distance (lengthscales): cheap")
    axes.set_title(f"{title}\n{passed.sum():,} of {len(passed):,} candidates pass", fontsize=11)


def gated_queries(places: NDArray[np.float64]) -> tuple[list[Gated], Certificate]:
    """Build a gated graph of places on the sphere; return some random queries of it, and its certificate.

    Residual distances are computed again here, by their formula.
    """
    rng = np.random.default_rng(0)
    longitude, latitude = np.radians(places[rng.permutation(len(places))[:16_384]]).T
    points = np.stack((np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)), 1)
    lengthscale, m, k = 0.5, 256, 20
    inducing = points[rng.choice(len(points), m, replace=False)]
    graph = pc.knn_graph(points, k, pc.Residual(pc.Matern32(lengthscale=lengthscale), inducing=inducing), accuracy=0.99)
    assert graph.lookup is not None  # noqa: S101  (a graph of this size is gated)

    def correlate(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
        a = np.sqrt(3) * np.linalg.norm(left[:, None] - right[None], axis=-1) / lengthscale
        return (1 + a) * np.exp(-a)

    factor = np.linalg.cholesky(correlate(inducing, inducing) + 1e-6 * np.eye(m))
    V = np.linalg.solve(factor, correlate(inducing, points)).T
    left = np.maximum(1 - (V * V).sum(axis=1), 1e-12)

    def look(query: int) -> Gated:
        others = np.delete(np.arange(len(points)), query)
        rho = (correlate(points[[query]], points)[0] - V @ V[query]) / np.sqrt(left * left[query])
        scaled = np.linalg.norm(points - points[query], axis=1)[others] / lengthscale
        residual = np.sqrt(np.maximum(0.0, 1 - np.abs(rho)))[others]
        gate = float(graph.lookup.radii(np.sort(scaled)[k - 1 : k])[0])
        neighbors = np.searchsorted(others, graph.neighbors[query])
        closer = np.flatnonzero(residual < residual[neighbors].max() - 1e-9)  # rounding moves neighbors by less
        true = closer[np.argsort(residual[closer])][:k]
        return Gated(scaled, residual, neighbors, np.setdiff1d(true, neighbors), gate)

    return [look(query) for query in rng.choice(len(points), QUERIES, replace=False)], graph.certificate


class Moment(NamedTuple):
    """One iteration: seconds since the fit began, the model's first lengthscale, that of the graph, the graph's version."""

    at_s: float
    model: float
    graph: float
    version: int


def draw_track(path: Path, places: NDArray[np.float64]) -> None:
    """Draw a fit that a track follows: the lengthscale of the model and of its graph, and the builds in the background."""
    moments, builds = followed_fit(places)
    times = [moment.at_s for moment in moments]
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot(
        times,
        [moment.model for moment in moments],
        ".-",
        color=POINT,
        markersize=5,
        label="of the model, after each iteration",
    )
    top.step(
        times,
        [moment.graph for moment in moments],
        where="post",
        color=NEIGHBORS,
        linewidth=2,
        label="that its graph was built for",
    )
    swaps = [here for before, here in pairwise(moments) if here.version != before.version]
    for swap in swaps:
        for axes in (top, bottom):
            axes.axvline(swap.at_s, color=GATE, linewidth=1, linestyle=":", zorder=0)
    top.set(yscale="log", ylabel="lengthscale (earth radii)")
    top.legend(loc="upper right")
    bottom.broken_barh(
        [(start, stop - start) for start, stop, _ in builds], (0, 1), color="#8ce99a", edgecolor="#2b8a3e"
    )
    for start, stop, version in builds:
        bottom.text((start + stop) / 2, 0.45, version, ha="center", va="center", fontsize=10)
    for swap in swaps:
        bottom.text(swap.at_s, 1.12, f"swap to {swap.version} ", color=GATE, ha="right", va="bottom", fontsize=9)
    bottom.set(ylim=(0, 1.6), yticks=[], xlim=(0, times[-1] * 1.01), xlabel="seconds since the fit began")
    bottom.set_ylabel("builds of\nversion", rotation=0, ha="right", va="center")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path, f"A fit to the altitude of 8,192 places: {len(moments)} iterations, {len(swaps)} swaps")


def followed_fit(places: NDArray[np.float64]) -> tuple[list[Moment], list[tuple[float, float, int]]]:
    """Run the demo's fit on a service of its own; returns its moments, and (start, stop, version) of the builds it took up."""
    from demo import service
    from fit import Tracked, fit
    from three_ways import POLICY, START, altitude_model, builds_behind, compile_objective, spec_of
    from three_ways import K as FIT_K

    from pcct_client import Client, Graph

    altitude = np.load(ROOT / "docs/demo/altitude.npy")
    order = pc.vecchia_graph(places, k=1, metric="haversine").order
    assert order is not None  # noqa: S101  (every Vecchia graph has one)
    model = altitude_model(places, altitude, order)
    moments: list[Moment] = []

    class Watched(Tracked):
        """Notes every iteration."""

        began = time.perf_counter()

        def step(self, lengthscale: NDArray[np.float64], close: bool) -> Graph:
            """Note where the model and its graph are."""
            graph = super().step(lengthscale, close)
            self.note(lengthscale, graph)
            return graph

        def settle(self, lengthscale: NDArray[np.float64]) -> Graph:
            """Note where they end."""
            graph = super().settle(lengthscale)
            self.note(lengthscale, graph)
            return graph

        def note(self, lengthscale: NDArray[np.float64], graph: Graph) -> None:
            """Keep one moment."""
            of_graph = graph.spec["metric"]["lengthscale"][0]
            moments.append(Moment(time.perf_counter() - self.began, lengthscale[0], of_graph, graph.version or 0))

    with (
        tempfile.TemporaryDirectory() as folder,
        service(Path(folder), Path(folder) / "log") as url,
        Client(url) as client,
    ):
        dataset = client.upload(model.points)
        spec = spec_of(model, np.array(START), FIT_K, client.upload(model.points[: model.inducing]))
        with client.track(dataset, **spec, policy=POLICY) as session:
            compile_objective(model, session.graph)
            Watched.began = time.perf_counter()
            fitted = fit(model, np.log(START), Watched(session))
            versions = [swap.version or 0 for swap in fitted.swaps]
            builds = sorted(builds_behind(fitted, session))
    return moments, [(start, stop, version) for (start, stop), version in zip(builds, versions, strict=True)]


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=170)


if __name__ == "__main__":
    main()
