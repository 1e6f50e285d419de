import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pcct_core as pc
from pcct_core.columns import read_groups
from pcct_core.spec import Stored, store_groups
from tests.core import clouds
from tests.core.judge import check_graph, same_bytes, same_graphs
from tests.core.test_columns import uploaded_id

WISHES = (
    {"kind": "knn", "k": 4},
    {"kind": "vecchia", "k": 4, "order": "maximin"},
    {"kind": "vecchia", "k": 4, "order": "random"},
    {"kind": "radius"},
)
RADII = {"euclidean": 1.5, "haversine": 2000.0, "cosine": 0.1}


@st.composite
def grouped_grids(draw):
    """Points on an integer grid, which tie and coincide, a metric that they suit, and a group for each."""
    metric = draw(st.sampled_from(tuple(RADII)))
    n, d = draw(st.integers(5, 80)), 2 if metric == "haversine" else draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    points = rng.integers(1, draw(st.integers(2, 6)), (n, d)).astype(draw(st.sampled_from((np.float32, np.float64))))
    codes = rng.integers(0, draw(st.integers(1, n)), n)
    return points * (15 if metric == "haversine" else 1), metric, codes


@settings(max_examples=60, deadline=None)
@given(grouped_grids(), st.sampled_from(WISHES), st.integers(1, 40))
def test_neighbors_are_those_of_brute_force_within_the_group(grid, wish, k):
    X, metric, codes = grid
    k = {"radius": RADII[metric]} if wish["kind"] == "radius" else {"k": min(k, len(X) - 1)}
    graph = pc.build_graph(X, {**wish, **k, "metric": metric, "groups": codes})
    check_graph(graph, X, codes)
    assert graph.telemetry.counts["groups"] == len(np.unique(codes))


def of_sizes(*sizes):
    """Return the groups of shuffled points, so many in each."""
    return np.random.default_rng(len(sizes)).permutation(np.repeat(np.arange(len(sizes)), sizes))


@pytest.mark.parametrize(
    ("wish", "sizes"),
    [(WISHES[0], (2049, 2047)), (WISHES[1], (2700, 2047)), ({"kind": "radius", "radius": 6.0}, (700, 500))],
)
def test_large_groups_beside_small_ones(wish, sizes):
    codes = of_sizes(*sizes, 33, 32, 31, 2, *[1] * 20)
    X = np.random.default_rng(0).integers(0, 60, (len(codes), 2)).astype(float)
    graphs = [pc.build_graph(X, {**wish, "groups": codes}, threads=threads) for threads in (1, 3)]
    check_graph(graphs[0], X, codes)
    same_graphs(*graphs)


def test_a_large_group_that_boxes_cannot_separate_is_scanned():
    codes = of_sizes(2600, 300, 9)
    X = clouds.uniform(len(codes), 24).astype(np.float32)
    graph = pc.knn_graph(X, 5, groups=codes)
    assert graph.certificate.method == "dense"
    check_graph(graph, X, codes)


@pytest.mark.parametrize("wish", [*WISHES[:2], {"kind": "radius", "radius": 0.5}], ids=lambda wish: wish["kind"])
def test_so_many_small_groups_take_several_forests(wish, monkeypatch):
    codes = of_sizes(*[1, 2, 3, 2, 40] * 40)
    X = clouds.uniform(len(codes), 2)
    one = pc.build_graph(X, {**wish, "groups": codes})
    monkeypatch.setattr("pcct_core.groups._ROOM", 1)
    same_graphs(pc.build_graph(X, {**wish, "groups": codes}), one)
    check_graph(one, X, codes)


def test_too_many_pairs_within_groups_are_refused(monkeypatch):
    codes = of_sizes(*[2, 30] * 40)
    X = clouds.uniform(len(codes), 2)
    for room in (1 << 23, 1):
        monkeypatch.setattr("pcct_core.groups._ROOM", room)
        with pytest.raises(pc.TooManyPairs, match="use a radius of about") as refused:
            pc.radius_graph(X, 1.0, groups=codes, max_pairs=9000)
        fitting = float(str(refused.value).split("about ")[-1].split(" ")[0])
        assert len(pc.radius_graph(X, fitting, groups=codes, max_pairs=9000).neighbors) > 0


def test_points_alone_in_their_group_have_no_neighbors():
    X, alone = clouds.uniform(50, 2), np.arange(50)
    for graph in (pc.knn_graph(X, 3, groups=alone), pc.vecchia_graph(X, 3, groups=alone)):
        assert (graph.neighbors == -1).all()
        assert np.isinf(graph.distances).all()
    assert len(pc.radius_graph(X, 9.0, groups=alone).neighbors) == 0


def test_one_group_is_the_graph_without_groups():
    X = clouds.half_duplicates(600, 3)
    same_graphs(pc.knn_graph(X, 7, groups=["all"] * 600), pc.knn_graph(X, 7))
    same_graphs(pc.vecchia_graph(X, 7, groups=np.zeros(600)), pc.vecchia_graph(X, 7))


