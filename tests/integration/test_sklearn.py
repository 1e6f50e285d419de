"""`PcctNeighborsTransformer` on a running service: the graphs that it makes in its own process."""

import pickle

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsTransformer, RadiusNeighborsTransformer

from pcct_client.sklearn import PcctNeighborsTransformer, PcctRadiusNeighborsTransformer

RNG = np.random.default_rng(5)
PLACES, ASKED = (RNG.uniform([-1.5, -3.1], [1.5, 3.1], (size, 2)) for size in (300, 40))


@pytest.mark.integration
@pytest.mark.parametrize("mode", ["distance", "connectivity"])
@pytest.mark.parametrize("metric", ["euclidean", "haversine"])
def test_graphs_are_those_of_this_process(service_url, mode, metric):
    there = PcctNeighborsTransformer(mode=mode, metric=metric, url=service_url)
    here = PcctNeighborsTransformer(mode=mode, metric=metric)
    theirs = KNeighborsTransformer(mode=mode, metric=metric)
    for ours in (there, pickle.loads(pickle.dumps(there.fit(PLACES)))):
        assert (ours.fit_transform(PLACES) != here.fit_transform(PLACES)).nnz == 0
        assert (ours.transform(ASKED) != here.transform(ASKED)).nnz == 0
        np.testing.assert_array_equal(ours.transform(ASKED).indices, theirs.fit(PLACES).transform(ASKED).indices)


@pytest.mark.integration
@pytest.mark.parametrize("metric", ["sqeuclidean", "haversine"])
def test_radius_graphs_are_those_of_this_process(service_url, metric):
    there, here = (
        PcctRadiusNeighborsTransformer(radius=0.2, metric=metric, url=url).fit(PLACES) for url in (service_url, None)
    )
    theirs = RadiusNeighborsTransformer(radius=0.2, metric=metric).fit(PLACES)
    for asked in (PLACES, ASKED):
        found = there.transform(asked)
        assert (found != here.transform(asked)).nnz == 0
        np.testing.assert_array_equal(found.indptr, theirs.transform(asked).indptr)


@pytest.mark.integration
def test_one_sample_and_what_the_service_refuses(service_url):
    one = PcctNeighborsTransformer(mode="connectivity", n_neighbors=1, url=service_url).fit([[0.5, 0.5]])
    assert one.transform([[0.5, 0.5], [3.0, 4.0]]).toarray().tolist() == [[1.0], [1.0]]
    fitted = PcctNeighborsTransformer(metric_params={"lengthscale": [1.0, 2.0, 3.0]}, url=service_url).fit(PLACES)
    with pytest.raises(ValueError, match="lengthscale has 3 values for 2 dimensions"):
        fitted.transform(ASKED)
