"""What a track is worth to a fit: one model of a rough field, three ways to its neighbors, as the demo does it but larger.

    .venv/bin/python tests/bench/fit_three_ways.py [--points 32768] [-k 30] [--inducing 256] [--repeats 1]

The field is a draw of a Matérn 3/2 process over the unit cube, with noise, so that its log-likelihood is of the order of n. The
objective (docs/demo/vecchia.py) runs in one thread, builds of the track on the cores that are left, inline ones on all.
Every repeat starts `pcct up` with a store of its own and prints one JSON line: seconds, evaluations and swaps of each fit;
`waiting_share`, the track's waiting by the inline one's; `time_ratio`, the track's time by the fixed one's;
`evaluation_ratio`, the same of evaluations, which other load on the machine does not change; `likelihood_gap`, the relative
difference of log-likelihoods between track and inline; and whether these meet their bars.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from session_cost import running_service

from pcct_client import Client

sys.path.append(str(Path(__file__).parents[2] / "docs/demo"))
from fit import Fit, Model
from three_ways import POLICY, Ways, fit_three_ways

LENGTHSCALES = (0.2, 0.5, 2.0)
NOISE = 0.1  # its variance; that of the field is 1
WAVES = 4096
START = (1.0, 3.0, 3.0, 3.0, 0.5)
BARS = {"waiting_share": 0.02, "time_ratio": 1.15, "likelihood_gap": 1e-3}


def rough_field(points: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a draw of a Matérn 3/2 process of variance 1: a sum of waves whose frequencies are Student's t of 3."""
    shape = (WAVES, len(LENGTHSCALES))
    frequencies = rng.normal(size=shape) / np.sqrt(rng.chisquare(3, size=(WAVES, 1)) / 3) / np.array(LENGTHSCALES)
    phases = rng.uniform(0.0, 2.0 * np.pi, WAVES)
    field = np.zeros(len(points))
    for first in range(0, WAVES, 256):
        some = slice(first, first + 256)
        field += np.cos(points @ frequencies[some].T + phases[some]).sum(axis=1)
    return field * np.sqrt(2.0 / WAVES)


def make_model(client: Client, n: int, inducing: int) -> Model:
    """Return uniform points in maximin order, with a noisy field."""
    rng = np.random.default_rng(20251)
    points = rng.random((n, len(LENGTHSCALES)))
    order = client.vecchia(points, k=1).order
    assert order is not None
    points = points[order]
    values = rough_field(points, rng) + np.sqrt(NOISE) * rng.normal(size=n)
    return Model(points, values, "matern32", inducing)


def describe(found: Fit) -> dict[str, Any]:
    """Return the numbers of one fit."""
    return {
        "seconds": round(found.seconds, 3),
        "objective_s": round(found.spent_s("objective"), 3),
        "waiting_s": round(found.spent_s("waiting"), 4),
        "epochs": found.epochs,
        "evaluations": found.count("objective"),
        "swaps": len(found.swaps),
        "built_s": [round(swap.built_s, 2) for swap in found.swaps],
        "log_likelihood": round(found.log_likelihood, 2),
        "theta": np.exp(found.theta).round(4).tolist(),
    }


def judge(ways: Ways) -> dict[str, Any]:
    """Return what the bars are held against, and whether each is met."""
    fixed, inline, track = (ways.fits[name] for name in ("fixed", "inline", "track"))
    values = {
        "waiting_share": track.spent_s("waiting") / max(inline.spent_s("waiting"), 1e-9),
        "time_ratio": track.seconds / fixed.seconds,
        "evaluation_ratio": track.count("objective") / fixed.count("objective"),
        "likelihood_gap": abs(track.log_likelihood / inline.log_likelihood - 1.0),
    }
    met = {name: values[name] <= bar for name, bar in BARS.items()}
    return {**{name: round(value, 5) for name, value in values.items()}, "met": met}


@contextmanager
def telling(what: str) -> Iterator[Callable[[str], None]]:
    """Say what goes on, on standard error."""
    print(what, file=sys.stderr)
    yield lambda news: print(f"  {news}", file=sys.stderr)


def main() -> None:
    """Run the repeats."""
    arguments = _arguments()
    for _ in range(arguments.repeats):
        record = {"points": arguments.points, "k": arguments.k, "inducing": arguments.inducing}
        record |= {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
        with running_service() as url, Client(url) as client:
            model = make_model(client, arguments.points, arguments.inducing)
            ways = fit_three_ways(client, model, np.array(START), arguments.k, POLICY, telling)
        record |= {name: describe(found) for name, found in ways.fits.items()}
        print(json.dumps({**record, **judge(ways)}), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fit one model three ways and compare their times.")
    parser.add_argument("--points", type=int, default=32_768)
    parser.add_argument("-k", type=int, default=30)
    parser.add_argument("--inducing", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
