"""What the columns of datasets are called that this process has sent: the service keeps numbers alone.

A dataset's id says its values, and not what somebody calls them. So queries against an id are matched with the names that its
points had here, all of them where equal points came under several; another process knows none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

_KEPT_DATASETS = 4096


class Naming(NamedTuple):
    """names: of the columns, None where they have none. crs, lacks_crs: as in `frames.Columns`."""

    names: tuple[Any, ...] | None
    crs: Any
    lacks_crs: bool


# Without a lock, which a thread of the parent could hold at a fork.
_known: dict[str, tuple[Naming, ...]] = {}


def remember_names(dataset: str, naming: Naming) -> None:
    """Keep what the columns of a dataset are called, beside what they were called before; the oldest datasets are forgotten.

    An array of the same numbers, whose columns have no names, takes none away.
    """
    others = tuple(each for each in _known.pop(dataset, ()) if each.names not in (None, naming.names))
    _known[dataset] = others if others and naming.names is None else (naming, *others)
    while len(_known) > _KEPT_DATASETS:
        _known.pop(next(iter(_known)), None)


def names_of(dataset: str) -> tuple[Naming, ...]:
    """Return what the columns of a dataset are called, the latest first; nothing for one that was not sent from here."""
    return _known.get(dataset, ())
