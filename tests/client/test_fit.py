"""The demo's fit: the optimiser goes on under the newest graph, and ends on none but it."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

THETA = np.log([1.0, 0.5, 0.5, 0.3])
N = 120


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs/demo"))
    return SimpleNamespace(**{name: importlib.import_module(name) for name in ("fit", "timeline", "three_ways")})


@pytest.fixture
def model(modules):
    rng = np.random.default_rng(0)
    points = rng.random((N, 2))
    values = np.sin(9 * points[:, 0]) + np.sin(3 * points[:, 1]) + 0.3 * rng.normal(size=N)
    return modules.fit.Model(points, values, "matern32", 5)


def graph(name, k=8):
    """Each row's nearest k in rank: a graph with a name of its own."""
    neighbors = np.array([[row - 1 - j if j < row else -1 for j in range(k)] for row in range(N)], np.int32)
    telemetry = {"seconds": {"scan": 0.25, "audit": 0.5}}
    return SimpleNamespace(id=name, neighbors=neighbors, order=np.arange(N), telemetry=telemetry, version=None)


class Source:
    """Neighbors by rule: `at_step` and `at_end` give the next graph, or None to stay."""

    def __init__(self, at_step=lambda count: None, at_end=lambda count: None):
        self.graph = graph("first")
        self.at_step, self.at_end = at_step, at_end
        self.told, self.ends, self.closes = [], [], []

    def step(self, lengthscale, close):
        self.told.append(lengthscale)
        self.closes.append(close)
        self.graph = self.at_step(len(self.told)) or self.graph
        return self.graph

    def settle(self, lengthscale):
        self.ends.append(lengthscale)
        self.graph = self.at_end(len(self.ends)) or self.graph
        return self.graph


def slope(modules, model, found, last):
    surface = modules.fit._Surface(model, last, modules.fit.Fit(THETA))
    return np.abs(surface.at(found.theta).gradient).max()


def test_fit_ends_where_the_slope_is_flat(modules, model):
    source = Source()
    found = modules.fit.fit(model, THETA, source)
    assert slope(modules, model, found, source.graph) < 1e-3
    assert (found.swaps, len(source.ends)) == ([], 1)
    assert found.epochs == len(source.told) == found.count("waiting") - 1
    assert not source.closes[0]
    assert source.closes[-1]


def test_fit_ends_at_the_same_place_when_every_iteration_brings_a_new_graph(modules, model):
    calm = modules.fit.fit(model, THETA, Source())
    source = Source(at_step=lambda count: graph(f"{count}") if count < 20 else None)
    found = modules.fit.fit(model, THETA, source)
    assert len(found.swaps) > 5
    assert found.log_likelihood == pytest.approx(calm.log_likelihood, rel=1e-5)
    assert found.epochs < 3 * calm.epochs  # what was learned of the curvature is not lost


def test_fit_recomputes_after_a_swap(modules, model, monkeypatch):
    seen = []
    original = modules.fit.minus_log_likelihood

    def spy(theta, points, values, neighbors, *rest):
        seen.append((theta, neighbors))
        return original(theta, points, values, neighbors, *rest)

    monkeypatch.setattr(modules.fit, "minus_log_likelihood", spy)
    wider = graph("wider", k=12)
    found = modules.fit.fit(model, THETA, Source(at_step=lambda count: wider if count == 3 else None))
    first = next(i for i, (_, neighbors) in enumerate(seen) if neighbors is wider.neighbors)
    np.testing.assert_allclose(seen[first][0], seen[first - 1][0])
    assert all(neighbors is wider.neighbors for _, neighbors in seen[first:])
    assert [swap.built_s for swap in found.swaps] == [0.75]


def test_fit_that_has_converged_goes_on_under_a_newer_graph(modules, model):
    wider = graph("wider", k=20)
    source = Source(at_end=lambda count: wider if count == 1 else None)
    found = modules.fit.fit(model, THETA, source)
    assert len(found.swaps) == 1
    assert len(source.ends) == 2
    assert slope(modules, model, found, wider) < 1e-3


def test_fit_ends_though_there_is_always_a_newer_graph(modules, model):
    source = Source(at_end=lambda count: graph(f"end {count}"))
    assert len(modules.fit.fit(model, THETA, source).swaps) == modules.fit.ROUNDS


def test_fit_tells_lengthscales_only_when_much_was_gained(modules, model):
    source = Source()
    found = modules.fit.fit(model, THETA, source)
    distinct = np.unique(source.told, axis=0)
    assert 1 < len(distinct) < len(source.told)
    np.testing.assert_allclose(source.told[-1], np.exp(found.theta[1:-1]), rtol=0.2)


def test_curvature_is_that_of_the_last_pairs(modules):
    hessian = np.array([[4.0, 1.0], [1.0, 0.5]])
    steps = np.array([[1.0, 0.0], [0.0, 1.0]] * 5)
    factor = modules.fit._curvature(steps, steps @ hessian)
    np.testing.assert_allclose(factor @ factor.T, np.linalg.inv(hessian), rtol=0.05)
    np.testing.assert_array_equal(modules.fit._curvature(np.empty((0, 2)), np.empty((0, 2))), np.eye(2))


def test_builds_behind_places_builds_before_their_download(modules):
    Swap = modules.fit.Swap
    found = modules.fit.Fit(THETA, swaps=[Swap(5.0, 3, 2.0)], began=100.0)
    events = [
        {"event": "neighbor_refresh.complete", "time_s": 99.0, "version": 1, "download_s": 0.1},
        {"event": "neighbor_refresh.schedule", "time_s": 101.0, "version": 3},
        {"event": "neighbor_refresh.complete", "time_s": 104.0, "version": 3, "download_s": 0.5},
    ]
    assert modules.three_ways.builds_behind(found, SimpleNamespace(events=events)) == [(1.5, 3.5)]


def test_draw_timeline_writes_a_picture(modules, model, tmp_path):
    found = modules.fit.fit(model, THETA, Source(at_step=lambda count: graph(f"{count}") if count < 3 else None))
    fits = dict.fromkeys(modules.timeline.LANES, found)
    modules.timeline.draw_timeline(tmp_path / "timeline.png", "Three ways", fits, [(-0.1, 0.2)])
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_altitude_model_is_on_the_sphere_and_standardised(modules):
    folder = Path(modules.fit.__file__).parent
    places, altitude = np.load(folder / "places.npy"), np.load(folder / "altitude.npy")
    order = np.arange(len(places))[::-1]
    model = modules.three_ways.altitude_model(places, altitude, order, 1000)
    np.testing.assert_allclose(np.linalg.norm(model.points, axis=1), 1.0)
    assert (model.values.mean(), model.values.std()) == (pytest.approx(0.0, abs=1e-12), pytest.approx(1.0))
    np.testing.assert_allclose(model.points[0, 2], np.sin(np.radians(places[-1, 1])))
