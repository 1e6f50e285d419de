"""Use exact pcct graphs in scikit-learn pipelines: `PcctNeighborsTransformer` takes the place of `KNeighborsTransformer`.

With `url` a service computes the graph and keeps it, so the same points are answered from its store the next time; without,
it is computed in this process by `pcct_core`, and no service is needed. Needs `pip install 'pcct[sklearn]'`.
"""

import numpy as np
from sklearn.cluster import DBSCAN
from sklearn.datasets import make_swiss_roll
from sklearn.manifold import Isomap
from sklearn.pipeline import make_pipeline

from pcct_client.sklearn import PcctNeighborsTransformer

X, along = make_swiss_roll(1000, random_state=0)
graph = PcctNeighborsTransformer(n_neighbors=10, url="http://127.0.0.1:8000")
unrolled = make_pipeline(graph, Isomap(n_neighbors=10, metric="precomputed")).fit_transform(X)
found = abs(np.corrcoef(unrolled[:, 0], along)[0, 1])

# Distances on the sphere are scikit-learn's: rows are (latitude, longitude) in radians, distances radians of the unit sphere.
cities = np.radians([[48.9, 2.4], [35.7, 139.7]])  # Paris and Tokyo
homes = np.repeat(cities, 200, axis=0) + np.random.default_rng(0).normal(scale=0.001, size=(400, 2))
sphere = PcctNeighborsTransformer(n_neighbors=50, metric="haversine")
towns = make_pipeline(sphere, DBSCAN(eps=20 / 6371, min_samples=10, metric="precomputed")).fit_predict(homes)
print(f"unrolled, correlation {found:.3f}; {towns.max() + 1} towns")
