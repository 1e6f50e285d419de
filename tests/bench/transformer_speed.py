"""`PcctNeighborsTransformer` beside scikit-learn's `KNeighborsTransformer(n_jobs=-1)`: seconds of `fit_transform`.

    .venv/bin/python tests/bench/transformer_speed.py [--points 32768] [--repeats 3]

Uniform points in 3 and 8 dimensions, both in this process, the best of so many repeats in turn. Prints the rows of the table in
docs/howto/scikit-learn.md, after it has seen that both graphs are the same.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

import numpy as np
from sklearn.neighbors import KNeighborsTransformer

from pcct_client.sklearn import PcctNeighborsTransformer

DIMENSIONS, NEIGHBORS = (3, 8), (10, 30)


def time_both(transformers: list[Any], points: np.ndarray, repeats: int) -> list[float]:
    """Return the shortest time of each, in seconds; raises AssertionError when their graphs differ."""
    taken, graphs = [[], []], []
    for _ in range(repeats):
        graphs = []
        for one, times in zip(transformers, taken, strict=True):
            begin = time.perf_counter()
            graphs.append(one.fit_transform(points))
            times.append(time.perf_counter() - begin)
    np.testing.assert_array_equal(graphs[0].indices, graphs[1].indices)
    return [min(times) for times in taken]


def main(arguments: list[str] | None = None) -> int:
    """Print one row for each case."""
    parser = argparse.ArgumentParser(description="Time PcctNeighborsTransformer beside KNeighborsTransformer.")
    parser.add_argument("--points", type=int, default=32_768)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    print(f"n = {options.points:,}, {os.cpu_count()} cores, seconds of fit_transform:\n")
    print("| d | `n_neighbors` | pcct | scikit-learn, `n_jobs=-1` | times as fast |\n|---|---|---|---|---|")
    for d in DIMENSIONS:
        points = np.random.default_rng(0).random((options.points, d))
        PcctNeighborsTransformer().fit_transform(points[:2000])  # loads the kernels
        for k in NEIGHBORS:
            both = [PcctNeighborsTransformer(n_neighbors=k), KNeighborsTransformer(n_neighbors=k, n_jobs=-1)]
            ours_s, theirs_s = time_both(both, points, options.repeats)
            print(f"| {d} | {k} | {ours_s:.3f} | {theirs_s:.3f} | {theirs_s / ours_s:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
