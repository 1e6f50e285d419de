import dataclasses
import importlib.util
import itertools
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from pcct_client import ClientError, Graph, MissingExtra, NotForThisGraph
from pcct_client.extras import load

POINTS = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])


def graph(kind="knn", neighbors=(), distances=(), **fields):
    names = {"id": "0123456789abcdef" * 4, "dataset": "d", "certificate": {"exact": True}}
    spec = {"kind": kind, "k": 2, "metric": {"type": "euclidean"}}
    arrays = {"neighbors": np.array(neighbors, np.int32), "distances": np.array(distances), "order": None}
    return Graph(**{**arrays, "spec": spec, **names, **fields})


@pytest.fixture
def vecchia():
    rows = [[-1, -1], [0, -1], [1, 0]], [[np.inf, np.inf], [1.0, np.inf], [0.5, 2.0]]
    return graph("vecchia", *rows, order=np.array([2, 0, 1]), points=POINTS)


@pytest.fixture
def knn():
    return graph("knn", [[2, 1], [2, 0], [0, 1]], [[1.0, 5.0], [4.25, 5.0], [1.0, 4.25]], points=POINTS)


@pytest.fixture
def radius():
    """Rows 0 and 2 have each other and row 1 has nobody."""
    return graph("radius", [2, 0], [1.0, 1.0], offsets=np.array([0, 1, 1, 2]), points=POINTS)


@pytest.fixture
def answer():
    """Two queries in three points."""
    return graph("query", [[1, 0], [2, 0]], [[0.0, 5.0], [0.5, 1.5]], telemetry={"counts": {"n": 3}})


def test_in_original_index_names_dataset_rows(vecchia):
    graph = vecchia.in_original_index()
    assert graph.neighbors.tolist() == [[2, -1], [0, 2], [-1, -1]]
    assert graph.distances.tolist() == [[1.0, np.inf], [0.5, 2.0], [np.inf, np.inf]]
    assert graph.order is None
    assert graph.neighbors.dtype == np.int32
    assert graph.in_original_index() is graph


def test_save_writes_what_np_load_reads(vecchia, radius, tmp_path):
    vecchia.save(tmp_path / "graph")
    with np.load(tmp_path / "graph") as saved:
        assert set(saved) == {"neighbors", "distances", "order"}
        np.testing.assert_array_equal(saved["order"], vecchia.order)
    vecchia.in_original_index().save(tmp_path / "graph.npz")
    with np.load(tmp_path / "graph.npz") as saved:
        assert set(saved) == {"neighbors", "distances"}
    radius.save(tmp_path / "radius.npz")
    with np.load(tmp_path / "radius.npz") as saved:
        assert set(saved) == {"neighbors", "distances", "offsets"}


@pytest.mark.parametrize("name", ["absent/../file", "file/../other", "round", "lost", "/dev/full"])
def test_save_names_a_path_that_leads_nowhere(vecchia, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "lost").symlink_to("absent/../file")
    there = set(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"No such|Not a dir|Too many|No space") as caught:
        vecchia.save(name)
    assert caught.value.filename == name
    assert set(tmp_path.iterdir()) == there
    assert (tmp_path / "file").read_bytes() == b"old"


def test_save_writes_to_devices_and_pipes(vecchia, tmp_path):
    vecchia.save("/dev/null")
    path = tmp_path / "graph.npz"
    read, write = os.pipe()
    vecchia.save(f"/dev/fd/{write}")
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        path.write_bytes(pipe.read())
    with np.load(path) as saved:
        np.testing.assert_array_equal(saved["neighbors"], vecchia.neighbors)


