"""Writes the table of settings in README.md, beside this file, from the settings classes.

`--check` only compares: exit status 1 when the table is not what it would write.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pydantic.fields import FieldInfo

from service.settings import ServiceSettings
from worker.settings import SharedSettings, WorkerSettings

GUIDE = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- settings: written by settings_table.py -->\n", "<!-- settings end -->"
_UNITS = {"_s": "seconds", "_bytes": "bytes"}


def render_table() -> str:
    """Return the table: every setting with unit, default, who reads it and what it means."""
    lines = ["| variable | unit | default | read by | meaning |", "|---|---|---|---|---|"]
    for readers, fields in (
        ("API, workers", SharedSettings.model_fields),
        ("API", ServiceSettings.model_fields),
        ("workers", WorkerSettings.model_fields),
    ):
        for name, setting in fields.items():
            if readers == "API, workers" or name not in SharedSettings.model_fields:
                unit = next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "")
                cells = (f"`PCCT_{name.upper()}`", unit, _default(name, setting), readers, _meaning(setting, unit))
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _default(name: str, setting: FieldInfo) -> str:
    value = setting.default
    if setting.default_factory is not None or value is None:
        _, found, words = (setting.description or "").rpartition("Default: ")
        return words.rstrip(".") if found else "not set"
    if name.endswith("_bytes"):
        return _size(value)
    return f"{value:g}" if isinstance(value, float) else str(value) or "empty"


def _size(count: int) -> str:
    """Return bytes in the largest unit that divides them."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count and count % (1 << shift) == 0:
            return f"{count >> shift} {unit}"
    return str(count)


def _meaning(setting: FieldInfo, unit: str) -> str:
    """Return the description without default and unit, which have columns of their own, and safe inside a table."""
    words, _, _ = (setting.description or "").rpartition(" Default: ")
    plain = (words or setting.description or "").removesuffix(".")
    return re.sub(rf"[,;] {unit or '$'}(?=$|;)", "", plain).replace("|", "\\|")


def main() -> int:
    """Write or compare, and return the exit status."""
    before, _, rest = GUIDE.read_text().partition(BEGIN)
    old, _, after = rest.partition(END)
    if old == (new := render_table()):
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{GUIDE} does not list the settings as they are; run: python deploy/settings_table.py", file=sys.stderr)
        return 1
    GUIDE.write_text(before + BEGIN + new + END + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
