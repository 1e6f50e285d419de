import contextlib
import json
import math
import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcct_core.errors import InvalidSpec
from pcct_core.spec import (
    MAX_SEED,
    ORDERS,
    RBF,
    Accuracy,
    Cosine,
    Euclidean,
    GraphSpec,
    Haversine,
    Inducing,
    Matern32,
    Matern52,
    Residual,
    read_k,
    read_max_pairs,
    read_metric,
)

POSITIVE = st.floats(1e-300, 1e300)
METRICS = st.one_of(
    st.just(Haversine()),
    st.just(Cosine()),
    st.none().map(Euclidean),
    POSITIVE.map(Euclidean),
    st.lists(POSITIVE, min_size=1, max_size=4).map(Euclidean),
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
GRAPH_SPECS = st.one_of(
    st.builds(
        GraphSpec,
        kind=st.sampled_from(("knn", "vecchia")),
        k=st.integers(1, 2**31 - 1),
        metric=METRICS,
        order=st.sampled_from(ORDERS),
        seed=st.integers(0, MAX_SEED),
    ),
    st.builds(
        GraphSpec,
        kind=st.just("radius"),
        metric=METRICS,
        radius=st.floats(0, allow_infinity=False) | st.integers(0, 10**9),
    ),
)


def test_graph_spec_defaults():
    assert GraphSpec() == GraphSpec("knn", 30, Euclidean(), "maximin", 0, "exact") == GraphSpec.from_json({})


@given(GRAPH_SPECS)
def test_from_json_reads_what_to_json_writes(spec):
    again = GraphSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again.canonical() == spec.canonical()
    assert again.to_json() == spec.to_json()
    assert again.metric == spec.metric


@given(GRAPH_SPECS, GRAPH_SPECS)
def test_canonical_differs_where_the_normal_form_does(one, other):
    assert (one.canonical() == other.canonical()) == (one.to_json() == other.to_json())


@given(GRAPH_SPECS)
def test_canonical_is_sorted_compact_json(spec):
    text = spec.canonical().decode("ascii")
    assert json.loads(text) == spec.to_json()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_canonical_bytes_are_fixed():
    # These bytes name graphs in the cache: a change would make every stored graph unfindable.
    assert GraphSpec().canonical() == b'{"accuracy":"exact","k":30,"kind":"knn","metric":{"type":"euclidean"}}'
    spec = GraphSpec("vecchia", 5, Euclidean((0.5, 2)), "random", 7)
    assert spec.canonical() == (
        b'{"accuracy":"exact","k":5,"kind":"vecchia","metric":{"lengthscale":[0.5,2.0],"type":"euclidean"},'
        b'"order":"random","seed":7}'
    )
    assert GraphSpec("radius", radius=2).canonical() == (
        b'{"accuracy":"exact","kind":"radius","metric":{"type":"euclidean"},"radius":2.0}'
    )


@pytest.mark.parametrize(
    "group",
    [
        [{}, {"kind": "knn"}, {"order": "random", "seed": 3}, {"metric": "euclidean"}, {"accuracy": "exact", "k": 30}],
        [{"metric": {"type": "euclidean", "lengthscale": None}}, {"metric": {"type": "euclidean"}}],
        [{"kind": "vecchia"}, {"kind": "vecchia", "seed": 9}, {"kind": "vecchia", "order": "maximin"}],
        [{"kind": "vecchia", "order": "random"}, {"kind": "vecchia", "order": "random", "seed": 0}],
        [{"metric": {"type": "euclidean", "lengthscale": value}} for value in (2, 2.0)],
        [{"metric": {"type": "euclidean", "lengthscale": value}} for value in ([1, 2], (1.0, 2.0))],
        [{"metric": "cosine"}, {"metric": {"type": "cosine"}}],
        [{"kind": "radius", "radius": value} for value in (0, 0.0, -0.0)],
        [{"kind": "radius", "radius": 3, **other} for other in ({}, {"order": "random", "seed": 4})],
    ],
)
def test_canonical_is_one_for_specifications_that_ask_for_the_same(group):
    assert len({GraphSpec.from_json(each).canonical() for each in group}) == 1


def test_canonical_differs_for_specifications_that_ask_for_different_graphs():
    vecchia = {"kind": "vecchia", "order": "random"}
    different = [
        {},
        {"k": 29},
        {"metric": "cosine"},
        {"metric": "haversine"},
        {"metric": {"type": "euclidean", "lengthscale": 2}},
        {"metric": {"type": "euclidean", "lengthscale": [1, 2]}},
        {"metric": {"type": "euclidean", "lengthscale": [2, 1]}},
        {"kind": "vecchia"},
        vecchia,
        {**vecchia, "seed": 1},
        {"kind": "radius", "radius": 1},
        {"kind": "radius", "radius": 2},
        {"kind": "radius", "radius": 1, "metric": "cosine"},
    ]
    assert len({GraphSpec.from_json(each).canonical() for each in different}) == len(different)


REFUSALS = [
    ([], "spec"),
    (None, "spec"),
    ("knn", "spec"),
    ({"neighbors": 3}, "neighbors"),
    ({3: 3}, "3"),
    ({"kind": "nn"}, "kind"),
    ({"kind": None}, "kind"),
    ({"kind": []}, "kind"),
    *(({"k": k}, "k") for k in (0, -1, 1.0, "3", True, None, 2**31, math.nan)),
    *(({"order": order}, "order") for order in ("max", None, 1)),
    *(({"seed": seed}, "seed") for seed in (-1, 2**63, 0.0, "0", False, None)),
    *(({"accuracy": accuracy}, "accuracy") for accuracy in ("approximate", 0.9, None)),
    *(({"metric": metric}, "metric") for metric in (None, 3, [], {}, {"lengthscale": 1})),
    *(({"metric": metric}, "metric.type") for metric in ("manhattan", {"type": "l1"}, {"type": None}, {"type": []})),
    ({"kind": "radius"}, "radius"),
    *(
        ({"kind": "radius", "radius": radius}, "radius")
        for radius in (-1, -1e-300, math.inf, -math.inf, math.nan, "1", True, None, [1], {}, 10**400)
    ),
    *(({"kind": "radius", "radius": 1, "k": k}, "k") for k in (30, 0, None)),
    *(({"kind": kind, "radius": 1}, "radius") for kind in ("knn", "vecchia")),
    ({"radius": 1}, "radius"),
    ({"kind": "radius", "radius": 1, "metric": {"type": "residual", "kernel": "rbf"}}, "metric.type"),
    ({"kind": "radius", "radius": 1, "accuracy": 0.9}, "accuracy"),
    ({"kind": "radius", "radius": 1, "gate": "off"}, "gate"),
    ({"metric": {"type": "haversine", "radius": 1}}, "metric.radius"),
    ({"metric": {"type": "residual", "kernel": "rbf", "inducing": [[0.0], [1.0]]}}, "metric.inducing"),
    ({"kind": "vecchia", "order": [1, 0]}, "order"),
    ({"metric": {"type": "cosine", "lengthscale": 1}}, "metric.lengthscale"),
    ({"metric": {"type": "euclidean", "scale": 1}}, "metric.scale"),
    *(
        ({"metric": {"type": "euclidean", "lengthscale": value}}, "metric.lengthscale")
        for value in (0, -1, math.inf, math.nan, "1", True, {}, [], [1, 0], [1, "2"], [[1]], [True], [None], 10**400)
    ),
]


@pytest.mark.parametrize(("data", "field"), REFUSALS, ids=[str(data)[:60] for data, _ in REFUSALS])
def test_from_json_refuses_and_names_the_field(data, field):
    with pytest.raises(InvalidSpec) as caught:
        GraphSpec.from_json(data)
    assert caught.value.field == field
    assert len(str(caught.value)) > 10


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_from_json_never_fails_otherwise(data):
    for shape in (data, {"metric": data}, {"metric": {"type": data}}, {"kind": data, "k": data}):
        with contextlib.suppress(InvalidSpec):
            GraphSpec.from_json(shape)


def test_euclidean_takes_numbers_of_numpy():
    assert Euclidean(np.float32(2)) == Euclidean(2.0) == Euclidean(np.array(2))
    assert Euclidean(np.array([1, 2])) == Euclidean([1, 2]) == Euclidean((1.0, 2.0))
    for refused in (np.array([[1.0]]), np.array([0.0]), np.array(["1"]), np.array([])):
        with pytest.raises(InvalidSpec):
            Euclidean(refused)


def test_graph_spec_takes_whole_numbers_of_numpy():
    spec = GraphSpec("vecchia", np.int64(5), order="random", seed=np.uint8(3))
    assert spec == GraphSpec("vecchia", 5, order="random", seed=3)
    assert spec.canonical() == GraphSpec("vecchia", 5, order="random", seed=3).canonical()
    for refused in (np.float64(5), np.bool_(True), np.array([5])):
        with pytest.raises(InvalidSpec):
            GraphSpec(k=refused)


def test_graph_spec_takes_a_radius_of_numpy_and_no_k():
    assert GraphSpec("radius", radius=np.float32(0.5)) == GraphSpec("radius", radius=0.5)
    assert GraphSpec("radius", radius=np.int64(2)).radius == 2.0
    for fields in ({"radius": np.bool_(True)}, {"radius": np.array([1.0])}, {"radius": 1.0, "k": 5}):
        with pytest.raises(InvalidSpec):
            GraphSpec("radius", **fields)


@pytest.mark.parametrize(
    ("value", "metric"),
    [
        ("haversine", Haversine()),
        ({"type": "haversine"}, Haversine()),
        ({"type": "euclidean", "lengthscale": np.array([1, 2])}, Euclidean((1.0, 2.0))),
        (Cosine, Cosine()),
        (Cosine(), Cosine()),
        (Euclidean, Euclidean()),
        ({"type": "residual", "kernel": "rbf", "lengthscale": 2}, Residual(RBF(2.0))),
        ({"type": "residual", "kernel": {"type": "rbf", "lengthscale": 2}}, Residual(RBF(2.0))),
        ({"type": "residual", "kernel": RBF(2.0), "inducing": np.int32(9)}, Residual(RBF(2.0), 9)),
        (Residual("rbf", {"count": 9, "method": "random"}), Residual(RBF(), Inducing(9, "random"))),
        (Residual({"type": "matern32", "variance": np.float32(2)}, 9), Residual(Matern32(1.0, 2.0), Inducing(9))),
        (Residual(Matern32, np.array(9)), Residual(Matern32(), Inducing(9))),
    ],
)
def test_read_metric_takes_objects_names_classes_and_json(value, metric):
    assert read_metric(value) == metric
    assert GraphSpec(metric=value) == GraphSpec(metric=metric) == GraphSpec.from_json({"metric": value})


@pytest.mark.parametrize(
    ("value", "said", "field"),
    [
        *(
            (name, "use 'euclidean'", "metric.type")
            for name in ("l2", "L2", "minkowski", "Euclidean", "euclidian", "p2")
        ),
        ({"type": "minkowski", "p": 2}, "use 'euclidean'", "metric.type"),
        ("sqeuclidean", "use 'euclidean', which has the same neighbors", "metric.type"),
        ("seuclidean", "standard deviations as lengthscale", "metric.type"),
        ("mahalanobis", r"X @ np.linalg.cholesky\(VI\)", "metric.type"),
        *((name, "use 'haversine'", "metric.type") for name in ("great-circle", "geodesic", "harvesine", "Haversine")),
        *(
            (name, "use 'cosine'", "metric.type")
            for name in ("cos", "angular", "cosine_similarity", "correlation", "ip")
        ),
        *(
            (name, "use one of euclidean, haversine, cosine", "metric.type")
            for name in ("l1", "cityblock", "chebyshev", "")
        ),
        ("matern52", "matern52 is a kernel and no metric; use 'residual'", "metric.type"),
        ("gaussian", "rbf is a kernel and no metric", "metric.type"),
        (Matern52, "Matern52 is a kernel and no metric", "metric"),
        (Matern52(0.3), "Matern52 is a kernel and no metric", "metric"),
        (Residual, "needs a kernel", "metric"),
        (None, "metric is None; use one of euclidean", "metric"),
        (lambda x, y: 0.0, "is the function <lambda>, and functions are not taken", "metric"),
        (np.linalg.norm, "is the function norm", "metric"),
        (np.ones(200), "metric is array.*…; use one of", "metric"),
        ({"type": "residual"}, "kernel is None; use one of rbf", "metric.kernel"),
        ({"type": "residual", "kernel": RBF(), "lengthscale": 2}, "belongs to the kernel", "metric.lengthscale"),
        *(
            ({"type": "residual", "kernel": name}, said, "metric.kernel")
            for name, said in (
                *(("gaussian", "use 'rbf'"), ("SE", "use 'rbf'"), ("exponential", "use 'matern12'")),
                *(("matern", "by its smoothness"), ("Matern-5/2", "use 'matern52'"), ("matern_1.5", "use 'matern32'")),
                *(({"type": "periodic"}, "use one of rbf"), (3, "use one of rbf"), (Cosine(), "use one of rbf")),
            )
        ),
    ],
)
def test_read_metric_says_which_is_meant(value, said, field):
    for read in (
        read_metric,
        lambda value: GraphSpec(metric=value),
        lambda value: GraphSpec.from_json({"metric": value}),
    ):
        with pytest.raises(InvalidSpec, match=said) as caught:
            read(value)
        assert caught.value.field == field


SCALARS_OF_NUMPY = [np.float32(0.5), np.float64(0.5), np.float16(0.5), np.array(0.5), np.array(0.5, np.float32)]


@pytest.mark.parametrize("number", SCALARS_OF_NUMPY, ids=repr)
def test_numbers_of_numpy_are_numbers(number):
    residual = Residual(Matern52(number, number), jitter=number, floor=number)
    assert residual == Residual(Matern52(0.5, 0.5), jitter=0.5, floor=0.5)
    assert json.dumps(residual.to_json())
    assert Accuracy(number, number) == Accuracy(0.5, 0.5)
    assert GraphSpec("radius", radius=number) == GraphSpec("radius", radius=0.5)
    for accuracy in (number, {"recall": number}):
        assert GraphSpec(metric=residual, accuracy=accuracy).accuracy == Accuracy(0.5)
    wanted = GraphSpec(metric=residual, accuracy=0.5)
    assert GraphSpec.from_json({"metric": residual.to_json(), "accuracy": number}).canonical() == wanted.canonical()


@pytest.mark.parametrize("number", [np.int64(5), np.uint8(5), np.array(5), np.array(5, np.int16)], ids=repr)
def test_whole_numbers_of_numpy_are_whole_numbers(number):
    spec = GraphSpec("vecchia", number, order="random", seed=number)
    assert spec.canonical() == GraphSpec("vecchia", 5, order="random", seed=5).canonical()
    assert Residual(RBF(), number).inducing == Inducing(number) == Inducing(5)
    assert Inducing(5, "random", number) == Inducing(5, "random", 5)
    assert Residual(RBF(number, number), jitter=number, floor=number) == Residual(RBF(5.0, 5.0), jitter=5.0, floor=5.0)
    assert GraphSpec("radius", radius=number).radius == 5.0


NO_NUMBERS = [
    True,
    np.True_,
    np.array(True),
    "5",
    [5],
    np.array([5.0]),
    np.array("5"),
    np.ma.masked,
    1j,
    None,
    object(),
    RBF,
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:20])
def test_what_is_no_number_is_refused_with_its_field(value):
    for make, field in (
        (lambda: GraphSpec(k=value), "k"),
        (lambda: GraphSpec(seed=value), "seed"),
        (lambda: GraphSpec("radius", radius=value), "radius"),
        (lambda: Inducing(value), "metric.inducing.count"),
        (lambda: Residual(RBF(), jitter=value), "metric.jitter"),
        (lambda: Residual(RBF(), floor=value), "metric.floor"),
        (lambda: RBF(variance=value), "metric.variance"),
        (lambda: Accuracy(value), "accuracy.recall"),
        (lambda: Accuracy(confidence=value), "accuracy.confidence"),
    ):
        with pytest.raises(InvalidSpec) as caught:
            make()
        assert caught.value.field == field


