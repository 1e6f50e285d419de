"""Docstrings as the site shows them: the lines `name: meaning` of the house style become a list."""

import re
from typing import Any

import griffe

_FIELD = re.compile(r"^(\w+(?:, \w+)*):\s+(\S.*)$")


class Fields(griffe.Extension):
    """Rewrites every docstring that is read from source."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = fields_as_list(obj.docstring.value)


def fields_as_list(text: str) -> str:
    """Return the text with each field, and the indented lines that go on with it, as an item of a Markdown list."""
    lines: list[str] = []
    inside = fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        field = None if fenced else _FIELD.match(line)
        if field:
            lines += ([] if inside else [""]) + [f"- `{field[1]}`: {field[2]}"]
        elif inside and line.startswith(" "):
            lines.append(f"  {line.strip()}")
        else:
            lines += ["", line] if inside and line else [line]
        inside = field is not None or (inside and line.startswith(" "))
    return "\n".join(lines)
