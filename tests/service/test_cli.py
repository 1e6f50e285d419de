from __future__ import annotations

import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pytest

from pcct_core.graph import Graph, knn_graph, radius_graph, vecchia_graph
from service.cli import main


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def pcct(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Outcome]:
    """Run the command line in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("service.local._LINE_EVERY_S", math.inf)  # else compiling would print lines of progress

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["pcct", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which an interrupted command leaves ignored
        captured = capsys.readouterr()
        return Outcome(exit.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(5).random((60, 2))


def check_one_line(outcome: Outcome, *words: str, status: int = 2) -> None:
    assert outcome.status == status
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("pcct: ")
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


def test_graph_writes_what_the_library_returns(pcct: Callable[..., Outcome], points: np.ndarray) -> None:
    np.save("points.npy", points)
    outcome = pcct("graph", "points.npy", "-k", 7, "--kind", "vecchia", "--order", "random", "--seed", 3, "-o", "g.npz")
    assert outcome.status == 0, outcome.err
    assert outcome.err == ""
    assert outcome.out.count("\n") == 1
    assert "g.npz: vecchia graph in random order of 60 points in 2 dimensions, k = 7, euclidean; exact" in outcome.out
    expected = vecchia_graph(points, 7, "random", seed=3)
    with np.load("g.npz") as written:
        assert set(written.files) == {"neighbors", "distances", "order", "record"}
        for name, array in expected.arrays().items():
            assert np.array_equal(written[name], array)
            assert written[name].dtype == array.dtype
    assert sorted(path.name for path in Path().iterdir()) == ["g.npz", "points.npy"]


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("0.5,2", (0.5, 2.0))])
def test_graph_takes_a_lengthscale(
    pcct: Callable[..., Outcome], points: np.ndarray, text: str, value: float | tuple[float, ...]
) -> None:
    from pcct_core.spec import Euclidean

    np.save("points.npy", points.astype("float32"))
    assert pcct("graph", "points.npy", "-k", 3, "--lengthscale", text).status == 0
    with np.load("graph.npz") as written:
        expected = knn_graph(points.astype("float32"), 3, Euclidean(value))
        assert np.array_equal(written["distances"], expected.distances)


def test_graph_writes_a_radius_graph_and_says_how_many_neighbors(pcct: Callable[..., Outcome]) -> None:
    np.save("points.npy", np.arange(5.0)[:, None])
    outcome = pcct("graph", "points.npy", "--kind", "radius", "--radius", 1)
    assert outcome.status == 0, outcome.err
    assert (
        "radius graph of 5 points in 1 dimensions, 8 neighbors within 1, 1.6 per point, euclidean; exact" in outcome.out
    )
    with np.load("graph.npz") as written:
        assert written["offsets"].tolist() == [0, 1, 3, 5, 7, 8]
        assert written["neighbors"].tolist() == [1, 0, 2, 1, 3, 2, 4, 3]
    rendered = pcct("telemetry", "render", "graph.npz")
    assert rendered.out.startswith("radius radius=1 euclidean\n")


BAD_POINTS = {
    "nan": (np.array([[0.0, 1.0], [np.nan, 1.0], [2.0, 2.0]]), "row 1, column 0 is nan"),
    "infinity": (np.array([[0.0, 1.0], [1.0, 1.0], [2.0, -np.inf]]), "row 2, column 1 is -inf"),
    "no rows": (np.zeros((0, 2)), "at least one row"),
    "one row": (np.zeros((1, 2)), "at least 2 points"),
    "one axis": (np.zeros(5), "expected (n, d)"),
    "three axes": (np.zeros((2, 2, 2)), "expected (n, d)"),
    "text": (np.array([["a", "b"], ["c", "d"], ["e", "f"]]), "which is no number"),
    "complex": (np.zeros((3, 2), complex), "take real and imaginary parts"),
    "objects": (np.array([[1, None], [2, "x"], [3, 4]], dtype=object), "never unpickled"),
    "too few for k": (np.zeros((2, 2)), "use k ≤ 1"),
}


@pytest.mark.parametrize("case", BAD_POINTS)
def test_graph_refuses_bad_points(pcct: Callable[..., Outcome], case: str) -> None:
    array, words = BAD_POINTS[case]
    np.save("points.npy", array, allow_pickle=True)
    check_one_line(pcct("graph", "points.npy", "-k", "1" if case != "too few for k" else "2"), words)
    assert not Path("graph.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-k", "0"], "k is 0"),
        (["-k", "-3"], "k is -3"),
        (["-k", "60"], "use k ≤ 59"),
        (["-k", "many"], "'-k'"),
        (["--kind", "radius"], "radius is missing"),
        (["--kind", "radius", "--radius", "-1"], "radius is -1"),
        (["--kind", "radius", "--radius", "nan"], "radius is nan"),
        (["--kind", "radius", "--radius", "1", "-k", "5"], "leave out k"),
        (["--radius", "1"], "a knn graph has no radius"),
        (["--kind", "tree"], "use one of knn, vecchia"),
        (["--metric", "manhattan"], "use one of euclidean, haversine, cosine"),
        (["--order", "best", "--kind", "vecchia"], "use one of maximin"),
        (["--seed", "-1"], "seed is -1"),
        (["--lengthscale", "wide"], "'wide'"),
        (["--lengthscale", "0"], "not positive"),
        (["--lengthscale", "1,2,3"], "lengthscale has 3 values for 2 dimensions"),
        (["--lengthscale", "1", "--metric", "cosine"], "metric.lengthscale"),
        (["--frobnicate"], "--frobnicate"),
        (["-o", "nowhere/graph.npz"], "nowhere is not a directory"),
        (["-o", "."], "is a directory"),
    ],
)
def test_graph_refuses_bad_options(
    pcct: Callable[..., Outcome], points: np.ndarray, arguments: list[str], words: str
) -> None:
    np.save("points.npy", points)
    check_one_line(pcct("graph", "points.npy", *arguments), words)


RESIDUAL = ("--metric", "residual", "--kernel", "rbf", "--lengthscale", "0.3,0.3", "--inducing", 40)


@pytest.mark.parametrize(("text", "accuracy"), [("exact", "exact"), ("0.999", 0.999)])
def test_graph_takes_the_residual_metric(
    pcct: Callable[..., Outcome], points: np.ndarray, text: str, accuracy: str | float
) -> None:
    from pcct_core.spec import RBF, Residual

    np.save("points.npy", points)
    outcome = pcct("graph", "points.npy", "-k", 5, "--kind", "vecchia", *RESIDUAL, "--accuracy", text, "--gate", "off")
    assert outcome.status == 0, outcome.err
    assert "k = 5, residual; exact in float64 (dense)" in outcome.out
    expected = vecchia_graph(points, 5, metric=Residual(RBF((0.3, 0.3)), inducing=40), accuracy=accuracy, gate="off")
    with np.load("graph.npz") as written:
        for name, array in expected.arrays().items():
            assert np.array_equal(written[name], array)


def test_graph_has_a_default_kernel_and_takes_its_variance(pcct: Callable[..., Outcome], points: np.ndarray) -> None:
    from pcct_core.spec import Matern52, Residual

    np.save("points.npy", points)
    arguments = ("--metric", "residual", "--variance", 2.5, "--inducing", 40)
    assert pcct("graph", "points.npy", "-k", 5, *arguments).status == 0
    with np.load("graph.npz") as written:
        expected = knn_graph(points, 5, Residual(Matern52(variance=2.5), inducing=40))
        assert np.array_equal(written["distances"], expected.distances)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*RESIDUAL, "--kernel", "matern72"), "kernel is 'matern72'; use one of rbf, matern12"),
        ((*RESIDUAL, "--lengthscale", "0"), "lengthscale 0.0 is not positive"),
        ((*RESIDUAL, "--lengthscale", "0.3,0.3,0.3"), "lengthscale has 3 values for 2 dimensions"),
        ((*RESIDUAL, "--variance", "-1"), "variance -1.0 is not positive"),
        ((*RESIDUAL, "--inducing", "0"), "use a whole number of at least 1"),
        ((*RESIDUAL, "--inducing", "61"), "61 inducing points are more than the 60 points"),
        ((*RESIDUAL, "--inducing", "few"), "--inducing"),
        ((*RESIDUAL, "--accuracy", "2"), "use a number above 0 and below 1"),
        ((*RESIDUAL, "--accuracy", "nearly"), "'nearly' is not a recall such as 0.999, or 'exact'"),
        ((*RESIDUAL, "--gate", "open"), "use one of auto, lookup, off"),
        (("--gate", "off"), "only the residual metric has a gate"),
        (("--accuracy", "0.9"), "always exact"),
        (("--kernel", "rbf"), "unknown field metric.kernel"),
    ],
)
def test_graph_refuses_bad_options_of_the_residual_metric(
    pcct: Callable[..., Outcome], points: np.ndarray, arguments: tuple[object, ...], words: str
) -> None:
    np.save("points.npy", points)
    check_one_line(pcct("graph", "points.npy", "-k", 5, *arguments), words)
    assert not Path("graph.npz").exists()


@pytest.mark.parametrize("passed", [True, False])
class TestGuardrail:
    @pytest.fixture(autouse=True)
    def outcome(self, monkeypatch: pytest.MonkeyPatch, passed: bool) -> None:
        from pcct_core.guardrail import Check

        checks = [Check("gate prunes", True, "6 of 8 pairs"), Check("scan time", passed, "0.2 s, limit 1 s")]
        monkeypatch.setattr("pcct_core.guardrail.run_guardrail", lambda: (checks, {"passed": passed, "n": 4096}))

    def test_json_is_the_report_and_the_status_its_verdict(self, pcct: Callable[..., Outcome], passed: bool) -> None:
        outcome = pcct("guardrail", "--json")
        assert json.loads(outcome.out) == {"passed": passed, "n": 4096}
        assert outcome.status == (0 if passed else 1)
        assert outcome.err == ""

    def test_without_json_every_check_is_a_line(self, pcct: Callable[..., Outcome], passed: bool) -> None:
        outcome = pcct("guardrail")
        verdict = "pass" if passed else "FAIL"
        assert outcome.out == f"pass  gate prunes: 6 of 8 pairs\n{verdict}  scan time: 0.2 s, limit 1 s\n"
        assert outcome.status == (0 if passed else 1)


def test_graph_refuses_a_latitude_out_of_range(pcct: Callable[..., Outcome]) -> None:
    np.save("points.npy", np.array([[0.0, 10.0], [5.0, 91.0], [1.0, 1.0]]))
    check_one_line(pcct("graph", "points.npy", "-k", 1, "--metric", "haversine"), "row 1", "latitude 91")


def test_graph_refuses_what_cannot_be_read_and_says_what_could(
    pcct: Callable[..., Outcome], points: np.ndarray
) -> None:
    check_one_line(pcct("graph", "points.npy"), "points.npy cannot be read: No such file", "name a .npy file")
    check_one_line(pcct("graph", "."), "cannot be read: it is a directory; name a .npy file")
    check_one_line(pcct("graph", "nowhere/points.npy"), "nowhere is no directory")
    Path("empty.npy").write_bytes(b"")
    check_one_line(pcct("graph", "empty.npy"), "empty.npy is empty; save the points with np.save")
    np.save("points.npy", points)
    for name in ("points", "Points.npy", "point.npy"):
        check_one_line(pcct("graph", name), "did you mean points.npy?")
    check_one_line(pcct("graph", "."), "it is a directory; name a file, such as empty.npy")


def write_kind(kind: str, X: np.ndarray) -> Path:
    """Write the points as another kind of file, and return its path."""
    rows = [",".join(map(repr, row)) for row in X.tolist()]
    named = [f'"place {number}";' + row.replace(",", ";") for number, row in enumerate(rows)]
    texts = {
        "plain.csv": rows,
        "headed.csv": ["lon,lat", *rows],
        "marked.csv": ["\ufeffx,y", *rows],
        "named.csv": ["# of a map", "name;x;y", *named],
        "tabs.tsv": ["x\ty", *(row.replace(",", "\t") for row in rows)],
        "spaces.txt": [row.replace(",", "  ") for row in rows],
        "one column.dat": [row.partition(",")[0] for row in rows],
        "points.npy": rows,
    }
    path = Path(kind)
    if kind in texts:
        path.write_text("\n".join(texts[kind]) + "\n", encoding="utf-8")
    elif kind == "points.json":
        path.write_text(json.dumps(X.tolist()))
    elif kind == "points.npz":
        np.savez(path, names=np.array(["a", "b"]), X=X, y=X[:, 0])
    else:
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"name": ["a"] * len(X), "x": X[:, 0], "y": X[:, 1]})
        (frame.to_parquet if kind == "points.parquet" else frame.to_feather)(path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "plain.csv",
            "headed.csv",
            "marked.csv",
            "named.csv",
            "tabs.tsv",
            "spaces.txt",
            "one column.dat",
            "points.npy",
        ),
        *("points.json", "points.npz", "points.parquet", "points.feather"),
    ],
)
def test_the_command_that_a_refused_file_is_answered_with_makes_the_points_of_it(
    pcct: Callable[..., Outcome], points: np.ndarray, kind: str
) -> None:
    path = write_kind(kind, points)
    before = path.read_bytes()
    outcome = pcct("graph", path, "-k", 3)
    check_one_line(outcome, f"{kind} is not a .npy file; it is ")
    command, _, name = outcome.err.partition("convert it with: ")[2].strip().partition(" and name ")
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True, timeout=60)
    (target,) = shlex.split(name)
    wanted = points[:, :1] if kind == "one column.dat" else points
    assert np.array_equal(np.load(target), wanted)
    assert path.read_bytes() == before
    assert pcct("graph", target, "-k", 3).status == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b\x08\x00", "unpack it with gunzip"),
        (b"\x80\x04\x95", "a pickle, which is never read"),
        (b"\x89HDF\r\n\x1a\n", "with h5py"),
        (b"PK\x03\x04damaged", "a damaged zip archive"),
        (b"\xff\xd8\xff\xe0\0\0\0\0", "it begins with b'"),
        (b"name,place\na,b\n", "no numbers"),
        (b'{"x": 1}', "save the rows with np.save"),
    ],
)
def test_graph_says_what_a_file_is_that_no_command_converts(
    pcct: Callable[..., Outcome], content: bytes, words: str
) -> None:
    Path("points.npy").write_bytes(content)
    check_one_line(pcct("graph", "points.npy"), "points.npy is not a .npy file", words)


def test_graph_refuses_a_graph_as_points(pcct: Callable[..., Outcome], points: np.ndarray) -> None:
    np.save("points.npy", points)
    assert pcct("graph", "points.npy", "-k", 3).status == 0
    check_one_line(pcct("graph", "graph.npz"), "it is a graph; name the points that it was built from")


def send(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_graph_reads_standard_input_and_writes_standard_output(points: np.ndarray) -> None:
    file = io.BytesIO()
    np.save(file, np.asfortranarray(points))
    command = [sys.executable, "-P", "-m", "service.cli", "graph", "-", "-k", "3", "-o", "-"]
    done = subprocess.run(command, input=file.getvalue(), capture_output=True, check=True, timeout=110)
    assert done.stderr.splitlines()[-1].startswith(b"standard output: knn graph of 60 points")
    with np.load(io.BytesIO(done.stdout)) as written:
        assert np.array_equal(written["neighbors"], knn_graph(points, 3).neighbors)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "standard input is empty"),
        (b"1,2\n3,4\n", "standard input is not a .npy file; it is text: save it to a file"),
        (b"\x93NUMPY\x01\x00", "standard input is cut short"),
        (b"PK\x03\x04", "send one array alone"),
    ],
)
def test_graph_refuses_what_comes_by_standard_input(
    pcct: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, data: bytes, words: str
) -> None:
    send(monkeypatch, data)
    check_one_line(pcct("graph", "-"), words)


def test_graph_refuses_terminals(pcct: Callable[..., Outcome], points: np.ndarray) -> None:
    np.save("points.npy", points)
    controlling, terminal = os.openpty()
    command = [sys.executable, "-P", "-m", "service.cli", "graph"]
    for arguments, given in ((["-"], {"stdin": terminal}), (["points.npy", "-o", "-"], {"stdout": terminal})):
        done = subprocess.run(
            [*command, *arguments], stderr=subprocess.PIPE, text=True, timeout=60, check=False, **given
        )
        assert done.returncode == 2
        assert f"{'standard input' if 'stdin' in given else 'standard output'} is a terminal" in done.stderr
    os.close(terminal)
    os.close(controlling)


def link(kind: str) -> Path:
    """Return another name of points.npy."""
    if kind == "same":
        return Path("points.npy")
    if kind == "absolute":
        return Path("points.npy").absolute()
    if kind == "hard link":
        Path("other.npz").hardlink_to("points.npy")
    elif kind == "symbolic link":
        Path("other.npz").symlink_to("points.npy")
    else:
        Path("folder").symlink_to(".")
        return Path("folder/points.npy")
    return Path("other.npz")


@pytest.mark.parametrize("kind", ["same", "absolute", "hard link", "symbolic link", "linked folder"])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_graph_never_replaces_its_points(
    pcct: Callable[..., Outcome], points: np.ndarray, kind: str, force: list[str]
) -> None:
    np.save("points.npy", points)
    before = Path("points.npy").read_bytes()
    check_one_line(pcct("graph", "points.npy", "-k", 3, "-o", link(kind), *force), "the file of the points")
    assert Path("points.npy").read_bytes() == before


@pytest.mark.parametrize("target", ["absent/../points.npy", "absent/deeper/../../points.npy"])
def test_graph_does_not_find_its_points_by_way_of_a_folder_that_is_absent(
    pcct: Callable[..., Outcome], points: np.ndarray, target: str
) -> None:
    np.save("points.npy", points)
    before = Path("points.npy").read_bytes()
    check_one_line(pcct("graph", "points.npy", "-k", 3, "-o", target, "--force"), "is not a directory")
    assert Path("points.npy").read_bytes() == before


def test_graph_never_replaces_the_points_of_standard_input(
    pcct: Callable[..., Outcome], points: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save("points.npy", points)
    before = Path("points.npy").read_bytes()
    with Path("points.npy").open() as opened:
        monkeypatch.setattr(sys, "stdin", opened)
        check_one_line(pcct("graph", "-", "-k", 3, "-o", "points.npy", "--force"), "the file of the points")
    assert Path("points.npy").read_bytes() == before


@pytest.mark.parametrize("other", ["npy", "npz", "text"])
def test_graph_replaces_another_file_by_force_alone(
    pcct: Callable[..., Outcome], points: np.ndarray, other: str
) -> None:
    np.save("points.npy", points)
    with Path("mine").open("wb") as file:
        if other == "npy":
            np.save(file, points)
        elif other == "npz":
            np.savez(file, neighbors=points, mine=points)
        else:
            file.write(b"my notes")
    before = Path("mine").read_bytes()
    check_one_line(pcct("graph", "points.npy", "-k", 3, "-o", "mine"), "mine is there and is not a graph", "--force")
    assert Path("mine").read_bytes() == before
    outcome = pcct("graph", "points.npy", "-k", 3, "-o", "mine", "--force")
    assert outcome.out.endswith(f"; in place of a file of {len(before):,} bytes\n")
    with np.load("mine") as written:
        assert "record" in written


def test_graph_replaces_a_graph_and_says_which(pcct: Callable[..., Outcome], points: np.ndarray) -> None:
    np.save("points.npy", points)
    Path("graph.npz").touch()
    assert "in place of" not in pcct("graph", "points.npy", "-k", 3).out
    Path("graph.npz").chmod(0o640)
    outcome = pcct("graph", "points.npy", "-k", 4, "--kind", "vecchia")
    assert outcome.out.endswith("; in place of a knn graph with k = 3\n")
    assert Path("graph.npz").stat().st_mode & 0o777 == 0o640
    knn_graph(points, 3).save("graph.npz")
    assert pcct("graph", "points.npy", "-k", 4).out.endswith("; in place of a graph\n")


@pytest.mark.parametrize("kept", [7, 60, 128, 200, -1])
def test_graph_refuses_a_cut_file(pcct: Callable[..., Outcome], points: np.ndarray, kept: int) -> None:
    np.save("points.npy", points)
    Path("points.npy").write_bytes(Path("points.npy").read_bytes()[:kept])
    check_one_line(pcct("graph", "points.npy", "-k", 1), "points.npy")


def test_graph_refuses_a_header_that_lies(pcct: Callable[..., Outcome]) -> None:
    with Path("points.npy").open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**13, 2)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"\0" * 64)
    check_one_line(pcct("graph", "points.npy", "-k", 1), "points.npy")


@pytest.mark.parametrize("header", ["{'descr': '<f8', 'shape': (60L, 2L), ", "(", "{'shape': (60L"])
def test_graph_refuses_a_header_that_ends_too_early(pcct: Callable[..., Outcome], header: str) -> None:
    Path("points.npy").write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode())
    check_one_line(pcct("graph", "points.npy", "-k", 1), "points.npy is cut short or damaged")


def test_graph_keeps_the_old_file_when_it_fails(
    pcct: Callable[..., Outcome], points: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: IO[bytes], **arrays: np.ndarray) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    np.save("points.npy", points)
    assert pcct("graph", "points.npy", "-k", 2).status == 0
    old = Path("graph.npz").read_bytes()
    monkeypatch.setattr(np, "savez", full)
    assert "No space left" in pcct("graph", "points.npy", "-k", 1).err
    assert Path("graph.npz").read_bytes() == old
    assert sorted(path.name for path in Path().iterdir()) == ["graph.npz", "points.npy"]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [(KeyboardInterrupt(), 1, "interrupted"), (MemoryError(), 1, "out of memory"), (RuntimeError("x"), 1, "x")],
)
def test_graph_never_shows_a_traceback(
    pcct: Callable[..., Outcome],
    points: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    words: str,
) -> None:
    def broken(*arguments: object, **rest: object) -> None:
        raise error

    monkeypatch.setattr("pcct_core.graph.build_graph", broken)
    np.save("points.npy", points)
    check_one_line(pcct("graph", "points.npy", "-k", 1), words, status=status)


def test_usage_errors_are_one_line(pcct: Callable[..., Outcome]) -> None:
    check_one_line(pcct("graph"), "POINTS.npy")
    check_one_line(pcct("frobnicate"), "frobnicate")
    check_one_line(pcct("telemetry"), "Missing command")
    check_one_line(pcct("telemetry", "render"), "FILE")
    check_one_line(pcct("up", "--port", "70000"), "--port")
    check_one_line(pcct("up", "--workers", "0"), "--workers")


@pytest.mark.parametrize(
    "wish",
    [
        ("knn", ["-k", "3"], lambda X, groups: knn_graph(X, 3, groups=groups)),
        (
            "vecchia",
            ["-k", "3", "--order", "given"],
            lambda X, groups: vecchia_graph(X, 3, order="given", groups=groups),
        ),
        ("radius", ["--radius", "0.3"], lambda X, groups: radius_graph(X, 0.3, groups=groups)),
    ],
    ids=lambda wish: wish[0],
)
def test_graph_finds_neighbors_within_the_groups_that_a_column_a_field_or_a_file_names(
    pcct: Callable[..., Outcome], points: np.ndarray, wish: tuple[str, list[str], Callable[..., Graph]]
) -> None:
    kind, options, build = wish
    labels = np.random.default_rng(6).integers(0, 4, len(points))
    np.save("points.npy", points)
    np.save("labels.npy", np.array(["east", "west", "north", "south"])[labels])
    np.save("both.npy", np.column_stack((points[:, :1], labels, points[:, 1:])))
    fields = np.zeros(len(points), [("year", "i8"), ("x", "f8"), ("y", "f8")])
    fields["year"], fields["x"], fields["y"] = labels, *points.T
    np.save("fields.npy", fields)
    expected = build(points, labels)
    for file, groups in (("points", "labels.npy"), ("both", "1"), ("both", "-2"), ("fields", "year")):
        outcome = pcct("graph", f"{file}.npy", "--kind", kind, *options, "--groups", groups)
        assert outcome.status == 0, outcome.err
        assert "within 4 groups" in outcome.out
        with np.load("graph.npz") as written:
            assert all(np.array_equal(written[name], array) for name, array in expected.arrays().items()), (
                file,
                groups,
            )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["points.npy", "--groups", "2"], "groups are column 2, and the points have the columns 0 to 1"),
        (["points.npy", "--groups", "year"], "'year', which is no file here"),
        (["points.npy", "--groups", "year.npy"], "year.npy cannot be read"),
        (["points.npy", "--groups", "few.npy"], "groups has 5 entries for 60 points"),
        (["points.npy", "--groups", "nan.npy"], "row 3 of groups is nan"),
        (["points.npy", "--groups", "points.npy"], "groups have shape (60, 2)"),
        (["one.npy", "--groups", "0"], "the only one of the points"),
        (["fields.npy", "--groups", "z"], "neither a file here nor one of x, name"),
        (["fields.npy", "--groups", "x"], "field 'name' is no number"),
        (["-", "--groups", "-"], "both standard input"),
        (
            ["points.npy", "--groups", "labels.npy", "-o", "labels.npy", "--force"],
            "labels.npy is the file of the groups",
        ),
        (["points.npy", "--groups", "labels.npy", "--metric", "residual"], "the residual metric takes no groups"),
    ],
)
def test_graph_refuses_groups_that_cannot_be(
    pcct: Callable[..., Outcome], points: np.ndarray, arguments: list[str], words: str
) -> None:
    np.save("points.npy", points)
    np.save("one.npy", points[:, :1])
    np.save("labels.npy", np.arange(60) % 3)
    np.save("few.npy", np.arange(5))
    np.save("nan.npy", np.where(np.arange(60) == 3, np.nan, 1.0))
    np.save("fields.npy", np.zeros(60, [("x", "f8"), ("name", "U3")]))
    check_one_line(pcct("graph", *arguments, "-k", "3"), words)
    assert not Path("graph.npz").exists()


def test_wrong_settings_are_one_line(pcct: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCCT_CHUNK_BYTES", "many")
    for command in ("up", "serve", "work"):
        check_one_line(pcct(command), "PCCT_CHUNK_BYTES='many'")


def test_an_address_that_reaches_no_store_ends_every_process_by_its_name(
    pcct: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCCT_REDIS_URL", "localhost:6379")
    for command in ("up", "serve", "work"):
        words = "PCCT_REDIS_URL='localhost:6379': it has no scheme; write redis://localhost:6379"
        check_one_line(pcct(command), words)


@pytest.mark.parametrize(("command", "begun"), [("serve", "pcct serves"), ("work", "the store is away")])
def test_processes_name_a_store_that_is_away_and_end_at_two_interrupts(command: str, begun: str) -> None:
    arguments = [command, "--port", "0"] if command == "serve" else [command]
    with subprocess.Popen(
        [sys.executable, "-m", "service.cli", *arguments],
        env=os.environ | {"PCCT_REDIS_URL": "redis://me:hunter2@127.0.0.1:1/0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        told = []
        for line in process.stdout:
            told.append(line)
            if begun in line:
                break
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert "start it, or correct PCCT_REDIS_URL" in told[0]
    assert "redis://…@127.0.0.1:1/0" in told[0]
    for word in ("hunter2", "Traceback"):
        assert word not in "".join(told) + rest


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (" redis://127.0.0.1:1", "begins or ends with a space or a line's end; write redis://127.0.0.1:1"),
        ("rediss://:secret@host:1\n", "begins or ends with a space or a line's end; write rediss://…@host:1"),
        ("REDIS://:secret@host:1", "its scheme is in capitals; write redis://…@host:1"),
    ],
)
def test_an_address_with_a_slip_is_shown_without_it(
    pcct: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, url: str, words: str
) -> None:
    monkeypatch.setenv("PCCT_REDIS_URL", url)
    check_one_line(pcct("serve"), words)


def test_help_lists_the_commands(pcct: Callable[..., Outcome]) -> None:
    for arguments in ((), ("--help",), ("-h",)):
        outcome = pcct(*arguments)
        assert outcome.status == 0
        for command in ("up", "serve", "work", "graph", "guardrail", "bench", "telemetry"):
            assert f"  {command} " in outcome.out


def test_import_is_light() -> None:
    code = (
        "import sys, service.cli; heavy = {'numpy', 'numba', 'fastapi', 'uvicorn', 'redis', 'docket', 'pydantic'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


def test_bench_passes_options_and_exit_status_on(pcct: Callable[..., Outcome]) -> None:
    assert pcct("bench", "--help").status == 0
    assert pcct("bench", "--case", "nothing").status == 2


def test_bench_says_that_it_needs_a_source_checkout(
    pcct: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("service.cli.__file__", str(tmp_path / "service" / "cli.py"))
    check_one_line(pcct("bench"), "source checkout", "make bench", status=1)
