"""JSON schemas of what is asked for: the fields that the door knows, and no others.

Which fields go together, and how large they may be, the door says; here stands what every one of them is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from pcct_core.spec import KERNELS, KINDS, METRICS, GraphSpec
from worker.query import QuerySpec
from worker.tracks import SCHEDULES, RefreshPolicy


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


_NUMBER: dict[str, Any] = {"type": "number"}
_SCALE: dict[str, Any] = {"anyOf": [_NUMBER, {"type": "array", "items": _NUMBER}]}
_ID: dict[str, Any] = {"type": "string", "description": "id of a dataset"}
_METRIC_FIELDS: dict[str, Any] = {
    "type": {"enum": list(METRICS)},
    "lengthscale": _SCALE,
    "kernel": {"enum": list(KERNELS)},
    "variance": _NUMBER,
    "inducing": {
        "anyOf": [{"type": "integer"}, _closed({name: {} for name in ("count", "method", "seed", "dataset")})]
    },
    "jitter": _NUMBER,
    "floor": _NUMBER,
    "v": _ID,
    "p": _ID,
}
_KNOWN: dict[str, Any] = {
    "kind": {"enum": [*KINDS, "query"]},
    "k": {"type": "integer"},
    "radius": _NUMBER,
    "metric": {"anyOf": [{"enum": list(METRICS)}, {"type": "object", "required": ["type"]}]},
    "seed": {"type": "integer"},
    "accuracy": {"anyOf": [{"enum": ["exact"]}, _NUMBER, _closed({"recall": _NUMBER, "confidence": _NUMBER})]},
    "groups": {"anyOf": [_closed({"dataset": _ID}), {"type": "null"}]}
    | {
        "description": "a dataset (n, 1) of whole numbers, equal for points of one group: neighbors are of the same group"
    },
    "schedule": {"enum": list(SCHEDULES)},
}


def _named(names: Iterable[str]) -> dict[str, Any]:
    return {name: _KNOWN.get(name, {}) for name in sorted(set(names))}


_KNOWN["metric"]["anyOf"][1] |= _closed(_METRIC_FIELDS)

GRAPH_SPEC = _closed(_named(field.name for field in fields(GraphSpec)))
# POST /v1/graphs takes queries too.
WISH = _closed(_named([*GRAPH_SPEC["properties"], "kind", *(field.name for field in fields(QuerySpec))]))
POLICY = _closed(_named(field.name for field in fields(RefreshPolicy)))
# Of a refresh: hyperparameters alone, or the whole metric, or nothing.
MOVED_METRIC: dict[str, Any] = {"anyOf": [_closed(_METRIC_FIELDS), {"type": "null"}]}
