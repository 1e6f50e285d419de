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


def weighted_block(weights):
    """Return what `distance_block` is when differences of coordinates are multiplied by weights, T (d,), first."""

    def block(Q, X):
        total = np.zeros((len(Q), len(X)), X.dtype)
        for c in range(X.shape[1]):
            diff = (X[None, :, c] - Q[:, None, c]) * weights[c]
            total += diff * diff
        return np.sqrt(total)

    return block


def knn(X, k, block=distance_block, groups=None):
    """Return neighbors int32 (n, k) and distances T (n, k): the k nearest other rows of every row of X, T (n, d).

    block: what computes distances; groups: (n,), only rows with the same value are neighbors; here and below.
    """
    groups = np.zeros(len(X)) if groups is None else groups
    return _nearest(X, X, k, lambda row: (np.arange(len(X)) != row) & (groups == groups[row]), block)


def vecchia(X, k, block=distance_block, groups=None):
    """Return neighbors and distances, (n, k): the k nearest among the rows before each row; X, T (n, d), in rank order."""
    groups = np.zeros(len(X)) if groups is None else groups
    return _nearest(X, X, k, lambda row: (np.arange(len(X)) < row) & (groups == groups[row]), block)


def query(X, Q, k, block=distance_block):
    """Return neighbors and distances, (m, k): the k nearest rows of X, T (n, d), to every row of Q, T (m, d)."""
    return _nearest(X, Q, k, lambda row: np.ones(len(X), bool), block)


def radius(X, Q, r, block=distance_block):
    """Return the rows of X within distance ≤ r of every row of Q, in compressed rows, ascending by (distance, index).

    Returns starts int64 (m + 1,), neighbors int32 (starts[m],), distances T (starts[m],); those of query i are at
    starts[i]:starts[i + 1].
    """
    neighbors, distances = [], []
    for _, row in _rows(X, Q, block):
        nearest = np.argsort(row, kind="stable").astype(np.int32)
        inside = nearest[row[nearest] <= r]
        neighbors.append(inside)
        distances.append(row[inside])
    starts = np.cumsum([0, *(len(inside) for inside in neighbors)], dtype=np.int64)
    return starts, np.concatenate(neighbors), np.concatenate(distances)


def maximin(X, count=None, weights=None):
    """Return the maximin order int64 (n,) and each point's distance to the points before it, T (n,), inf for the first.

    count: how many points to order, None for all. The first point is the one nearest to the centroid, measured in float64;
    each next one is the farthest from all before. weights: T (d,), as in `weighted_block`.
    """
    weights = np.ones(X.shape[1], X.dtype) if weights is None else weights
    block = weighted_block(weights)
    weighted = np.multiply(X, weights, dtype=np.float64)
    first = np.argmin(np.square(weighted - weighted.mean(axis=0)).sum(axis=1))
    order, distances = [int(first)], [X.dtype.type(np.inf)]
    nearest = block(X[first][None], X)[0]
    for _ in range((len(X) if count is None else count) - 1):
        nearest[order[-1]] = -1
        following = int(np.argmax(nearest))
        order.append(following)
        distances.append(nearest[following])
        nearest = np.minimum(nearest, block(X[following][None], X)[0])
    return np.array(order, np.int64), np.array(distances, X.dtype)


def scaled(X, lengthscale):
    """Return the points over their lengthscales, T (n, d); lengthscale is one number or one per dimension."""
    return X / np.asarray(lengthscale, X.dtype)


def euclidean_weights(X, lengthscale=1.0):
    """Return weights T (d,) and a function of the distances that `weighted_block(weights)` finds, for points of any size.

    Every difference is multiplied by the reciprocal of its lengthscale, rounded to T, where lengthscales differ; one that all
    share divides the distance. A power of two keeps squares from vanishing and overflowing.
    """
    scale = np.broadcast_to(np.asarray(lengthscale, np.float64), X.shape[1])
    same = (scale == scale[0]).all()
    weights = np.ones(X.shape[1]) if same else 1 / scale
    largest = np.abs(X * weights).max() if np.isfinite(X * weights).all() else np.inf
    exponent = int(np.finfo(X.dtype).maxexp / 2 - 6 - np.frexp(largest or 1.0)[1])
    exponent = int(
        np.clip(exponent, -np.finfo(X.dtype).maxexp + 9, np.finfo(X.dtype).maxexp - 9 - np.frexp(weights.max())[1])
    )

    def finish(distances):
        divided = distances.astype(np.float64) / np.frexp(scale[0])[0] if same else distances
        return np.ldexp(divided, -exponent - (np.frexp(scale[0])[1] if same else 0)).astype(X.dtype)

    return np.ldexp(weights.astype(X.dtype), exponent), finish


def sines_of_degrees(degrees):
    """Return sine and cosine of degrees, float64; exact at multiples of 90, and the same for angles that are 360 apart."""
    quarters = np.rint(degrees / 90)
    radians = np.radians(degrees - 90 * quarters)
    sine, cosine = np.sin(radians), np.cos(radians)
    turn = quarters.astype(int) % 4
    return np.choose(turn, [sine, cosine, -sine, -cosine]), np.choose(turn, [cosine, -sine, -cosine, sine])


def unit_vectors(X):
    """Return (longitude, latitude) degrees, (n, 2), as points of the unit sphere, float64 (n, 3)."""
    (sin_lon, sin_lat), (cos_lon, cos_lat) = (each.T for each in sines_of_degrees(X.astype(np.float64)))
    return np.stack([cos_lat * cos_lon, cos_lat * sin_lon, sin_lat], axis=1) + 0.0


