"""The OpenAPI document takes the fields that the door takes, and its examples use words that there are."""

import json
from itertools import zip_longest
from typing import Any, get_args

import numpy as np
import pytest

from pcct_core.spec import KINDS, METRICS, ORDERS
from service.app import create_app
from service.settings import ServiceSettings
from worker.store import State
from worker.tracks import SCHEDULES, Outcome, Reason

pytestmark = pytest.mark.anyio

DOCUMENT = create_app(ServiceSettings()).openapi()
WORDS: dict[str, tuple[str, ...]] = {
    "decision": get_args(Outcome),
    "reason": get_args(Reason),
    "state": get_args(State),
    "schedule": SCHEDULES,
    "order": ORDERS,
    "kind": (*KINDS, "query"),
}
BODIES = {
    "/v1/graphs": (
        (),
        ("spec",),
        ("spec", "metric"),
        ("spec", "accuracy"),
        ("spec", "groups"),
        ("spec", "metric", "inducing"),
    ),
    "/v1/tracks": ((), ("spec",), ("spec", "metric"), ("policy",)),
    "/v1/tracks/{track_id}/refresh": ((), ("metric",)),
}
PLACES = [(path, place) for path, places in BODIES.items() for place in places]


def check_words(value: Any) -> None:
    """Fail for a member whose words are numbered in the code and that has another one."""
    if isinstance(value, list):
        for item in value:
            check_words(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name in WORDS and isinstance(item, str):
                assert item in WORDS[name], (name, item)
            if name == "metric" and isinstance(item, dict) and "type" in item:
                assert item["type"] in METRICS
            check_words(item)


def examples_in(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [found for item in value for found in examples_in(item)]
    if not isinstance(value, dict):
        return []
    own = [value["example"]] if "example" in value else []
    return own + [found for item in value.values() for found in examples_in(item)]


async def test_every_example_uses_words_that_there_are() -> None:
    examples = examples_in(DOCUMENT["paths"])
    assert len(examples) > 20
    for example in examples:
        check_words(example)


def object_at(path: str, place: tuple[str, ...]) -> dict[str, Any]:
    """Return the schema of the object at a place of a request's body."""
    schema = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for name, following in zip_longest(place, place[1:]):
        schema = schema["properties"][name]
        objects = [each for each in schema.get("anyOf", [schema]) if each.get("type") == "object"]
        schema = next((each for each in objects if following is None or following in each["properties"]), schema)
    return schema


def fits(schema: dict[str, Any], value: Any) -> bool:
    """Return True when a value has the members that a schema lets it have, in some of its forms."""
    if "anyOf" in schema:
        return any(fits(each, value) for each in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if schema.get("type") == "object":
        known = schema["properties"]
        there = isinstance(value, dict) and set(schema.get("required", ())) <= set(value) <= set(known)
        return there and all(fits(known[name], value[name]) for name in value)
    types: dict[Any, Any] = {"integer": int, "number": int | float, "string": str, "array": list, "null": type(None)}
    return schema.get("type") not in types or isinstance(value, types[schema["type"]])


def places_of(value: Any, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the places of all objects in a value."""
    if not isinstance(value, dict):
        return []
    return [before, *(place for name, each in value.items() for place in places_of(each, (*before, name)))]


RESIDUAL = {"type": "residual", "kernel": "rbf", "lengthscale": 0.3, "variance": 2.0}
SPECS: list[dict[str, Any]] = [
    {"k": 3},
    {"k": 3, "metric": {"type": "haversine"}},
    {"k": 3, "metric": {"type": "cosine"}},
    {"kind": "vecchia", "k": 3, "order": {"by": "random"}, "metric": {"type": "euclidean", "lengthscale": [1, 2]}},
    {"kind": "vecchia", "k": 3, "order": {"by": "given", "dataset": "d"}, "groups": {"dataset": "d"}},
    {"kind": "vecchia", "k": 3, "metric": RESIDUAL | {"inducing": 4}, "accuracy": {"recall": 0.9, "confidence": 0.9}},
    {"kind": "vecchia", "k": 3, "metric": {"type": "residual", "kernel": {"type": "rbf"}, "inducing": {"count": 4}}},
    {"kind": "vecchia", "k": 3, "metric": RESIDUAL | {"inducing": {"dataset": "d"}}},
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", ["colour", "lengthscale", "variance", "seed", "dataset", "by", "count", "radius"])
async def test_the_document_takes_a_further_member_where_the_door_knows_it(service, spec, name):
    schema = object_at("/v1/graphs", ("spec",))
    dataset = await service.upload(np.random.default_rng(0).random((20, 2)))
    assert fits(schema, spec)
    for place in places_of(spec):
        asked = json.loads(json.dumps(spec).replace('"d"', f'"{dataset}"'))
        inner = asked
        for step in place:
            inner = inner[step]
        if name in inner:
            continue
        inner[name] = dataset if name == "dataset" else 1
        said = (await service.client.post("/v1/graphs", json={"dataset": dataset, "spec": asked})).json()
        unknown = "unknown field" in said.get("detail", "")
        assert fits(schema, asked) or unknown or said.get("status") == 422, (asked, said)
        assert not (unknown and fits(schema, asked)), (asked, said)


def filled(place: tuple[str, ...], name: str, dataset: str, path: str) -> dict[str, Any]:
    """Return a body that is whole but for one more member at a place."""
    metric = {"type": "residual", "kernel": "rbf"} if "inducing" in place else {"type": "euclidean"}
    body: dict[str, Any] = {"dataset": dataset, "spec": {"k": 3, "metric": metric}}
    if path.endswith("refresh"):
        body = {}
    inner = body
    for step in place:
        inner = inner.setdefault(step, {})
    inner.setdefault(name, ["another type"])
    return body


@pytest.mark.parametrize(("path", "place"), PLACES)
async def test_fields_that_the_door_refuses_are_not_in_the_document_and_those_in_it_are_known(service, path, place):
    schema = object_at(path, place)
    assert schema["additionalProperties"] is False
    dataset = await service.upload(np.random.default_rng(0).random((20, 2)))
    track = await service.client.post("/v1/tracks", json={"dataset": dataset, "spec": {"k": 3}})
    url = path.replace("{track_id}", track.json()["id"])
    answer = await service.client.post(url, json=filled(place, "colour", dataset, path))
    assert answer.status_code == 422
    assert "colour" in answer.json()["field"]
    for name in schema["properties"]:
        said = (await service.client.post(url, json=filled(place, name, dataset, path))).json().get("detail", "")
        # A field of another metric or kind is refused by the metric or kind that has it not.
        belongs_elsewhere = place[-1:] == ("metric",) or name == "queries"
        assert belongs_elsewhere or "unknown field" not in said, said


UNBUILDABLE = ("0", "-1", "-0.0", "1e-400", "1e400", '"wide"', "true", "NaN", "Infinity")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("variance", text) for text in (*UNBUILDABLE, "null", "[1, 2]")),
        *(("lengthscale", text) for text in (*UNBUILDABLE, "[0.1, 0]", "[]")),
    ],
)
async def test_a_hyperparameter_that_cannot_be_built_is_refused_at_the_door(service, name, text):
    dataset = await service.upload(np.random.default_rng(0).random((20, 2)))
    spec = {"k": 3, "metric": {"type": "residual", "kernel": "rbf", "inducing": 5}}
    track = await service.client.post("/v1/tracks", json={"dataset": dataset, "spec": spec})
    metric = f'{{"type": "residual", "kernel": "rbf", "{name}": {text}}}'
    asked = f'{{"dataset": "{dataset}", "spec": {{"k": 3, "metric": {metric}}}}}'
    for url, body in (
        ("/v1/tracks", asked),
        ("/v1/graphs", asked),
        (f"/v1/tracks/{track.json()['id']}/refresh", f'{{"metric": {{"{name}": {text}}}}}'),
    ):
        answer = await service.client.post(url, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, (url, answer.text)
        assert answer.json()["field"] == f"metric.{name}", answer.text


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/json"}])
@pytest.mark.parametrize("body", [b"", b"{}", b" \n"])
async def test_a_refresh_without_a_body_is_one_without_wishes(service, headers, body):
    dataset = await service.upload(np.random.default_rng(0).random((20, 2)))
    track = await service.client.post("/v1/tracks", json={"dataset": dataset, "spec": {"k": 3}})
    url = f"/v1/tracks/{track.json()['id']}/refresh"
    answer = await service.client.post(url, content=body, headers=headers)
    assert answer.status_code in (200, 202), answer.text
    refused = await service.client.post("/v1/graphs", content=b"")
    assert refused.status_code == 422
