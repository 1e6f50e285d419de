import numpy as np
import pytest
from hypothesis import settings
from numba import config

# The same examples in every run, and no opinion on how long one takes: the machine may be busy or compiling.
settings.register_profile(
    "pcct", deadline=None, derandomize=True, database=None, max_examples=5 if config.DISABLE_JIT else 60
)
settings.load_profile("pcct")


@pytest.fixture(scope="session")
def warm():
    """Compile, or read from the cache, the kernels for float64, so that no later clock measures the compiler."""
    from pcct_core.graph import knn_graph, vecchia_graph

    points = np.random.default_rng(0).random((4200, 3))
    knn_graph(points, k=5)
    for order in ("maximin", "hilbert"):
        vecchia_graph(points, k=5, order=order)