def sphere_block(Q, X):
    """Return the chords between unit vectors up to a quarter of the circumference, and 4 less that from the antipode beyond."""
    near = np.zeros((len(Q), len(X)))
    far = np.zeros((len(Q), len(X)))
    for c in range(3):
        near += (X[None, :, c] - Q[:, None, c]) ** 2
        far += (X[None, :, c] + Q[:, None, c]) ** 2
    return np.where(near <= 2, np.sqrt(near), 4 - np.sqrt(far))


def sphere_km(keys):
    """Return the km along the sphere of what `sphere_block` returns."""
    quarter = np.sqrt(2.0)
    far = keys > quarter
    chord = np.clip(np.where(far, 4 - keys, keys), 0, quarter)
    km = np.arcsin(chord * 0.5) * (2.0 * EARTH_RADIUS_KM)
    beyond = np.maximum(np.pi * EARTH_RADIUS_KM - km, np.arcsin(np.array([quarter * 0.5])) * (2.0 * EARTH_RADIUS_KM))
    return np.where(np.isinf(keys), np.inf, np.where(far, beyond, km))


def great_circle_km(X, Q):
    """Return the km from every (longitude, latitude) of Q, (m, 2), to every one of X, (n, 2): the haversine formula."""
    lon, lat = np.radians(X.astype(np.float64)).T
    lon_q, lat_q = np.radians(Q.astype(np.float64)).T[:, :, None]
    h = np.sin((lat - lat_q) / 2) ** 2 + np.cos(lat) * np.cos(lat_q) * np.sin((lon - lon_q) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.minimum(h, 1)))


def unit_sized(X):
    """Return the rows of X times powers of two that bring their largest numbers to between 1 and 2."""
    return np.ldexp(X, 1 - np.frexp(np.abs(X).max(axis=1, keepdims=True))[1])


def unit_rows(X):
    """Return the rows of X, T (n, d), over their norms, which are summed in float64; T (n, d)."""
    sized = unit_sized(X)
    return (sized / np.sqrt(np.square(sized).sum(axis=1, keepdims=True, dtype=np.float64))).astype(X.dtype)


def inner_products(Q, X):
    """Return Q X' in float64, summed by column modulo 8, then these eight in halves."""
    totals = np.zeros((8, len(Q), len(X)))
    for c in range(X.shape[1]):
        totals[c % 8] += Q[:, None, c].astype(np.float64) * X[None, :, c].astype(np.float64)
    while len(totals) > 1:
        totals = totals[: len(totals) // 2] + totals[len(totals) // 2 :]
    return totals[0]


def cosine_block(Q, X):
    """Return the cosine distances from every row of Q to every row of X, float64 (m, n), as `pcct_core.measure` defines them.

    1 - p / √(a b) with a = x·x, b = y·y, p = x·y; below 2^-20 sin² / (1 + cos), where sin² is the mean of what the component
    of a y - p x across x and that of b x - p y across y say.
    """
    Q, X = unit_sized(Q), unit_sized(X)
    a, b, p = row_squares(Q), row_squares(X), inner_products(Q, X)
    distances = np.minimum(1 - p / np.sqrt(a[:, None] * b[None, :]), 2)
    i, j = np.nonzero(distances < 2.0**-20)
    x, y = Q[i].astype(np.float64), X[j].astype(np.float64)
    a, b, p = a[i], b[j], p[i, j]
    distances[i, j] = (_square_sines(x, y, a, b, p) + _square_sines(y, x, b, a, p)) / 2 / (1 + p / np.sqrt(a * b))
    return distances


def row_squares(X):
    """Return the inner products of rows with themselves, float64 (n,), summed as in `inner_products`."""
    return np.array([inner_products(row[None], row[None])[0, 0] for row in X])


def _square_sines(x, y, a, b, p):
    """Return sin², float64 (pairs,), of rows x and y, (pairs, d)."""
    across = _exact_difference(a[:, None], y, p[:, None], x)
    along = np.zeros(len(x))
    for c in range(x.shape[1]):
        along += x[:, c] * across[:, c]
    across -= x * (along / a)[:, None]
    total = np.zeros(len(x))
    for c in range(x.shape[1]):
        total += across[:, c] ** 2
    return total / (a * a * b)


def _exact_difference(a, y, p, x):
    """Return a y - p x, of which both products are exact: their roundings come from the halves of the factors."""
    return (a * y - p * x) + (_rounding(a, y) - _rounding(p, x))


def _rounding(x, y):
    (high, low), (other, rest) = _halves(x), _halves(y)
    return ((high * other - x * y) + high * rest + low * other) + low * rest


def _halves(x):
    high = x * 134217729.0
    high = high - (high - x)
    return high, x - high


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


def _rows(X, Q, block):
    """Yield (i, distances from Q[i] to every row of X)."""
    step = max(1, _BLOCK_VALUES // len(X))
    for start in range(0, len(Q), step):
        yield from enumerate(block(Q[start : start + step], X), start)


def _nearest(X, Q, k, allowed, block):
    """Return the k nearest rows of X to each row of Q among those where allowed(row of Q), bool (n,), is True."""
    neighbors = np.full((len(Q), k), -1, np.int32)
    distances = np.full((len(Q), k), np.inf, block(Q[:1], X[:1]).dtype)
    for i, row in _rows(X, Q, block):
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
