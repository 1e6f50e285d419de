from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcct_core.spec import GraphSpec, Inducing, Matern52, Residual
from service.cli import main
from service.local import InvalidFile, build_file
from service.telemetry import describe_certificate, print_records, read_records

GATED = {
    "method": "gated",
    "dtype": "float64",
    "exact": False,
    "recall": 0.99995,
    "recall_lower": 0.99908,
    "confidence": 0.95,
    "audited_queries": 3465,
    "missed_neighbors": 7,
    "degenerate_rows": 2,
    "gate1_candidates": 1000,
    "gate1_kept": 60,
    "gate1_pruned": 940,
    "gate1_false_negatives": 7,
    "gate1_widenings": 1,
}
TELEMETRY = {"seconds": {"order": 0.25, "scan": 0.75}, "counts": {"n": 32768, "threads": 2}}
LINE = {"schema": 1, "case": {"name": "rbf-d3-32k"}, "certificate": GATED, "telemetry": TELEMETRY}
RENDERED = """rbf-d3-32k
  order    0.250000 s   25.0%
  scan     0.750000 s   75.0%
  total    1.000000 s  100.0%
  n            32,768
  threads           2
  certificate: gated in float64; not exact; recall 0.99995, at least 0.99908 at 95%; 7 missed in 3,465 audited rows; \
gate pruned 94.0% of 1,000 pairs; degenerate rows 2; false negatives 7; widenings 1
"""


def write(path: Path, *items: Any) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def test_print_records_writes_aligned_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_records(write(tmp_path / "one.jsonl", LINE))
    assert capsys.readouterr().out == RENDERED


def test_describe_certificate_says_how_many_pairs_were_audited() -> None:
    line = describe_certificate(GATED | {"audited_pairs": 1_490_254, "audited_queries": 31_055, "missed_neighbors": 0})
    assert "; 0 missed in 1,490,254 audited pairs of 31,055 rows; " in line


def test_print_records_writes_every_line_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maximin = {"case": {"name": "maximin-d2-32k"}, "certificate": None, "telemetry": None}
    print_records(write(tmp_path / "two.jsonl", LINE, maximin))
    assert capsys.readouterr().out == RENDERED + "\nmaximin-d2-32k\n  no telemetry\n"


def test_print_records_draws_a_table_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "one.jsonl", LINE | {"case": {"name": "[red]knn"}}, LINE | {"telemetry": None})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_records(path)
    shown = capsys.readouterr().out
    assert "[red]knn" in shown
    assert "phase or counter" in shown
    assert "32,768" in shown
    assert "no telemetry" in shown
    assert shown.count(RENDERED.splitlines()[-1].strip()) == 2  # on one line, however wide


@pytest.mark.parametrize(
    ("item", "title"),
    [
        (TELEMETRY, "record.json"),
        ({"telemetry": TELEMETRY}, "record.json"),
        ({"id": "c0ffee", "state": "ready", "certificate": GATED, "telemetry": TELEMETRY}, "c0ffee"),
        ({"spec": GraphSpec(k=7).to_json(), "telemetry": TELEMETRY}, "knn k=7 euclidean"),
    ],
)
def test_read_records_takes_a_single_record(tmp_path: Path, item: dict[str, Any], title: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(item, indent=2))
    (record,) = read_records(path)
    assert record.title == title
    assert record.seconds == TELEMETRY["seconds"]
    assert record.counts == TELEMETRY["counts"]


def test_read_records_takes_the_file_of_pcct_graph(tmp_path: Path) -> None:
    np.save(tmp_path / "points.npy", np.random.default_rng(0).random((50, 2)))
    spec = GraphSpec("vecchia", 3, Residual(Matern52(0.3), Inducing(10)))
    build_file(tmp_path / "points.npy", spec, tmp_path / "graph.npz")
    (record,) = read_records(tmp_path / "graph.npz")
    assert record.title == "vecchia k=3 residual"
    assert {"order", "factors", "scan"} <= record.seconds.keys()
    assert record.counts["n"] == 50
    assert record.certificate is not None
    assert record.certificate.startswith("dense in float64; exact; 1,225 pairs compared")


def test_describe_certificate_keeps_what_it_does_not_know() -> None:
    assert describe_certificate({"method": "tree", "dtype": "float32", "exact": True, "shards": 4}) == (
        "tree in float32; exact; shards 4"
    )


BAD = {
    "missing": (None, "No such file"),
    "empty": (b"", "is empty"),
    "blank": (b"\n\n", "is empty"),
    "points": (b"\x93NUMPY\x01", "is not text"),
    "prose": (b"order 0.25 s", "line 1 is not JSON"),
    "second line": (json.dumps(LINE).encode() + b"\n{", "line 2 is not JSON"),
    "number": (b"7", "holds no telemetry"),
    "list": (b"[]", "holds no telemetry"),
    "other object": (b'{"neighbors": []}', "holds no telemetry"),
    "second object": (json.dumps(LINE).encode() + b"\n{}", "line 2 holds no telemetry"),
    "text for seconds": (b'{"seconds": "many"}', "is not a record of pcct"),
    "text for a time": (b'{"seconds": {"scan": "long"}}', "is not a record of pcct"),
    "text for certificate": (b'{"telemetry": null, "certificate": "yes"}', "is not a record of pcct"),
    "text for recall": (json.dumps(LINE | {"certificate": GATED | {"recall": "all"}}).encode(), "not a record of pcct"),
    "zip": (b"PK\x03\x04 and no more", "damaged .npz"),
}


@pytest.mark.parametrize("case", BAD)
def test_read_records_refuses_wrong_files(tmp_path: Path, case: str) -> None:
    content, words = BAD[case]
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidFile, match=words) as caught:
        read_records(path)
    assert str(path) in str(caught.value)


def test_read_records_refuses_arrays_without_a_record(tmp_path: Path) -> None:
    np.savez(tmp_path / "graph.npz", neighbors=np.zeros((2, 1), np.int32))
    with pytest.raises(InvalidFile, match="no record of its build; `pcct graph` writes one"):
        read_records(tmp_path / "graph.npz")


def test_read_records_refuses_a_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="directory"):
        read_records(tmp_path)


def test_telemetry_render_exits_with_0_or_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(path: Path) -> Any:
        monkeypatch.setattr(sys, "argv", ["pcct", "telemetry", "render", str(path)])
        with pytest.raises(SystemExit) as exit:
            main()
        return exit.value.code

    assert render(write(tmp_path / "one.jsonl", LINE)) == 0
    assert capsys.readouterr().out == RENDERED
    assert render(tmp_path / "none.jsonl") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pcct: ")
    assert captured.err.count("\n") == 1
