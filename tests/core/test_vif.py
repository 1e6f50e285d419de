import dataclasses
import functools

import numpy as np
import pytest

import pcct_core as pc
from pcct_core import vif
from pcct_core.draws import draw_words, index_below
from pcct_core.parallel import Crew
from pcct_core.spec import KERNELS, Stored
from pcct_core.telemetry import Telemetry
from tests import naive
from tests.core import clouds
from tests.core.judge import same_graphs

N, M, K = 900, 60, 12


def points(d=3, n=N, seed=0):
    return np.random.default_rng(seed).random((n, d))


def expected(graph, X, metric, kernel, **parameters):
    """Neighbors and distances by brute force, in the rows of the graph."""
    rows = X if graph.order is None else X[graph.order]
    if metric.factors is None:
        V, p = naive.residual_factors(rows, X[:M], kernel, jitter=metric.jitter, **parameters)
    else:
        V, p = (stored.array if graph.order is None else stored.array[graph.order] for stored in metric.factors)
    distances = naive.residual_distances(rows, V, p, kernel, **parameters)
    return distances, *naive.nearest_in(distances, graph.spec.k, graph.spec.kind == "vecchia")


def check(graph, distances, neighbors, nearest, tolerance):
    """The same distances, and the same neighbors but for those that the tolerance cannot tell apart."""
    np.testing.assert_allclose(graph.distances, nearest, atol=tolerance, rtol=0)
    own = np.where(
        graph.neighbors >= 0, np.take_along_axis(distances, graph.neighbors.astype(np.int64), axis=1), np.inf
    )
    np.testing.assert_allclose(own, nearest, atol=tolerance, rtol=0)
    np.testing.assert_array_equal(graph.neighbors < 0, neighbors < 0)


@pytest.mark.parametrize("kernel", list(KERNELS))
@pytest.mark.parametrize("kind", ["knn", "vecchia"])
class TestExact:
    def test_graph_equals_brute_force(self, kernel, kind):
        X, scale = points(), (0.3, 0.5, 0.4)
        metric = pc.Residual(KERNELS[kernel](scale, variance=2.0), inducing=X[:M], jitter=1e-3)
        spec = pc.GraphSpec(kind, K, metric, "random", accuracy="exact")
        graph = pc.build_graph(X, spec)
        check(graph, *expected(graph, X, metric, kernel, lengthscale=scale, variance=2.0), tolerance=1e-7)
        assert graph.certificate.exact
        assert graph.certificate.method == "dense"
        assert graph.distances.dtype == np.float64

    def test_given_factors_give_the_same_neighbors_as_brute_force(self, kernel, kind):
        X = points(2)
        V, p = naive.residual_factors(X, X[:M], kernel, lengthscale=0.2, jitter=1e-3)
        metric = pc.Residual.from_factors(V, p, KERNELS[kernel](0.2))
        graph = pc.build_graph(X, pc.GraphSpec(kind, K, metric, "hilbert", accuracy="exact"))
        distances, neighbors, nearest = expected(graph, X, metric, kernel, lengthscale=0.2)
        check(graph, distances, neighbors, nearest, tolerance=1e-8)
        np.testing.assert_array_equal(graph.neighbors, neighbors)


def true_residuals(X, Z, scale, jitter):
    """Return rho, (n, n), and p, (n,), of a Matérn-3/2 kernel, in wider numbers where the machine has them."""
    X, Z = X.astype(np.longdouble), Z.astype(np.longdouble)

    def covariance(A, B):
        a = np.sqrt(3 * np.square(A[:, None] - B).sum(axis=2)) / scale
        return (1 + a) * np.exp(-a)

    K, lower = covariance(Z, Z) + jitter * np.eye(len(Z)), np.zeros((len(Z), len(Z)), np.longdouble)
    V = covariance(Z, X)
    for i in range(len(Z)):
        lower[i, i] = np.sqrt(K[i, i] - np.square(lower[i, :i]).sum())
        lower[i + 1 :, i] = (K[i + 1 :, i] - lower[i + 1 :, :i] @ lower[i, :i]) / lower[i, i]
        V[i] = (V[i] - lower[i, :i] @ V[:i]) / lower[i, i]
    p = 1 - np.square(V).sum(axis=0)
    return (covariance(X, X) - V.T @ V) / np.sqrt(np.outer(p, p)), p.astype(float)


