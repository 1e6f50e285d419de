"""Point sets that have broken neighbor searches: ties, duplicates, offsets, clusters, extremes. By name, seeded."""

import itertools

import numpy as np


def lattice(side, d):
    """A full integer grid in shuffled order: almost every distance is tied."""
    points = np.array(list(itertools.product(range(side), repeat=d)), np.float64)
    return np.random.default_rng(side * d).permutation(points)


def uniform(n, d):
    return np.random.default_rng(n + d).random((n, d))


def clustered(n, d):
    rng = np.random.default_rng(n * d)
    centers = rng.random((9, d)) * 100
    return centers[rng.integers(0, 9, n)] + rng.normal(0, 1e-3, (n, d)) * rng.exponential(1, (n, 1))


def half_duplicates(n, d):
    rng = np.random.default_rng(n)
    return rng.permutation(np.repeat(rng.random((n // 2, d)), 2, axis=0))


def collinear(n, d):
    return np.random.default_rng(n).integers(0, n, (n, 1)) * np.arange(1.0, d + 1)


def curved(n, d):
    """A 3-d surface bent through d dimensions."""
    rng = np.random.default_rng(d)
    return np.sin(rng.random((n, 3)) @ rng.normal(0, 3, (3, d)))


def tiny(scale, n, d):
    return np.random.default_rng(n).integers(-40, 40, (n, d)) * scale


CLOUDS = {
    **{f"lattice {side}^{d}": lattice(side, d) for side, d in ((211, 1), (17, 2), (7, 3), (4, 4))},
    **{f"uniform d={d}": uniform(500, d) for d in (1, 2, 3, 5, 8, 20)},
    "clustered": clustered(500, 3),
    "all equal": np.full((300, 2), 0.3),
    "half duplicates": half_duplicates(400, 3),
    "two places": np.repeat([[0.0, 1.0], [2.0, 0.0]], 100, axis=0),
    "collinear": collinear(300, 3),
    "curved d=20": curved(400, 20),
    "near 1e8, spacing 1e-3": 1e8 + lattice(18, 2) * 1e-3,
    "far from zero": 1e15 + uniform(300, 3),
    "one outlier": np.vstack([uniform(300, 2) * 1e-6, [[1e9, -1e9]]]),
    "unequal sides": uniform(400, 4) * [1e6, 1.0, 1e-6, 0.0],
    "lattice with both zeros": np.copysign(lattice(14, 2) % 3, np.random.default_rng(0).normal(size=(196, 2))),
}
# Squares below the smallest normal number, squares that vanish, coordinates that are themselves denormal.
TINY = {
    np.float32: {"squares denormal": 1e-21, "squares vanish": 1e-30, "denormal": 1e-44},
    np.float64: {"squares denormal": 1e-157, "squares vanish": 1e-200, "denormal": 5e-324},
}


def cases():
    """Yield (name, points) of every cloud in both types."""
    for dtype in (np.float32, np.float64):
        for name, points in CLOUDS.items():
            yield f"{name}, {dtype.__name__}", points.astype(dtype)
        for name, scale in TINY[dtype].items():
            yield f"{name}, {dtype.__name__}", tiny(scale, 300, 2).astype(dtype)