@pytest.mark.parametrize(
    "value", [np.array(["maximin"]), np.array("near"), [], None, 3, {"by": "nearest"}, {"by": []}, len]
)
def test_choices_are_refused_whatever_they_are(value):
    for fields, field in (({"kind": value}, "kind"), ({"gate": value}, "gate"), ({"order": value}, "order")):
        with pytest.raises(InvalidSpec) as caught:
            GraphSpec(**fields)
        assert caught.value.field.partition(".")[0] == field


def test_an_order_may_be_an_object():
    assert (
        GraphSpec("vecchia", order={"by": "hilbert"}).canonical() == GraphSpec("vecchia", order="hilbert").canonical()
    )
    given = GraphSpec.from_json({"kind": "vecchia", "order": {"by": "given", "dataset": "a" * 64}})
    assert given.to_json()["order"] == {"by": "given", "dataset": "a" * 64}
    assert given.references() == ("a" * 64,)
    assert GraphSpec.from_json(given.to_json()) == given
    for order in ({"by": "given", "dataset": "a"}, {"by": "hilbert", "dataset": "a" * 64}, {"dataset": "a" * 64}):
        with pytest.raises(InvalidSpec) as caught:
            GraphSpec("vecchia", order=order)
        assert caught.value.field.startswith("order")