@pytest.mark.parametrize("seed", range(5))
def test_both_residual_distances_are_as_near_the_truth_as_their_residual_variances_allow(seed):
    """A line with 15 inducing points: residual variances sink to the jitter, 1e-6, and neighbors are 1e-6 apart."""
    generator = np.random.default_rng(seed)
    X, Z = generator.random((1000, 1)), generator.random((15, 1))
    graph = pc.vecchia_graph(X, K, order="given", metric=pc.Residual(pc.Matern32(0.5), inducing=Z), accuracy="exact")
    rho, p = true_residuals(X, Z, 0.5, 1e-6)
    V, naive_p = naive.residual_factors(X, Z, "matern32", 0.5)
    rows = np.arange(K, len(X))
    columns = graph.neighbors[rows].astype(np.int64)
    squares = (1 - np.abs(rho[rows[:, None], columns])).astype(float)
    brute = np.square(naive.residual_distances(X, V, naive_p, "matern32", 0.5))[rows[:, None], columns]
    rounding = naive.residual_rounding(X, Z, p, "matern32", 0.5)
    allowed = (rounding[rows, None] + rounding[columns] + naive.residual_steps(p)[rows[:, None], columns]) / 2
    assert p.min() < 3e-6
    assert (np.abs(np.square(graph.distances[rows]) - squares) <= allowed).all()
    assert (np.abs(brute - squares) <= allowed).all()


def assert_ordered(graph):
    """Rows ascend by (distance, index), entries that are there first."""
    rows = np.where(graph.neighbors < 0, 2**31 - 1, graph.neighbors).astype(np.int64)
    earlier, later = graph.distances[:, :-1], graph.distances[:, 1:]
    assert ((earlier < later) | ((earlier == later) & (rows[:, :-1] <= rows[:, 1:]))).all()


class TestTies:
    @pytest.mark.parametrize("kernel", list(KERNELS))
    @pytest.mark.parametrize("kind", ["knn", "vecchia"])
    @pytest.mark.parametrize("options", [{}, {"jitter": 0.0}, {"jitter": 1e-12, "floor": 1e-14}, {"floor": 0.3}])
    def test_equal_points_are_at_distance_0_and_go_by_index(self, kernel, kind, options):
        rng = np.random.default_rng(5)
        X = rng.permutation(np.repeat(rng.random((130, 2)), 3, axis=0))
        Z = np.unique(X, axis=0)[:20]
        metric = pc.Residual(KERNELS[kernel](0.3), inducing=Z, **options)
        graph = pc.build_graph(X, pc.GraphSpec(kind, 6, metric, "given", accuracy="exact"))
        equal = (X[:, None] == X).all(axis=2) & (
            np.tri(len(X), k=-1) > 0 if kind == "vecchia" else ~np.eye(len(X), dtype=bool)
        )
        assert_ordered(graph)
        for row in range(len(X)):
            assert set(np.flatnonzero(equal[row])) <= set(graph.neighbors[row][graph.distances[row] == 0])

    def test_equal_points_are_at_distance_0_with_given_factors(self):
        X = np.repeat(points(n=100), 2, axis=0)
        V, p = naive.residual_factors(X, X[:20:2], "rbf", lengthscale=0.3)
        graph = pc.knn_graph(X, 3, pc.Residual.from_factors(V * (1 + 1e-9), p, pc.RBF(0.3)), accuracy="exact")
        np.testing.assert_array_equal(graph.neighbors[:, 0], np.arange(200) ^ 1)
        assert not graph.distances[:, 0].any()

    @pytest.mark.parametrize(("kernel", "scale"), [("matern32", 0.3), ("rbf", 0.4), ("matern52", 0.25)])
    def test_what_ties_on_a_lattice_goes_by_index(self, kernel, scale):
        """Inducing points stand on the lattice: by symmetry most residual distances of a row come several times."""
        X = clouds.lattice(9, 3) / 9
        Z = X[naive.maximin(X, 40)[0]]
        graph = pc.knn_graph(X, 26, pc.Residual(KERNELS[kernel](scale), inducing=Z), accuracy="exact")
        V, p = naive.residual_factors(X, Z, kernel, scale)
        distances = naive.residual_distances(X, V, p, kernel, scale)
        neighbors, nearest = naive.nearest_in(distances, 26, predecessors=False)
        assert_ordered(graph)
        own = np.square(np.take_along_axis(distances, graph.neighbors.astype(np.int64), axis=1))
        assert (own <= np.square(nearest[:, -1:]) + graph.certificate.tolerance).all()
        np.testing.assert_allclose(np.square(graph.distances), np.square(nearest), atol=graph.certificate.tolerance)
        assert (graph.neighbors == neighbors).mean() > 0.99  # what is at the edge of a step may fall to either side

    def test_the_tolerance_is_above_the_step_and_twice_the_error(self):
        X, Z = np.random.default_rng(3).random((800, 1)), np.random.default_rng(4).random((12, 1))
        metric = pc.Residual(pc.Matern32(0.5), inducing=Z)
        tolerance = pc.knn_graph(X, 5, metric, accuracy="exact").certificate.tolerance
        p = naive.residual_factors(X, Z, "matern32", 0.5)[1]
        rounding = naive.residual_rounding(X, Z, p, "matern32", 0.5)
        assert (
            naive.residual_steps(p).max() + rounding.max()
            < tolerance
            < naive.residual_steps(p).max() + 3 * rounding.max()
        )


