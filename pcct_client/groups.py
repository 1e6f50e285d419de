"""Labels that say which points belong together: neighbors are then looked for among points of the same label alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcct_client.errors import InvalidArray
from pcct_client.frames import is_frame, listed
from pcct_client.geometry import is_geometry

_MISSING = ("NoneType", "NaTType", "NAType", "MaskedConstant")
_SHOWN = 60  # characters of a label in a message


def take_groups(
    data: Any, columns: Sequence[str] | None, spec: Mapping[str, Any]
) -> tuple[Sequence[str] | None, dict[str, Any]]:
    """Return the columns that hold coordinates, and a spec with labels in place of the name of their column.

    data: points. columns: as the caller names them, None for all. A column that holds labels is no coordinate.
    Raises InvalidArray where spec names a column that is not there.
    """
    name = spec.get("groups")
    if not isinstance(name, str):
        return columns, dict(spec)
    if not is_frame(data):
        raise InvalidArray(
            f"groups is {name!r}, the name of a column, but the points are no data frame; "
            "give the labels themselves, one for every point"
        )
    there = list(data.columns)
    if name not in there:
        raise InvalidArray(f"groups is {name!r}, but there is no such column; the frame has {listed(there)}")
    if columns is None and not is_geometry(getattr(data, "geometry", None)):
        columns = [column for column in there if column != name]
    return columns, {**spec, "groups": data[name]}


def number_groups(labels: Any) -> NDArray[np.float64]:
    """Return a column, (n, 1), that numbers the groups by their first rows, from 0, as `pcct_core` does.

    labels: numbers, strings, times, or any objects that can be keys of a dictionary, one for every point; equal ones are one
    group. Raises InvalidArray naming the first row without a label.
    """
    if isinstance(labels, list | tuple):
        values = list(labels)
    else:
        array = labels if isinstance(labels, np.ma.MaskedArray) else np.asarray(labels)
        if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != 1):
            raise InvalidArray(f"groups has shape {array.shape}; give one label for every point, as (n,)")
        values = array.reshape(-1).tolist()  # a masked one becomes None
    numbers: dict[Any, int] = {}
    codes = np.empty((len(values), 1))
    for row, label in enumerate(values):
        try:
            if type(label).__name__ in _MISSING or bool(label != label):
                raise InvalidArray(
                    f"row {row} of groups is {label}; give every point a label, such as one that such points share"
                )
            codes[row] = numbers.setdefault(label, len(numbers))
        except (TypeError, ValueError) as error:
            if isinstance(error, InvalidArray):
                raise
            raise InvalidArray(
                f"row {row} of groups is {label!r:.{_SHOWN}}, which is no label; use numbers, strings or times"
            ) from None
    return codes
