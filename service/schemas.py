"""JSON schemas of what is asked for: the fields that the door knows, and no others.

Which fields go together, and how large they may be, the door says; here stands what every one of them is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from pcct_core.spec import KERNELS, KINDS, METRICS, ORDERS, GraphSpec
from worker.query import QuerySpec
from worker.tracks import SCHEDULES, RefreshPolicy


def _closed(properties: dict[str, Any], required: Iterable[str] = ()) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | {"required": list(required)} if required else schema


_NUMBER: dict[str, Any] = {"type": "number"}
_SCALE: dict[str, Any] = {"anyOf": [_NUMBER, {"type": "array", "items": _NUMBER}]}
_ID: dict[str, Any] = {"type": "string", "description": "id of a dataset"}
_STORED = _closed({"dataset": _ID}, ["dataset"])
_KERNEL: dict[str, Any] = {"enum": list(KERNELS)}
_HYPERPARAMETERS: dict[str, Any] = {"lengthscale": _SCALE, "variance": _NUMBER}
_INDUCING: dict[str, Any] = {
    "anyOf": [{"type": "integer"}, _closed({name: {} for name in ("count", "method", "seed")}), _STORED]
}


def _of_type(name: str, fields: dict[str, Any], required: Iterable[str] = ()) -> dict[str, Any]:
    """Return the schema of a metric's object with the fields that go together."""
    return _closed({"type": {"enum": [name]}, **fields}, ["type", *required])


def _residual_forms() -> list[dict[str, Any]]:
    """Return the residual metric's objects: its kernel by name or whole, with inducing points or with given factors."""
    kernels = (
        {"kernel": _KERNEL, **_HYPERPARAMETERS},
        {"kernel": _closed({"type": _KERNEL, **_HYPERPARAMETERS}, ["type"])},
    )
    tails = (({"inducing": _INDUCING}, ()), ({"v": _ID, "p": _ID}, ("v", "p")))
    least = {"jitter": _NUMBER, "floor": _NUMBER}
    return [
        _of_type("residual", kernel | tail | least, ["kernel", *needed]) for kernel in kernels for tail, needed in tails
    ]


_METRIC_OBJECTS = [
    _of_type("euclidean", {"lengthscale": _SCALE}),
    _of_type("haversine", {}),
    _of_type("cosine", {}),
    *_residual_forms(),
]
_KNOWN: dict[str, Any] = {
    "kind": {"enum": [*KINDS, "query"]},
    "k": {"type": "integer"},
    "radius": _NUMBER,
    "metric": {"anyOf": [{"enum": list(METRICS)}, *_METRIC_OBJECTS]},
    "order": {
        "anyOf": [
            {"enum": list(ORDERS)},
            _closed({"by": {"enum": list(ORDERS)}}, ["by"]),
            _closed({"by": {"enum": ["given"]}, "dataset": _ID}, ["by", "dataset"]),
        ]
    },
    "seed": {"type": "integer"},
    "accuracy": {"anyOf": [{"enum": ["exact"]}, _NUMBER, _closed({"recall": _NUMBER, "confidence": _NUMBER})]},
    "groups": {"anyOf": [_STORED, {"type": "null"}]}
    | {
        "description": "a dataset (n, 1) of whole numbers, equal for points of one group: neighbors are of the same group"
    },
    "schedule": {"enum": list(SCHEDULES)},
}


def _named(names: Iterable[str]) -> dict[str, Any]:
    return {name: _KNOWN.get(name, {}) for name in sorted(set(names))}


GRAPH_SPEC = _closed(_named(field.name for field in fields(GraphSpec)))
# POST /v1/graphs takes queries too.
WISH = _closed(_named([*GRAPH_SPEC["properties"], "kind", *(field.name for field in fields(QuerySpec))]))
POLICY = _closed(_named(field.name for field in fields(RefreshPolicy)))
# Of a refresh: hyperparameters alone, or the whole metric, or nothing.
_MOVED = {name: schema for form in _METRIC_OBJECTS for name, schema in form["properties"].items()}
MOVED_METRIC: dict[str, Any] = {
    "anyOf": [_closed(_MOVED | {"type": {"enum": list(METRICS)}, "kernel": _KERNEL}), {"type": "null"}]
}