def test_names_and_orders_may_be_of_numpy():
    for name in (np.str_("hilbert"), np.array("hilbert")):
        assert GraphSpec("vecchia", order=name) == GraphSpec("vecchia", order="hilbert")
    assert GraphSpec(metric=np.array("cosine")) == GraphSpec(metric="cosine")
    assert GraphSpec("vecchia", order=range(3, -1, -1)) == GraphSpec("vecchia", order=np.arange(3, -1, -1))


def test_specifications_are_values():
    assert hash(GraphSpec(metric=Euclidean([1, 2]))) == hash(GraphSpec(metric=Euclidean((1.0, 2.0))))
    with pytest.raises(FrozenInstanceError):
        GraphSpec().k = 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GraphSpec(k=10**20), "k is 100000000000000000000; use a whole number of at most 2147483647"),
        (lambda: GraphSpec(k=10**9000), "k is a whole number of 29898 bits; use a whole number of at most 2147483647"),
        (lambda: GraphSpec(k=-3), "k is -3; use a whole number of at least 1"),
        (lambda: GraphSpec(k=3.0), "k is 3.0; use the whole number 3, which is no float"),
        (lambda: GraphSpec(k=np.float32(3)), "k is 3.0; use the whole number 3, which is no float"),
        (lambda: GraphSpec(k=1e20), "k is 1e+20; use a whole number of at most 2147483647"),
        (lambda: GraphSpec(seed=np.float64(7)), "seed is 7.0; use the whole number 7, which is no float"),
        (lambda: GraphSpec(seed=2**63), "seed is 9223372036854775808; use a whole number from 0 to 2^63 - 1"),
        (lambda: Residual("rbf", 5.0), "metric.inducing.count is 5.0; use the whole number 5, which is no float"),
        (lambda: Residual("rbf", np.float64(5.5)), "metric.inducing.count is 5.5; use a whole number of at least 1"),
        (lambda: Inducing(3.0), "metric.inducing.count is 3.0; use the whole number 3, which is no float"),
        (lambda: read_k(4.0, 9), "k is 4.0; use the whole number 4, which is no float"),
        (lambda: read_k(40.0, 9), "k is 40.0; use a whole number with 1 ≤ k ≤ 9"),
        (lambda: read_max_pairs(1e6), "max_pairs is 1000000.0; use the whole number 1000000, which is no float"),
    ],
)
def test_what_is_no_whole_number_is_refused_with_one_that_is(make, said):
    with pytest.raises(InvalidSpec, match=f"^{re.escape(said)}$"):
        make()


