"""Stand-in until the tree lands: the obvious NumPy scan in row blocks, so that the other rooms have real answers."""

import numpy as np

from pcct_core.certificate import Certificate
from pcct_core.errors import Cancelled
from pcct_core.points import EARTH_RADIUS_KM
from pcct_core.spec import Cosine, Euclidean, Haversine
from pcct_core.telemetry import Telemetry


def brute_force(X, spec, progress, cancel):  # type: ignore[no-untyped-def]
    from pcct_core.graph import Graph

    n = X.shape[0]
    t = Telemetry()
    order = None
    P = X
    if spec.kind == "vecchia":
        order = np.arange(n)
        if spec.order == "random":
            order = np.random.default_rng(spec.seed).permutation(n)
        elif spec.order != "given":
            order = np.argsort(X.sum(axis=1), kind="stable")
        P = X[order]
    m = spec.metric
    if isinstance(m, Euclidean) and m.lengthscale is not None:
        P = (P / np.asarray(m.lengthscale, P.dtype)).astype(P.dtype)
    elif isinstance(m, Haversine):
        lon, lat = np.radians(P.astype(float)).T
        P = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], 1)
    elif isinstance(m, Cosine):
        P = P / np.linalg.norm(P, axis=1, keepdims=True)
    nb = np.full((n, spec.k), -1, np.int32)
    ds = np.full((n, spec.k), np.inf, P.dtype)
    with t.phase("search"):
        for a in range(0, n, 256):
            if cancel is not None and cancel.is_set():
                raise Cancelled("the build was cancelled")
            if progress is not None:
                progress("search", a, n)
            b = min(n, a + 256)
            D = np.zeros((b - a, n), P.dtype)
            for c in range(P.shape[1]):
                D += (P[a:b, None, c] - P[None, :, c]) ** 2
            D = np.sqrt(D)
            for i in range(a, b):
                row = D[i - a]
                lim = i if order is not None else n
                row = row[:lim].copy()
                if order is None:
                    row[i] = np.inf
                kk = min(spec.k, i if order is not None else n - 1)
                idx = np.argsort(row, kind="stable")[:kk]
                nb[i, :kk], ds[i, :kk] = idx, row[idx]
    if isinstance(m, Haversine):
        ds = np.where(np.isinf(ds), ds, 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(ds / 2, 1)))
    elif isinstance(m, Cosine):
        ds = ds**2 / 2
    if progress is not None:
        progress("search", n, n)
    return Graph(nb, ds, order, spec, Certificate("dense", str(ds.dtype)), t)