@pytest.mark.parametrize("kind", ["knn", "vecchia", "radius"])
def test_progress_and_cancel_within_groups(kind):
    codes, seen = of_sizes(3000, 2100, *[5] * 400), []
    X = clouds.uniform(len(codes), 2)
    wish = {"kind": kind, "groups": codes, **({"radius": 0.02} if kind == "radius" else {"k": 3})}
    pc.build_graph(X, wish, progress=lambda *step: seen.append(step))
    search = [step for step in seen if step[0] == "search"]
    assert len({total for _, _, total in search}) == 1  # for all groups together
    assert [done for _, done, _ in search] == sorted(done for _, done, _ in search)
    assert search[-1][1] == search[-1][2]
    cancel = threading.Event()
    with pytest.raises(pc.Cancelled):
        pc.build_graph(X, wish, cancel=cancel, progress=lambda *_: cancel.set())


PARTS = [0, 1, 0, 2, 1, 0]


@pytest.mark.parametrize(
    "labels",
    [
        PARTS,
        np.array(PARTS, np.uint8),
        np.array(PARTS, np.float32)[:, None],
        np.array([7, -3, 7, 2**62, -3, 7]),
        ["b", "a", "b", "ü", "a", "b"],
        np.array(["b", "a", "b", "ü", "a", "b"]),
        np.array(["b", "a", "b", "ü", "a", "b"], object),
        np.array(["2026-01-02", "2025-01-01", "2026-01-02", "2027-01-01", "2025-01-01", "2026-01-02"], "datetime64[D]"),
        (1, "1", 1, None.__class__, "1", True),
        np.ma.array(PARTS),
    ],
)
def test_labels_that_part_points_alike_are_one_column(labels):
    stored = store_groups(labels)
    assert stored.id == uploaded_id(PARTS)
    same_bytes(read_groups(stored, 6), np.array(PARTS))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", None, "b"], "row 1 of groups is None; give every point a label"),
        ([1.0, 2.0, float("nan")], "row 2 of groups is nan"),
        (np.array([0.0, np.nan]), "row 1 of groups is nan"),
        (np.array(["2026-01-01", "NaT"], "datetime64[D]"), "row 1 of groups is NaT"),
        (np.ma.array([0, 1, 2], mask=[0, 0, 1]), "row 2 of groups is masked"),
        ([0, np.ma.masked], "row 1 of groups is --"),
        (np.zeros((3, 2)), r"groups have shape \(3, 2\)"),
        ([[0], [1]], r"row 0 of groups is \[0\], which is no label"),
        ([], r"groups have shape \(0,\)"),
        ("team", "groups are 'team'; give one label for every point"),
        (3, "groups are 3"),
    ],
)
def test_labels_that_name_no_group_are_refused(labels, said):
    with pytest.raises(pc.InvalidSpec, match=said) as refused:
        pc.GraphSpec(groups=labels)
    assert refused.value.field == "groups"


def test_read_groups_refuses_what_does_not_fit_the_points():
    stored = store_groups(PARTS)
    for bad, said in (
        (stored, "6 entries for 7 points"),
        (Stored(stored.id), "not at hand"),
        (Stored(stored.id, np.zeros((7, 2))), "2 columns"),
        (Stored(stored.id, np.array([[0], [1], [0.5], [0], [0], [0], [0]])), r"row 2 of groups is 0\.5"),
        (Stored(stored.id, np.array([[0], [np.inf], [0], [0], [0], [0], [0]])), "row 1 of groups is inf"),
    ):
        with pytest.raises(pc.InvalidSpec, match=said) as refused:
            read_groups(bad, 7)
        assert refused.value.field == "groups"


def test_groups_in_a_specification():
    spec = pc.GraphSpec(groups=["b", "a", "b"])
    assert spec.to_json()["groups"] == {"dataset": spec.groups.id}
    assert spec.references() == (spec.groups.id,)
    assert "groups" not in pc.GraphSpec().to_json()
    assert pc.GraphSpec.from_json(spec.to_json()) == spec
    column = np.array([[0.0], [1.0], [0.0]])
    wanted = pc.GraphSpec.from_json(spec.to_json()).with_arrays({spec.groups.id: column})
    same_graphs(
        pc.build_graph(np.eye(3), pc.GraphSpec(k=2, groups=wanted.groups)), pc.knn_graph(np.eye(3), 2, groups=column)
    )
    for bad in ({"dataset": "a"}, {"dataset": spec.groups.id, "by": "given"}, {}, [0, 1]):
        with pytest.raises(pc.InvalidSpec) as refused:
            pc.GraphSpec.from_json({"groups": bad})
        assert refused.value.field.startswith("groups")


def test_the_residual_metric_takes_no_groups():
    with pytest.raises(pc.InvalidSpec, match="takes no groups: its inducing points") as refused:
        pc.knn_graph(clouds.uniform(20, 2), 3, pc.Residual(pc.RBF(0.3), 5), groups=[0] * 20)
    assert refused.value.field == "groups"