@functools.cache
def graph_of_variance(variance, accuracy):
    n = 600 if accuracy == "exact" else 2500  # fewer would not be gated
    return pc.knn_graph(points(n), 5, pc.Residual(pc.Matern52(0.3, variance), inducing=16), accuracy=accuracy)


class TestExtremes:
    @pytest.mark.parametrize("variance", [1e-165, 1e150, 1e-320])
    @pytest.mark.parametrize("accuracy", ["exact", 0.9])
    def test_the_variance_changes_nothing(self, variance, accuracy):
        one, other = (graph_of_variance(value, accuracy) for value in (1.0, variance))
        if accuracy == "exact":
            same_graphs(one, other)
        assert np.isfinite(other.distances).all()

    @pytest.mark.parametrize("kernel", list(KERNELS))
    @pytest.mark.parametrize("scale", [1e-153, 1e-100, 1e-3, 1e3, 1e100, 1e150])
    def test_lengthscales_from_end_to_end(self, kernel, scale):
        X = points(n=400)
        metric = pc.Residual(KERNELS[kernel](scale), inducing=X[:30], jitter=1e-2)
        graph = pc.knn_graph(X, 4, metric, accuracy="exact")
        with np.errstate(over="ignore", invalid="ignore"):
            V, p = naive.residual_factors(X, X[:30], kernel, scale, jitter=1e-2)
            distances = naive.residual_distances(X, V, p, kernel, scale)
        nearest = naive.nearest_in(distances, 4, predecessors=False)[1]
        np.testing.assert_allclose(
            np.square(graph.distances), np.square(nearest), atol=graph.certificate.tolerance, rtol=0
        )
        if scale <= 1e-100:
            np.testing.assert_array_equal(graph.distances, 1.0)
            np.testing.assert_array_equal(graph.neighbors[10:], np.tile(np.arange(4), (390, 1)))


class TestFactors:
    def test_fortran_order_is_read_as_what_it_is(self):
        X = points()
        V, p = naive.residual_factors(X, X[:M], "matern52", lengthscale=0.3)
        graphs = [
            pc.knn_graph(X, K, pc.Residual.from_factors(form(V), p, pc.Matern52(0.3)), accuracy="exact")
            for form in (np.ascontiguousarray, np.asfortranarray)
        ]
        same_graphs(*graphs)

    def test_repeated_points_are_degenerate_but_counted(self):
        X = np.repeat(points(n=300), 2, axis=0)
        graph = pc.knn_graph(X, 5, pc.Residual(pc.RBF(1.0), inducing=100, jitter=0.0, floor=1e-4), accuracy="exact")
        assert graph.certificate.degenerate_rows > 0
        assert np.isfinite(graph.distances).all()

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            (lambda V, p: (V[:-1], p), "metric.v"),
            (lambda V, p: (V, p[:-1]), "metric.p"),
            (lambda V, p: (V, np.where(np.arange(N) == 7, 0.0, p)), "metric.p"),
            (lambda V, p: (np.where(np.arange(M) == 3, np.nan, V), p), "metric.v"),
        ],
    )
    def test_factors_that_do_not_fit_are_refused(self, change, field):
        X = points()
        V, p = change(*naive.residual_factors(X, X[:M], "rbf", lengthscale=0.3))
        with pytest.raises(pc.InvalidSpec) as refused:
            pc.knn_graph(X, K, pc.Residual.from_factors(V, p, pc.RBF(0.3)))
        assert refused.value.field == field


