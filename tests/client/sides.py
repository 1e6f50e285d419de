"""Points, and points and queries, as the arrays or ids that the client sends of them."""

from pcct_client.inputs import read_points, read_points_and_queries


def values(side):
    return side if isinstance(side, str) else side.values


def points_for(metric, X, columns=None):
    return values(read_points(metric, X, columns))


def points_and_queries(metric, X, Q, columns=None):
    return tuple(map(values, read_points_and_queries(metric, X, Q, columns)))
