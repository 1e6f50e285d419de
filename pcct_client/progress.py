"""How a long call gets on: told to a callback, or drawn as a bar where somebody looks at a terminal."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

Progress: TypeAlias = Callable[[str, dict[str, Any]], None]
ProgressOption: TypeAlias = Progress | Literal[False] | None

_PATIENCE_S = 0.5  # a call that is over sooner draws nothing
_WORDS = {"uploading": "uploading points", "queued": "waiting for a worker", "running": "building"}


@contextmanager
def watched(progress: ProgressOption) -> Iterator[Progress | None]:
    """Give the function to tell how a call gets on, None when nobody listens; draws until the block ends.

    progress: that function, False for silence, or None for a bar if standard error is a terminal and rich is installed.
    """
    if progress is None and sys.stderr is not None and sys.stderr.isatty() and importlib.util.find_spec("rich"):
        bar = Bar()
        try:
            yield bar.show
        finally:
            bar.stop()
    else:
        yield progress or None


class Bar:
    """A bar of rich, gone when it stops. console: instead of standard error."""

    def __init__(self, console: Any = None, patience_s: float = _PATIENCE_S) -> None:
        self._console = console
        self._begins = time.monotonic() + patience_s
        self._drawn: Any = None
        self._task: Any = None
        self._said = ""

    def show(self, state: str, progress: dict[str, Any]) -> None:
        """Draw a state of a call, and how far it is if that is known."""
        if time.monotonic() < self._begins:
            return
        if self._drawn is None:
            self._start()
        phase = progress.get("phase") if state == "running" else None
        said = _WORDS.get(state, state) + (f": {phase}" if phase else "")
        total = progress.get("total") or None
        if said != self._said:
            self._said = said
            self._drawn.reset(self._task, description=said, total=total)
        self._drawn.update(self._task, completed=progress.get("done") or 0, total=total)

    def stop(self) -> None:
        """Take the bar away."""
        if self._drawn is not None:
            self._drawn.stop()

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Drawn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._drawn = Drawn(*columns, console=self._console or Console(stderr=True), transient=True)
        self._task = self._drawn.add_task("", total=None)
        self._drawn.start()