def test_save_replaces_a_file_whole_or_not_at_all(vecchia, tmp_path, monkeypatch):
    path, link = tmp_path / "graph.npz", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o604)
    link.symlink_to(path)

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space left") as caught:
            vecchia.save(link)
    assert caught.value.filename == str(link)
    assert path.read_bytes() == b"old"
    vecchia.save(link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o604
    assert sorted(each.name for each in tmp_path.iterdir()) == ["graph.npz", "link"]
    with np.load(path) as saved:
        np.testing.assert_array_equal(saved["order"], vecchia.order)


def test_repr_says_what_it_is_in_one_line(vecchia, radius, answer):
    assert repr(vecchia) == "Graph(vecchia, n=3, k=2, euclidean, exact)"
    assert repr(radius) == "Graph(radius, n=3, pairs=2, euclidean, exact)"
    assert repr(answer) == "Graph(query, queries=2, k=2, euclidean, exact)"
    gated = {"exact": False, "recall": 1.0, "recall_lower": 0.999123456, "confidence": 0.95}
    track = graph("vecchia", vecchia.neighbors, vecchia.distances, version=3, certificate=gated)
    assert repr(track) == "Graph(vecchia, n=3, k=2, euclidean, version=3, recall ≥ 0.99912 at 95% confidence)"
    assert repr(graph("knn", [[1]], [[0.0]], certificate={})) == "Graph(knn, n=1, k=1, euclidean, no certificate)"
    assert repr(graph("knn", [[1]], [[0.0]], certificate={"exact": False})).endswith("not exact)")


def test_with_self_puts_every_point_first_in_its_row(vecchia, knn, radius):
    assert knn.with_self().neighbors.tolist() == [[0, 2, 1], [1, 2, 0], [2, 0, 1]]
    assert knn.with_self().distances[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert knn.with_self().neighbors.dtype == np.int32
    assert knn.with_self().distances.dtype == knn.distances.dtype
    assert vecchia.with_self().neighbors.tolist() == [[0, -1, -1], [1, 0, -1], [2, 1, 0]]
    assert vecchia.with_self().in_original_index().neighbors[:, 0].tolist() == [0, 1, 2]
    assert radius.with_self().neighbors.tolist() == [0, 2, 1, 2, 0]
    assert radius.with_self().distances.tolist() == [0.0, 1.0, 0.0, 0.0, 1.0]
    assert radius.with_self().offsets.tolist() == [0, 2, 3, 5]


def test_with_self_goes_before_duplicates():
    pair = graph("knn", [[1], [0]], np.zeros((2, 1), np.float32))
    assert pair.with_self().neighbors.tolist() == [[0, 1], [1, 0]]
    assert pair.with_self().distances.dtype == np.float32


def test_with_self_is_not_for_queries(answer):
    with pytest.raises(NotForThisGraph, match="queries, not points"):
        answer.with_self()


def test_children_are_the_rows_that_list_a_point(vecchia, knn, radius, answer):
    for each, expected in (
        (vecchia, [[1, 2], [2], []]),
        (vecchia.in_original_index(), [[1], [], [0, 1]]),
        (knn, [[1, 2], [0, 2], [0, 1]]),
        (radius, [[2], [], [0]]),
        (answer, [[0, 1], [0], [1]]),
    ):
        offsets, rows = each.children()
        assert [rows[a:b].tolist() for a, b in itertools.pairwise(offsets)] == expected
        assert (offsets.dtype, rows.dtype) == (np.int64, np.int32)


def test_conditioning_sets_are_rows_without_what_is_missing(vecchia, knn):
    assert [each.tolist() for each in vecchia.conditioning_sets()] == [[], [0], [1, 0]]
    assert [each.tolist() for each in vecchia.in_original_index().conditioning_sets()] == [[2], [0, 2], []]
    assert all(np.shares_memory(each, vecchia.neighbors) for each in vecchia.conditioning_sets()[1:])
    with pytest.raises(NotForThisGraph, match=r"client\.vecchia"):
        knn.conditioning_sets()


def test_to_sparse_has_distances_or_ones(vecchia, knn, radius, answer):
    assert vecchia.to_sparse().toarray().tolist() == [[0, 0, 0], [1.0, 0, 0], [2.0, 0.5, 0]]
    assert vecchia.to_sparse("connectivity").toarray().tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert radius.to_sparse().toarray().tolist() == [[0, 0, 1.0], [0, 0, 0], [1.0, 0, 0]]
    assert knn.to_sparse().format == "csr"
    assert knn.to_sparse().has_sorted_indices
    assert knn.neighbors[0].tolist() == [2, 1], "the graph's own arrays stay as they are"
    matrix = answer.to_sparse()
    assert (matrix.shape, matrix.nnz) == ((2, 3), 4), "a distance of 0 is stored"
    with pytest.raises(NotForThisGraph, match="mode is 'weights'"):
        knn.to_sparse("weights")


LINES = [(0, -1, -1, np.inf), (1, 0, 0, 1.0), (2, 0, 1, 0.5), (2, 1, 0, 2.0)]


def test_to_frame_has_a_line_per_pair_and_one_for_a_row_without(vecchia, radius):
    pytest.importorskip("pandas")
    frame = vecchia.to_frame("pandas")
    assert list(frame.columns) == ["row", "position", "neighbor", "distance"]
    assert list(frame.itertuples(index=False, name=None)) == LINES
    assert [str(dtype) for dtype in frame.dtypes] == ["int32", "int32", "int32", "float64"]
    assert radius.to_frame("pandas")[["row", "neighbor"]].to_numpy().tolist() == [[0, 2], [1, -1], [2, 0]]
    nobody = dataclasses.replace(
        radius, neighbors=radius.neighbors[:0], distances=radius.distances[:0], offsets=np.zeros(4, np.int64)
    )
    assert nobody.to_frame("pandas")["row"].tolist() == [0, 1, 2]
    with pytest.raises(NotForThisGraph, match="use 'pandas' or 'polars'"):
        radius.to_frame("arrow")


def test_to_frame_takes_polars(vecchia):
    pytest.importorskip("polars")
    assert vecchia.to_frame("polars").rows() == LINES


def test_to_frame_takes_polars_where_pandas_is_missing(vecchia, monkeypatch):
    polars = pytest.importorskip("polars")
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert isinstance(vecchia.to_frame(), polars.DataFrame)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingExtra, match="needs pandas"):
        vecchia.to_frame()


def test_to_networkx_has_an_edge_per_pair(vecchia, answer):
    pytest.importorskip("networkx")
    edges = list(vecchia.to_networkx().edges(data="weight"))
    assert edges == [(1, 0, 1.0), (2, 1, 0.5), (2, 0, 2.0)]
    assert list(vecchia.to_networkx().nodes) == [0, 1, 2]
    assert (("query", 0), 1, 0.0) in answer.to_networkx().edges(data="weight")


def run_alone(code):
    """Run a program with warnings as errors; returns what it printed."""
    command = [sys.executable, "-W", "error", "-c", code]
    environment = {**os.environ, "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


PAIR = (
    "import numpy as np\nfrom pcct_client import Graph\n"
    "pair = Graph(np.array([[1], [0]], np.int32), np.array([[1.5], [1.5]]), None, '', '', {'kind': 'knn'}, {},"
    " points=np.eye(2))\n"
)


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_to_jax_gives_its_arrays():
    # In a process of its own: where JAX is loaded, every fork warns.
    code = PAIR + (
        "import jax\n"
        "arrays = pair.to_jax()\n"
        "print(isinstance(arrays.neighbors, jax.Array), arrays.neighbors.tolist(), arrays.distances.tolist(), arrays.order)\n"
        "jax.config.update('jax_enable_x64', True)\n"
        "print(arrays.distances.dtype, pair.to_jax().distances.dtype)\n"
    )
    assert run_alone(code) == "True [[1], [0]] [[1.5], [1.5]] None\nfloat32 float64\n"


def test_to_torch_gives_tensors_to_index_with(vecchia, radius):
    torch = pytest.importorskip("torch")
    arrays = vecchia.to_torch()
    assert arrays.neighbors.dtype == torch.int64
    np.testing.assert_array_equal(arrays.neighbors.numpy(), vecchia.neighbors)
    assert np.shares_memory(arrays.distances.numpy(), vecchia.distances)
    assert radius.to_torch().offsets.tolist() == [0, 1, 1, 2]


def test_to_torch_hands_over_what_torch_indexes_with(vecchia, monkeypatch):
    """Without torch itself, which is large: what it is given."""
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(from_dlpack=lambda array: ("tensor", array)))
    arrays = vecchia.to_torch()
    kind, neighbors = arrays.neighbors
    assert (kind, neighbors.dtype, neighbors.tolist()) == ("tensor", np.int64, vecchia.neighbors.tolist())
    assert arrays.distances[1] is vecchia.distances
    assert arrays.offsets is None


@pytest.mark.parametrize(
    ("method", "library", "fix"),
    [
        ("to_sparse", "scipy", "pip install 'pcct[sparse]'"),
        ("to_networkx", "networkx", "pip install 'pcct[networkx]'"),
        ("to_frame", "pandas", "pip install 'pcct[frames]'"),
        ("to_torch", "torch", "pip install torch"),
        ("to_jax", "jax", "pip install jax"),
        ("plot", "matplotlib", "pip install 'pcct[plot]'"),
    ],
)
def test_a_missing_library_is_said_with_its_fix(knn, monkeypatch, method, library, fix):
    for name in [library, *(each for each in sys.modules if each.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    if library == "pandas":
        monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingExtra, match=rf"Graph\.{method} needs {library}") as caught:
        getattr(knn, method)(*([0] if method == "plot" else []))
    assert str(caught.value).endswith(fix)
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, ClientError)


def test_a_library_that_is_there_but_broken_is_told_from_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import nothing_like_it")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(MissingExtra, match=r"needs torch, which cannot be imported: No module named 'nothing_like_it'"):
        load("torch", "Graph.to_torch")


def test_a_graph_survives_pickling(vecchia):
    back = pickle.loads(pickle.dumps(vecchia))
    np.testing.assert_array_equal(back.neighbors, vecchia.neighbors)
    assert repr(back) == repr(vecchia)


@pytest.fixture
def axes():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    return Figure().add_subplot()


def drawn(axes, label):
    """The offsets of the scatter with this label."""
    (found,) = [each for each in axes.collections if each.get_label() == label]
    return found.get_offsets().tolist()


def test_plot_draws_the_point_and_its_neighbors(knn, axes):
    assert knn.plot(0, ax=axes) is axes
    assert drawn(axes, "the point") == [[0.0, 0.0]]
    assert drawn(axes, "its neighbors") == [[0.0, 1.0], [3.0, 4.0]]
    assert len(drawn(axes, "points")) == 3
    assert axes.get_title() == "row 0 and its 2 neighbors, within 5 (euclidean)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("column 0", "column 1")


def test_plot_knows_ranks(vecchia, axes):
    vecchia.plot(-1, ax=axes)
    assert drawn(axes, "the point") == [[3.0, 4.0]]
    assert drawn(axes, "its neighbors") == [[0.0, 0.0], [0.0, 1.0]]
    assert len(drawn(axes, "earlier points")) == 2
    assert len(drawn(axes, "later points")) == 1
    assert axes.get_title().startswith("rank 2 and its 2 neighbors")


@pytest.mark.parametrize(
    ("row", "title"), [(0, "rank 0 and its 0 neighbors (euclidean)"), (1, "rank 1 and its 1 neighbor,")]
)
def test_plot_takes_rows_that_miss_neighbors(vecchia, axes, row, title):
    vecchia.plot(row, ax=axes)
    assert axes.get_title().startswith(title)


def test_plot_draws_radius_graphs_and_queries(radius, answer, axes):
    radius.plot(1, ax=axes)
    assert axes.get_title() == "row 1 and its 0 neighbors (euclidean)"
    from dataclasses import replace

    axes.clear()
    replace(answer, points=POINTS, queries=np.array([[3.0, 4.0], [0.0, 0.5]])).plot(1, ax=axes)
    assert drawn(axes, "the point") == [[0.0, 0.5]]
    assert drawn(axes, "its neighbors") == [[0.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize(("d", "ylabel"), [(1, ""), (3, "column 1")])
def test_plot_takes_any_number_of_columns(knn, axes, d, ylabel):
    knn.plot(0, points=np.arange(3.0 * d).reshape(3, d), whole=True, ax=axes)
    assert axes.get_ylabel() == ylabel
    assert ("columns 0 and 1 of 3" in axes.get_title()) == (d == 3)


def test_plot_labels_places_on_the_earth(axes):
    spec = {"kind": "knn", "k": 1, "metric": {"type": "haversine"}}
    graph("knn", [[1], [0]], [[111.2], [111.2]], spec=spec, points=np.array([[10.0, 60.0], [10.0, 61.0]])).plot(
        0, ax=axes
    )
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("longitude (°)", "latitude (°)")
    assert axes.get_title().endswith("within 111.2 km (haversine)")
    assert axes.get_aspect() == pytest.approx(2.0)


def test_plot_joins_places_across_the_date_line(axes):
    spec = {"kind": "knn", "k": 1, "metric": {"type": "haversine"}}
    places = np.array([[179.5, 0.0], [-179.5, 0.0]])
    graph("knn", [[1], [0]], [[111.2], [111.2]], spec=spec, points=places).plot(0, ax=axes)
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [179.5, 180.5])
    np.testing.assert_allclose(axes.get_xlim(), [177.0, 182.0])


def test_plot_draws_the_whole_earth_as_its_middle_is_shaped(axes):
    spec = {"kind": "knn", "k": 1, "metric": {"type": "haversine"}}
    places = np.array([[10.0, 80.0], [10.0, 81.0], [10.0, -80.0], [10.0, -81.0]])
    graph("knn", [[1], [0], [3], [2]], [[111.2]] * 4, spec=spec, points=places).plot(0, whole=True, ax=axes)
    assert axes.get_aspect() == pytest.approx(1.0)
    assert axes.get_adjustable() == "box", "the view ends at the poles"


def test_plot_says_what_it_lacks(knn, answer):
    from dataclasses import replace

    with pytest.raises(NotForThisGraph, match="rows 0 to 2"):
        knn.plot(3)
    with pytest.raises(NotForThisGraph, match=r"graph\.plot\(i, points=X\)"):
        replace(knn, points=None).plot(0)
    with pytest.raises(NotForThisGraph, match="these are 2 points, the graph has 3"):
        knn.plot(0, points=POINTS[:2])
    with pytest.raises(NotForThisGraph, match=r"client\.query\(X, Q\)"):
        answer.plot(0, points=POINTS)


def test_plot_opens_a_figure_of_its_own():
    pytest.importorskip("matplotlib")
    assert run_alone(PAIR + "print(type(pair.plot(1).figure).__name__)") == "Figure\n"