@pytest.mark.parametrize("scalar", [np.array, np.str_])
def test_names_come_as_arrays_of_no_dimensions_too(scalar):
    residual = Residual(scalar("rbf"), {"count": np.array(9), "method": scalar("random")})
    assert residual == Residual("rbf", {"count": 9, "method": "random"})
    spec = GraphSpec(scalar("vecchia"), 3, residual, scalar("hilbert"), accuracy=scalar("exact"), gate=scalar("off"))
    plain = GraphSpec("vecchia", 3, residual, "hilbert", accuracy="exact", gate="off")
    assert spec == plain
    assert spec.canonical() == plain.canonical()
    assert GraphSpec(
        metric=residual, accuracy=scalar(0.9) if scalar is np.array else np.float64(0.9)
    ).accuracy == Accuracy(0.9)
    assert (
        GraphSpec(metric={"type": scalar("cosine")}) == GraphSpec(metric=scalar("cosine")) == GraphSpec(metric="cosine")
    )
    assert GraphSpec.from_mapping({"kind": scalar("vecchia"), "order": {"by": scalar("random")}}).order == "random"
    assert GraphSpec(accuracy=scalar("exact")) == GraphSpec()
    json = {"type": "residual", "kernel": scalar("rbf"), "lengthscale": np.array(2)}
    assert read_metric(json) == Residual(RBF(2.0))
