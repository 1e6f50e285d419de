"""`pcct telemetry render`: what a build did, from the file that holds its record.

A record is a JSON object with `telemetry` (and `certificate`, if there is one), or a telemetry itself: a line of `pcct bench`,
the answer of `GET /v1/graphs/{id}`, the report of `pcct guardrail --json`. A file holds one such object, or one a line, or is
the .npz file of `pcct graph`, which holds one as text.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.sources import RECORD, InvalidFile

if TYPE_CHECKING:
    from rich.table import Table

_ZIP = b"PK\x03\x04"
_GATE = "gate1_"


@dataclass(frozen=True)
class Record:
    """One build. title: what was built. seconds: by phase. counts: by name. certificate: one line, or None."""

    title: str
    seconds: dict[str, float]
    counts: dict[str, int]
    certificate: str | None

    def phase_rows(self) -> list[tuple[str, str, str]]:
        """Return (phase, seconds, share of all phases) in the order they ran, and their sum where there are several."""
        total_s = sum(self.seconds.values())
        phases = list(self.seconds.items())
        if len(phases) > 1:
            phases.append(("total", total_s))
        return [(name, f"{taken_s:.6f} s", f"{_share(taken_s, total_s):.1%}") for name, taken_s in phases]

    def count_rows(self) -> list[tuple[str, str]]:
        """Return (name, value) of every counter."""
        return [(name, f"{value:,}") for name, value in self.counts.items()]


def print_records(path: Path) -> None:
    """Print every record of the file: tables on a terminal, aligned lines elsewhere. Raises InvalidFile."""
    records = read_records(path)
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        for record in records:
            console.print(record.title, style="bold", markup=False, highlight=False)
            if record.seconds or record.counts:
                console.print(_table(record))
            else:
                console.print("no telemetry", style="dim")
            if record.certificate is not None:
                console.print(
                    f"certificate: {record.certificate}", markup=False, highlight=False, soft_wrap=True, end="\n\n"
                )
    else:
        print("\n\n".join(_lines(record) for record in records))


def read_records(path: Path) -> list[Record]:
    """Return the records of the file; raises InvalidFile when it cannot be read or holds none."""
    try:
        with path.open("rb") as file:
            zipped = file.read(len(_ZIP)) == _ZIP
        text = _record_of_graph(path) if zipped else path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{path} is not text; name a JSON or JSONL record, or the .npz of `pcct graph`") from error
    return [_read_record(path, where, item) for where, item in _parse(path, text)]


def _record_of_graph(path: Path) -> str:
    try:
        # np.load leaves a file open that it opened itself and cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            record = str(arrays[RECORD]) if RECORD in arrays.files else None
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InvalidFile(f"{path} is a damaged .npz file ({error}); build the graph again") from error
    if record is None:
        raise InvalidFile(f"{path} holds no record of its build; `pcct graph` writes one into the file it makes")
    return record


def _parse(path: Path, text: str) -> list[tuple[str, Any]]:
    """Return (place, object) of the whole text as JSON, or else of its lines."""
    try:
        return [("", json.loads(text))]
    except ValueError:
        pass
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append((f" line {number}", json.loads(line)))
        except ValueError as error:
            raise InvalidFile(
                f"{path} line {number} is not JSON ({error}); name a file of telemetry records"
            ) from error
    if not found:
        raise InvalidFile(f"{path} is empty; name a file of telemetry records")
    return found


def _read_record(path: Path, where: str, item: Any) -> Record:
    if not isinstance(item, Mapping) or not ({"telemetry", "certificate"} & item.keys() or "seconds" in item):
        raise InvalidFile(
            f"{path}{where} holds no telemetry; a record is an object with 'telemetry', or with 'seconds' and 'counts'"
        )
    telemetry = item.get("telemetry", item if "seconds" in item else None)
    known = item.get("certificate")
    try:
        seconds = {str(name): float(value) for name, value in (telemetry or {}).get("seconds", {}).items()}
        counts = {str(name): int(value) for name, value in (telemetry or {}).get("counts", {}).items()}
        certificate = None if known is None else describe_certificate(known)
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidFile(
            f"{path}{where} has a telemetry or certificate that is not a record of pcct ({error})"
        ) from error
    return Record(_title(item) or path.name, seconds, counts, certificate)


def _title(item: Mapping[str, Any]) -> str:
    """Return what the record says of itself: a benchmark's case, a graph's id, a graph's specification."""
    for place, name in ((item.get("case"), "name"), (item, "id")):
        if isinstance(place, Mapping) and isinstance(place.get(name), str):
            return str(place[name])
    spec = item.get("spec")
    if not isinstance(spec, Mapping):
        return ""
    metric = spec.get("metric")
    wanted = f"radius={spec['radius']:g}" if isinstance(spec.get("radius"), float) else f"k={spec.get('k')}"
    words = [spec.get("kind"), wanted, metric.get("type") if isinstance(metric, Mapping) else None]
    return " ".join(str(word) for word in words if word is not None)


def describe_certificate(certificate: Mapping[str, Any]) -> str:
    """Return the certificate as one line.

    Known fields become words, others follow as name=value: a newer release may certify more.
    """
    rest = dict(certificate)
    parts = [f"{rest.pop('method', 'unknown')} in {rest.pop('dtype', 'unknown')}"]
    exact = rest.pop("exact", None)
    if exact is not None:
        parts.append("exact" if exact else "not exact")
    if {"recall", "recall_lower", "confidence"} <= rest.keys():
        lower, confidence = float(rest.pop("recall_lower")), float(rest.pop("confidence"))
        parts.append(f"recall {float(rest.pop('recall')):.5f}, at least {lower:.5f} at {confidence:.0%}")
    if {"missed_neighbors", "audited_queries"} <= rest.keys():
        rows, pairs = f"{rest.pop('audited_queries'):,}", rest.pop("audited_pairs", None)
        # Certificates of earlier releases audited whole rows.
        audited = f"{rows} audited rows" if pairs is None else f"{pairs:,} audited pairs of {rows} rows"
        parts.append(f"{rest.pop('missed_neighbors'):,} missed in {audited}")
    if {"gate1_candidates", "gate1_pruned"} <= rest.keys():
        pairs, pruned = int(rest.pop("gate1_candidates")), int(rest.pop("gate1_pruned"))
        rest.pop("gate1_kept", None)
        parts.append(
            f"gate pruned {_share(pruned, pairs):.1%} of {pairs:,} pairs" if pruned else f"{pairs:,} pairs compared"
        )
    parts += [f"{name.removeprefix(_GATE).replace('_', ' ')} {value}" for name, value in rest.items()]
    return "; ".join(parts)


def _lines(record: Record) -> str:
    phases, counts = record.phase_rows(), record.count_rows()
    names = max((len(row[0]) for row in [*phases, *counts]), default=0)
    values = max((len(row[1]) for row in phases), default=0)
    lines = [record.title]
    lines += [f"  {name:<{names}}  {taken:>{values}}  {share:>6}" for name, taken, share in phases]
    lines += [f"  {name:<{names}}  {value:>{values}}" for name, value in counts]
    if not phases and not counts:
        lines.append("  no telemetry")
    if record.certificate is not None:
        lines.append(f"  certificate: {record.certificate}")
    return "\n".join(lines)


def _table(record: Record) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("phase or counter", no_wrap=True)
    table.add_column("seconds or count", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    phases = record.phase_rows()
    for row in phases:
        table.add_row(*map(escape, row), style="bold" if row[0] == "total" else None)
    if phases:
        table.add_section()
    for name, value in record.count_rows():
        table.add_row(escape(name), value, "")
    return table


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
