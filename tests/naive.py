"""The oracle: every answer of the core by brute force in NumPy. Imports nothing of ours.

Conventions, as in the product: distances in the type T of the points (float32 or float64), squares summed over the
dimensions in order, then the root; ties go to the lower index; the point itself is excluded by its index; where there is no
neighbor, index -1 and distance inf. Works in blocks of rows, so a few thousand points need no more than 100 MB.
"""

import numpy as np

EARTH_RADIUS_KM = 6371.0088
_BLOCK_VALUES = 1 << 21  # distances held at once


def distance_block(Q, X):
    """Return the distances from every row of Q, T (m, d), to every row of X, T (n, d), as T (m, n)."""
    total = np.zeros((len(Q), len(X)), X.dtype)
    for c in range(X.shape[1]):
        diff = X[None, :, c] - Q[:, None, c]
        total += diff * diff
    return np.sqrt(total)


def knn(X, k):
    """Return neighbors int32 (n, k) and distances T (n, k): the k nearest other rows of every row of X, T (n, d)."""
    return _nearest(X, X, k, lambda row: np.arange(len(X)) != row)


def vecchia(X, k):
    """Return neighbors and distances, (n, k): the k nearest among the rows before each row; X, T (n, d), in rank order."""
    return _nearest(X, X, k, lambda row: np.arange(len(X)) < row)


def query(X, Q, k):
    """Return neighbors and distances, (m, k): the k nearest rows of X, T (n, d), to every row of Q, T (m, d)."""
    return _nearest(X, Q, k, lambda row: np.ones(len(X), bool))


def radius(X, Q, r):
    """Return the rows of X within distance ≤ r of every row of Q, in compressed rows, ascending by (distance, index).

    Returns starts int64 (m + 1,), neighbors int32 (starts[m],), distances T (starts[m],); those of query i are at
    starts[i]:starts[i + 1].
    """
    neighbors, distances = [], []
    for _, row in _rows(X, Q):
        nearest = np.argsort(row, kind="stable").astype(np.int32)
        inside = nearest[row[nearest] <= r]
        neighbors.append(inside)
        distances.append(row[inside])
    starts = np.cumsum([0, *(len(inside) for inside in neighbors)], dtype=np.int64)
    return starts, np.concatenate(neighbors), np.concatenate(distances)


def maximin(X, count=None):
    """Return the maximin order int64 (n,) and each point's distance to the points before it, T (n,), inf for the first.

    count: how many points to order, None for all. The first point is the one nearest to the centroid, measured in float64;
    each next one is the farthest from all before.
    """
    centroid = X.mean(axis=0, dtype=np.float64)
    first = np.argmin(np.square(X - centroid).sum(axis=1, dtype=np.float64))
    order, distances = [int(first)], [X.dtype.type(np.inf)]
    nearest = distance_block(X[first][None], X)[0]
    for _ in range((len(X) if count is None else count) - 1):
        nearest[order[-1]] = -1
        following = int(np.argmax(nearest))
        order.append(following)
        distances.append(nearest[following])
        nearest = np.minimum(nearest, distance_block(X[following][None], X)[0])
    return np.array(order, np.int64), np.array(distances, X.dtype)


def scaled(X, lengthscale):
    """Return the points over their lengthscales, T (n, d); lengthscale is one number or one per dimension."""
    return X / np.asarray(lengthscale, X.dtype)


def unit_vectors(X):
    """Return (longitude, latitude) degrees, (n, 2), as points of the unit sphere, float64 (n, 3)."""
    lon, lat = np.radians(X.astype(np.float64)).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def chord_km(chord):
    """Return the km along the sphere that a chord of the unit sphere spans."""
    return np.where(np.isinf(chord), np.inf, np.arcsin(np.minimum(chord / 2.0, 1.0)) * (2.0 * EARTH_RADIUS_KM))


def great_circle_km(X, Q):
    """Return the km from every (longitude, latitude) of Q, (m, 2), to every one of X, (n, 2): the haversine formula."""
    lon, lat = np.radians(X.astype(np.float64)).T
    lon_q, lat_q = np.radians(Q.astype(np.float64)).T[:, :, None]
    h = np.sin((lat - lat_q) / 2) ** 2 + np.cos(lat) * np.cos(lat_q) * np.sin((lon - lon_q) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.minimum(h, 1)))


def unit_rows(X):
    """Return the rows of X, T (n, d), over their norms, which are summed in float64; T (n, d)."""
    largest = X / np.abs(X).max(axis=1, keepdims=True)
    return (largest / np.sqrt(np.square(largest).sum(axis=1, keepdims=True, dtype=np.float64))).astype(X.dtype)


def chord_cosine(chord):
    """Return the cosine distance, 1 - cos(angle), of two unit vectors that are `chord` apart."""
    return chord * chord / 2


def cosine_distances(X, Q):
    """Return 1 - cos(angle) between every row of Q and every row of X, float64 (m, n), from dot products."""
    X, Q = X.astype(np.float64), Q.astype(np.float64)
    return 1 - (Q @ X.T) / (np.linalg.norm(Q, axis=1)[:, None] * np.linalg.norm(X, axis=1))


