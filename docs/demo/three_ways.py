"""The demo's fits: one model of altitude, three ways to its neighbors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
from fit import Fit, Fixed, Inline, Model, Tracked, fit
from numpy.typing import NDArray
from rich.table import Table
from vecchia import minus_log_likelihood

from pcct_client import Client, Graph, RefreshPolicy, Session

PLACES = 8192
K = 16
INDUCING = 96
KERNEL = "matern32"
START = (1.0, 1.0, 1.0, 1.0, 0.5)  # variance, lengthscales in earth radii, nugget: a guess that knows nothing
# A swap costs an evaluation: worth it once lengthscales have doubled, not after each iteration.
POLICY = RefreshPolicy(tolerance=0.7, max_epochs=20, cooldown_epochs=6)

Telling = Callable[[str], AbstractContextManager[Callable[[str], None]]]


class Ways(NamedTuple):
    """The fits, by how their neighbors came, and the builds behind the one that was tracked: (start, stop) in its seconds."""

    fits: dict[str, Fit]
    builds: list[tuple[float, float]]


def altitude_model(
    places: NDArray[np.float64], altitude: NDArray[np.float32], order: NDArray[np.int64], count: int = PLACES
) -> Model:
    """Return the model of the altitude of the places that come first in a maximin order, which are spread over all land.

    places: (n, 2) longitude and latitude in degrees. altitude: (n,) m. order: (n,) of a maximin Vecchia graph.
    Points are on the unit sphere in three dimensions: no seam, no poles, and distances in earth radii. Altitude is
    standardised: mean 0, variance 1.
    """
    first = order[:count]
    longitude, latitude = np.radians(places[first]).T
    points = np.stack(
        (np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)), axis=1
    )
    metres = altitude[first].astype(np.float64)
    return Model(points, (metres - metres.mean()) / metres.std(), KERNEL, min(INDUCING, len(first) // 4))


def fit_three_ways(
    client: Client, model: Model, start: NDArray[np.float64], k: int, policy: RefreshPolicy, telling: Telling
) -> Ways:
    """Fit a model whose points are in maximin order: neighbors fixed, followed by a track, refreshed inline.

    start: (2 + d,) variance, lengthscales, nugget. The first graph is there before any of the fits begins.
    """
    theta, dataset = np.log(start), client.upload(model.points)
    spec = spec_of(model, start, k, client.upload(model.points[: model.inducing]))
    with telling("building the first graph of the model, and compiling its objective"):
        graph = client.graph(dataset, spec)
        compile_objective(model, graph)
    # Inline goes last: where its hyperparameters are those of the track, the track's graph is in the store for it.
    with telling("fitting, neighbors fixed") as tell:
        fixed = fit(model, theta, Fixed(graph), tell)
    with client.track(dataset, **spec, policy=policy) as session, telling("fitting, neighbors from a track") as tell:
        tracked = fit(model, theta, Tracked(session), tell)
        builds = builds_behind(tracked, session)
    with telling("fitting, neighbors refreshed inline") as tell:
        inline = fit(model, theta, Inline(client, graph), tell)
    return Ways({"fixed": fixed, "inline": inline, "track": tracked}, builds)


def spec_of(model: Model, start: NDArray[np.float64], k: int, inducing: str) -> dict[str, Any]:
    """Return the specification of the first graph.

    The order is that of the points, and the inducing points are a dataset, the first of them: both stay what they are, so
    that from graph to graph nothing but the neighbors changes.
    """
    metric: dict[str, Any] = {"type": "residual", "kernel": model.kernel, "inducing": {"dataset": inducing}}
    metric |= {"variance": float(start[0]), "lengthscale": start[1:-1].tolist()}
    return {
        "kind": "vecchia",
        "k": k,
        "order": "given",
        "metric": metric,
        "accuracy": {"recall": 0.99, "confidence": 0.95},
    }


def compile_objective(model: Model, graph: Graph) -> None:
    """Evaluate the objective at a few points, so that no fit's first evaluation includes its compilation."""
    some, m = min(len(model.values), 200), min(model.inducing, 100)
    theta = np.zeros(2 + model.points.shape[1])
    minus_log_likelihood(theta, model.points[:some], model.values[:some], graph.neighbors[:some], model.kernel, m)


def builds_behind(tracked: Fit, session: Session) -> list[tuple[float, float]]:
    """Return when the graphs that a fit took up were built, in its seconds."""
    built_s = {swap.version: swap.built_s for swap in tracked.swaps}
    out = []
    for event in session.events:
        if event["event"] == "neighbor_refresh.complete" and event["version"] in built_s:
            stop_s = event["time_s"] - event["download_s"] - tracked.began
            out.append((stop_s - built_s[event["version"]], stop_s))
    return out


def fit_table(ways: Ways, model: Model, k: int) -> Table:
    """Return the table: what each fit's time went into, and what came of it."""
    n, d = model.points.shape
    title = f"Altitude of {n:,} places: {model.inducing} inducing points, k = {k}, {2 + d} hyperparameters"
    table = Table(title=title, title_justify="left")
    table.add_column("neighbors")
    for name in ("objective\nper epoch", "waiting\nper epoch", "\nepochs", "\nswaps", "\nin all", "log-\nlikelihood"):
        table.add_column(name, justify="right")
    for name, found in ways.fits.items():
        each = [1000 * found.spent_s(kind) / found.epochs for kind in ("objective", "waiting")]
        table.add_row(
            name,
            *(f"{ms:,.1f} ms" for ms in each),
            str(found.epochs),
            str(len(found.swaps)),
            f"{found.seconds:.1f} s",
            f"{found.log_likelihood:,.1f}",
        )
    return table


def what_it_shows(ways: Ways) -> str:
    """Return the line under the table: what neighbors that follow a fit are worth, and what they cost either way."""
    fixed, inline, track = (ways.fits[name] for name in ("fixed", "inline", "track"))
    gain = track.log_likelihood - fixed.log_likelihood
    waited = [f"{found.spent_s('waiting'):.1f} s" for found in (inline, track)]
    return (
        f"What it shows: neighbors that follow the fit change its log-likelihood by {gain:+,.1f}; waiting for them took "
        f"{waited[0]} inline and {waited[1]} with a track, whose builds leave the processor to the fit."
    )