class TestInducing:
    def test_repeated_inducing_points_without_jitter_are_a_named_error_with_the_remedy(self):
        X = points()
        with pytest.raises(
            pc.NotPositiveDefinite, match="larger jitter, fewer inducing points, or remove repeated ones"
        ):
            pc.knn_graph(X, K, pc.Residual(pc.Matern32(0.3), inducing=np.vstack([X[:20], X[:20]]), jitter=0.0))

    def test_more_inducing_points_than_points_are_refused(self):
        with pytest.raises(pc.InvalidSpec, match="901 inducing points are more than the 900 points"):
            pc.knn_graph(points(), K, pc.Residual(pc.RBF(0.3), inducing=N + 1))
        with pytest.raises(pc.InvalidSpec, match="more than"):
            pc.knn_graph(points(n=30), K, pc.Residual(pc.RBF(0.3), inducing=points(n=31)))

    def test_no_inducing_points_are_refused(self):
        with pytest.raises(pc.InvalidSpec, match="at least 1"):
            pc.Residual(pc.RBF(0.3), inducing=0)
        with pytest.raises(pc.InvalidSpec, match="m ≥ 1"):
            pc.knn_graph(points(), K, pc.Residual(pc.RBF(0.3), inducing=np.empty((0, 3))))

    def test_random_ones_depend_on_the_seed_alone(self):
        X = points()
        graphs = [
            pc.knn_graph(X, K, pc.Residual(pc.Matern12(0.3), pc.Inducing(M, "random", seed)), accuracy="exact")
            for seed in (1, 1, 2)
        ]
        same_graphs(graphs[0], graphs[1])
        assert graphs[0].distances.tobytes() != graphs[2].distances.tobytes()

    def test_an_array_that_is_not_at_hand_is_asked_for(self):
        with pytest.raises(pc.InvalidSpec, match="not at hand"):
            pc.knn_graph(points(), K, pc.Residual(pc.RBF(0.3), inducing=Stored("0" * 64)))

    @pytest.mark.parametrize("scale", [0.0, -1.0, [0.3, 0.3], float("nan")])
    def test_lengthscales_that_do_not_fit_are_refused(self, scale):
        with pytest.raises(pc.InvalidSpec) as refused:
            pc.knn_graph(points(), K, pc.Residual(pc.RBF(scale)))
        assert refused.value.field == "metric.lengthscale"


@pytest.fixture(scope="module")
def exact_and_gated():
    """A set large enough for a gate, its exact graph, and the gated one."""
    X = points(n=12_000, seed=3)
    metric = pc.Residual(pc.Matern52(0.3), inducing=64)
    exact = pc.vecchia_graph(X, 20, "random", metric, accuracy="exact")
    return X, metric, exact, pc.vecchia_graph(X, 20, "random", metric)