def in_dataset_index(order, neighbors, distances):
    """Return a graph whose rows and entries are ranks with both as dataset indices, row by row."""
    renamed, moved = np.empty_like(neighbors), np.empty_like(distances)
    for rank, index in enumerate(order):
        renamed[index] = [order[entry] if entry >= 0 else -1 for entry in neighbors[rank]]
        moved[index] = distances[rank]
    return renamed, moved


def _rows(X, Q):
    """Yield (i, distances from Q[i] to every row of X)."""
    step = max(1, _BLOCK_VALUES // len(X))
    for start in range(0, len(Q), step):
        yield from enumerate(distance_block(Q[start : start + step], X), start)


def _nearest(X, Q, k, allowed):
    """Return the k nearest rows of X to each row of Q among those where allowed(row of Q), bool (n,), is True."""
    neighbors = np.full((len(Q), k), -1, np.int32)
    distances = np.full((len(Q), k), np.inf, X.dtype)
    for i, row in _rows(X, Q):
        candidates = np.flatnonzero(allowed(i))
        nearest = candidates[np.argsort(row[candidates], kind="stable")[:k]]
        neighbors[i, : len(nearest)] = nearest
        distances[i, : len(nearest)] = row[nearest]
    return neighbors, distances


def covariance(X, Z, kernel, lengthscale=1.0, variance=1.0):
    """Return the kernel matrix of the rows of X and of Z, float64; kernel: rbf, matern12, matern32 or matern52."""
    scaled_x, scaled_z = np.asarray(X, float) / lengthscale, np.asarray(Z, float) / lengthscale
    r = distance_block(scaled_x, scaled_z)
    a3, a5 = np.sqrt(3.0) * r, np.sqrt(5.0) * r
    correlation = {
        "rbf": np.exp(-(r**2) / 2),
        "matern12": np.exp(-r),
        "matern32": (1 + a3) * np.exp(-a3),
        "matern52": (1 + a5 + a5**2 / 3) * np.exp(-a5),
    }[kernel]
    return variance * correlation


def residual_factors(X, Z, kernel, lengthscale=1.0, variance=1.0, jitter=1e-6, floor=1e-9):
    """Return V, float64 (n, m), and p, float64 (n,): see pcct_core.residual."""
    lower = np.linalg.cholesky(covariance(Z, Z, kernel, lengthscale, variance) + jitter * variance * np.eye(len(Z)))
    V = np.linalg.solve(lower, covariance(Z, X, kernel, lengthscale, variance)).T
    return V, np.maximum(variance - np.square(V).sum(axis=1), floor * variance)


def residual_distances(X, V, p, kernel, lengthscale=1.0, variance=1.0):
    """Return the matrix of sqrt(1 - |rho|), float64 (n, n), with 1 - |rho| rounded to multiples of the steps of the pairs.

    Equal points are at distance 0, and so are those whose squared scaled distances vanish.
    """
    rho = (covariance(X, X, kernel, lengthscale, variance) - V @ V.T) / np.sqrt(np.outer(p, p))
    steps = residual_steps(p, variance)
    squares = np.rint(np.maximum(0.0, 1.0 - np.abs(rho)) / steps) * steps
    scaled_x = np.asarray(X, float) / lengthscale
    return np.sqrt(np.where(distance_block(scaled_x, scaled_x) == 0, 0.0, squares))


def residual_steps(p, variance=1.0):
    """Return what 1 - |rho| of each pair is rounded to, float64 (n, n): the power of two from 64 to 128 eps over the smaller
    residual variance, in units of the variance and at most 1; the step itself is at most 1."""
    least = np.minimum(np.minimum.outer(p, p) / variance, 1.0)
    return np.minimum(2.0 ** np.ceil(np.log2(64 * np.finfo(float).eps / least)), 1.0)


def residual_rounding(X, Z, p, kernel, lengthscale=1.0, variance=1.0, jitter=1e-6):
    """Return what each point adds to the rounding of a squared residual distance, float64 (n,).

    Covariances are rounded by some eps of the variance, which the weights W of the inducing points, V·V' = k' W, carry into
    the products of V and into p (Higham 2002, theorem 10.4: as if K itself had been rounded); rho is their quotient.
    """
    K = covariance(Z, Z, kernel, lengthscale, variance) + jitter * variance * np.eye(len(Z))
    W = np.linalg.solve(K, covariance(Z, X, kernel, lengthscale, variance))
    return 8 * np.finfo(float).eps * variance * np.square(1 + np.abs(W).sum(axis=0)) / p


def nearest_in(distances, k, predecessors):
    """Return neighbors and distances, (n, k), of a square matrix of distances: among all other rows, or earlier ones."""
    n = len(distances)
    allowed = np.tri(n, k=-1, dtype=bool) if predecessors else ~np.eye(n, dtype=bool)
    masked = np.where(allowed, distances, np.inf)
    neighbors = np.argsort(masked, axis=1, kind="stable")[:, :k].astype(np.int32)
    nearest = np.take_along_axis(masked, neighbors, axis=1)
    return np.where(np.isinf(nearest), -1, neighbors).astype(np.int32), nearest