def drawn_indices(key, row, count, allowed):
    """The points that an audit draws for a row: two from each block of words."""
    words = [word for block in range(-(-count // 2)) for word in draw_words(key, row, block)]
    return np.array([index_below(np.uint64(word), allowed) for word in words[:count]], int)


class TestGate:
    def test_recall_is_what_the_certificate_says(self, exact_and_gated):
        _, _, exact, gated = exact_and_gated
        certificate = gated.certificate
        assert certificate.method == "gated"
        assert not certificate.exact
        assert certificate.recall_lower >= 0.999
        missing = sum(
            np.count_nonzero(~np.isin(true[true >= 0], found))
            for true, found in zip(exact.neighbors, gated.neighbors, strict=True)
        )
        assert 1 - missing / np.count_nonzero(exact.neighbors >= 0) >= certificate.recall_lower

    def test_pairs_have_the_same_bits_behind_a_gate_as_in_full(self, exact_and_gated):
        _, _, exact, gated = exact_and_gated
        same = (exact.neighbors == gated.neighbors).all(axis=1)
        assert same.mean() > 0.99
        assert exact.distances[same].tobytes() == gated.distances[same].tobytes()

    def test_gate_prunes_and_counts(self, exact_and_gated):
        certificate = exact_and_gated[3].certificate
        assert 0.5 * 12_000 * 11_999 / 2 < certificate.gate1_candidates < 12_000 * 11_999 / 2
        assert certificate.gate1_kept + certificate.gate1_pruned == certificate.gate1_candidates
        assert certificate.gate1_pruned > 0.8 * certificate.gate1_candidates

    def test_threads_do_not_change_a_byte(self, exact_and_gated):
        X, metric, _, gated = exact_and_gated
        same_graphs(gated, pc.vecchia_graph(X, 20, "random", metric, threads=1))

    def test_a_lookup_is_reused_when_hyperparameters_move(self, exact_and_gated):
        X, _, _, gated = exact_and_gated
        moved = pc.Residual(pc.Matern52(0.33), inducing=64)
        spec = pc.GraphSpec("vecchia", 20, moved, "random", gate="lookup")
        again = pc.build_graph(X, spec, lookup=pc.GateLookup.from_json(gated.lookup.to_json()))
        assert again.certificate.recall_lower >= 0.999
        np.testing.assert_array_equal(again.lookup.multiples, pc.GateLookup.from_json(gated.lookup.to_json()).multiples)

    @pytest.mark.parametrize("scale", [0.33, 0.27])
    def test_a_previous_graph_says_how_far_to_look(self, exact_and_gated, scale):
        X, _, _, gated = exact_and_gated
        spec = pc.GraphSpec("vecchia", 15, pc.Residual(pc.Matern52(scale), inducing=64), "random")
        followed = pc.build_graph(X, spec, previous=gated)
        exact = pc.build_graph(X, dataclasses.replace(spec, accuracy="exact"))
        assert followed.certificate.method == "gated"
        assert followed.certificate.recall_lower >= 0.999
        assert followed.lookup is None
        assert (exact.neighbors == followed.neighbors).mean() > 0.999
        cold = pc.build_graph(X, spec)
        assert followed.certificate.gate1_kept < cold.certificate.gate1_kept

    def test_a_previous_graph_that_does_not_fit_is_refused(self, exact_and_gated):
        X, metric, _, gated = exact_and_gated
        for change, words in (({"k": 21}, "k = 21"), ({"kind": "knn"}, "this one knn"), ({"seed": 1}, "other points")):
            spec = pc.GraphSpec(**({"kind": "vecchia", "k": 20, "metric": metric, "order": "random"} | change))
            with pytest.raises(pc.InvalidInput, match=words):
                pc.build_graph(X, spec, previous=gated)

    def test_a_previous_graph_far_off_is_looked_beyond(self, exact_and_gated):
        X, _, exact, gated = exact_and_gated
        near = pc.vecchia_graph(X, 20, "random")
        graph = pc.build_graph(X, gated.spec, previous=near)
        assert graph.certificate.recall_lower >= 0.999
        assert (exact.neighbors == graph.neighbors).mean() > 0.999

    def test_rows_that_follow_have_the_bits_of_a_full_scan(self, exact_and_gated):
        X, _, exact, gated = exact_and_gated
        graph = pc.build_graph(X, gated.spec, previous=gated)
        same = (exact.neighbors == graph.neighbors).all(axis=1)
        assert same.mean() > 0.99
        assert exact.distances[same].tobytes() == graph.distances[same].tobytes()

    def test_what_a_previous_row_may_not_have_is_not_followed(self, exact_and_gated):
        X, _, exact, gated = exact_and_gated
        wrong = gated.neighbors.copy()
        rows = np.array([500, 5000, 11_999, 7000])
        wrong[500, 3] = 500  # itself
        wrong[5000, 19] = 5001  # behind it
        wrong[11_999, 7] = wrong[11_999, 2]  # twice
        wrong[7000, 0] = -5
        graph = pc.build_graph(X, gated.spec, previous=dataclasses.replace(gated, neighbors=wrong))
        np.testing.assert_array_equal(graph.neighbors[rows], exact.neighbors[rows])
        assert graph.distances[rows].tobytes() == exact.distances[rows].tobytes()

    def test_a_gate_that_follows_too_near_is_widened_until_the_audit_agrees(self, exact_and_gated, monkeypatch):
        X, _, _, gated = exact_and_gated
        monkeypatch.setattr(vif, "_FOLLOWED", 0.7)
        graph = pc.build_graph(X, gated.spec, previous=gated)
        assert graph.certificate.gate1_widenings > 0
        assert graph.certificate.exact or graph.certificate.recall_lower >= 0.999

    @pytest.mark.parametrize("kind", ["vecchia", "knn"])
    def test_an_audit_finds_those_of_its_pairs_that_the_gates_keep_out(self, kind):
        X, metric = points(300), pc.Residual(pc.Matern52(0.3), inducing=M)
        every = pc.build_graph(X, pc.GraphSpec(kind, len(X) - 1, metric, "given", accuracy="exact"))
        gates = np.random.default_rng(0).uniform(0.3, 1.5, len(X))
        gates[:K] = np.inf
        key, rate = np.uint64(99), 0.7
        with Crew(2) as crew:
            spec = pc.GraphSpec(kind, K, metric, "given")
            task = vif._make_task(X / 0.3, np.arange(len(X)), metric, spec, crew, Telemetry())
            task.scan(np.ones(len(X), bool), gates)
            audit = task.audit(gates, rate, key)
        assert not audit.measured[:K].any()
        for row in range(K, len(X)):
            allowed = row if kind == "vecchia" else len(X)
            drawn = drawn_indices(key, row, int(np.ceil(rate * allowed)), allowed)
            beyond = drawn[(vif._squared(X / 0.3, np.full(len(drawn), row), drawn) > gates[row] ** 2) & (drawn != row)]
            assert audit.measured[row] == len(beyond)
            nearest, last = list(every.neighbors[row]), task.found.neighbors[row, -1]
            better = set(nearest[: nearest.index(last)] if last >= 0 else nearest)
            assert audit.missed[row] == sum(index in better for index in beyond)
        assert audit.missed.sum() > 100

    def test_draws_are_named_and_follow_the_secret(self, exact_and_gated):
        X, _, _, gated = exact_and_gated
        assert gated.certificate.draws == "public"
        one, again, other = (pc.build_graph(X, gated.spec, secret=secret) for secret in (b"one", b"one", b"two"))
        same_graphs(one, again)
        assert one.certificate == again.certificate
        assert one.certificate.draws.startswith("secret:")
        assert one.certificate.draws != other.certificate.draws
        assert one.certificate.audited_pairs != other.certificate.audited_pairs
        assert one.lookup.multiples.tobytes() != other.lookup.multiples.tobytes()

    @pytest.mark.parametrize("radius", [np.nan, 0.0])
    def test_no_gate_leaves_a_row_short_of_neighbors(self, exact_and_gated, radius, monkeypatch):
        """Gates that let nothing in, by a number that is none or by 0: their rows are scanned in full."""
        X, metric, exact, gated = exact_and_gated
        rows = np.arange(500, 12_000, 97)
        radii = pc.GateLookup.radii

        def broken(self, scales):
            found = radii(self, scales)
            found[rows] = radius
            return found

        monkeypatch.setattr(pc.GateLookup, "radii", broken)
        spec = pc.GraphSpec("vecchia", 20, metric, "random", gate="lookup")
        graph = pc.build_graph(X, spec, lookup=gated.lookup)
        assert graph.certificate.method == "gated"
        np.testing.assert_array_equal(graph.neighbors[rows], exact.neighbors[rows])
        assert (graph.neighbors[20:] >= 0).all()

    @pytest.mark.parametrize("how", ["lookup", "previous"])
    def test_what_is_audited_cheaper_in_full_is_scanned_in_full(self, how):
        """One neighbor of few points: an audit would draw each pair several times."""
        X, metric = points(1500), pc.Residual(pc.Matern52(0.3), inducing=16)
        lookup = pc.GateLookup(np.empty(0), np.full(1, 4.0), "matern52", 1)
        options = {"lookup": lookup} if how == "lookup" else {"previous": pc.knn_graph(X, 1)}
        graph = pc.build_graph(X, pc.GraphSpec("knn", 1, metric, gate="lookup"), **options)
        assert graph.certificate.exact
        assert graph.certificate.audited_pairs is None

    def test_lookup_without_one_is_refused(self):
        with pytest.raises(pc.InvalidSpec, match="'auto' once"):
            pc.knn_graph(points(), K, pc.Residual(pc.RBF(0.3), inducing=M), gate="lookup")

    def test_a_lookup_that_looks_too_near_is_widened_until_the_audit_agrees(self, exact_and_gated):
        X, metric, _, gated = exact_and_gated
        narrow = pc.GateLookup(gated.lookup.edges, np.full(8, 1.0), "matern52", 20)
        graph = pc.build_graph(X, pc.GraphSpec("vecchia", 20, metric, "random", gate="lookup"), lookup=narrow)
        assert graph.certificate.gate1_widenings > 0
        assert graph.certificate.exact or graph.certificate.recall_lower >= 0.999

    def test_small_sets_are_scanned_in_full(self):
        graph = pc.knn_graph(points(), K, pc.Residual(pc.Matern52(0.3), inducing=M))
        assert graph.certificate.exact
        assert graph.certificate.gate1_pruned == 0

    def test_gate_off_scans_in_full(self, exact_and_gated):
        X, metric, exact, _ = exact_and_gated
        same_graphs(exact, pc.vecchia_graph(X, 20, "random", metric, gate="off"))
