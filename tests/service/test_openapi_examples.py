"""The OpenAPI document is complete, and its examples work when they are tried from top to bottom."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from pcct_core.certificate import Certificate
from pcct_core.graph import build_graph
from pcct_core.spec import GraphSpec, Matern32, Residual
from service.app import create_app
from service.openapi import GRAPH_ID, POINTS, QUERIES, RADIUS, TAGS
from service.settings import ServiceSettings

pytestmark = pytest.mark.anyio

DOCUMENT = create_app(ServiceSettings()).openapi()
OPERATIONS = [
    (method, path, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()
]
STREAMS = {"/v1/tracks/{track_id}/events"}


def test_example_answers_are_true() -> None:
    """By brute force, as far as four digits tell."""
    points, paths = np.array(POINTS), DOCUMENT["paths"]
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    np.fill_diagonal(distances, np.inf)
    check_nearest(example_of(paths["/v1/knn"]["post"]), distances)
    vecchia = example_of(paths["/v1/vecchia"]["post"])
    ranked = distances[np.ix_(vecchia["order"], vecchia["order"])]
    check_nearest(vecchia, np.where(np.tri(8, k=-1, dtype=bool), ranked, np.inf))
    assert example_of(paths["/v1/graphs/{graph_id}/arrays"]["get"]) == vecchia
    within = example_of(paths["/v1/radius"]["post"])
    rows, columns = np.nonzero(distances <= RADIUS)
    assert within["offsets"] == [0, *np.cumsum(np.bincount(rows, minlength=8))]
    assert np.array_equal(np.sort(np.multiply(100, rows) + within["neighbors"]), 100 * rows + columns)
    assert np.allclose(within["distances"], distances[rows, within["neighbors"]], atol=6e-5)
    queries = np.linalg.norm(np.array(QUERIES)[:, None] - points, axis=2)
    check_nearest(example_of(paths["/v1/datasets/{dataset_id}/query"]["post"]), queries)


def example_of(operation: dict[str, Any]) -> Any:
    return operation["responses"]["200"]["content"]["application/json"]["example"]


def check_nearest(example: dict[str, Any], distances: np.ndarray) -> None:
    """The example names the three nearest by a matrix of distances, to one decimal of the fourth digit."""
    neighbors, told = np.array(example["neighbors"]), np.array(example["distances"], float)
    nearest = np.sort(distances, axis=1)[:, :3]
    assert np.array_equal(neighbors < 0, np.isinf(nearest))
    assert np.allclose(np.where(np.isnan(told), np.inf, told), nearest, atol=6e-5)
    named = np.take_along_axis(distances, np.maximum(neighbors, 0), axis=1)
    assert np.allclose(np.where(neighbors < 0, np.inf, named), nearest)


@pytest.mark.parametrize(
    ("method", "path", "operation"), OPERATIONS, ids=lambda value: value if type(value) is str else ""
)
def test_every_operation_says_all_of_itself(method: str, path: str, operation: dict[str, Any]) -> None:
    name = operation["operationId"].removesuffix(f"_{method}").split("_v1")[0].replace("_", " ")
    assert operation["summary"].lower() not in (name, ""), "give it a summary"
    assert len(operation["description"]) > 20
    assert operation["tags"][0] in [tag["name"] for tag in TAGS]
    for parameter in operation.get("parameters", []):
        assert parameter.get("description"), f"describe {parameter['name']}"
    for media, form in operation.get("requestBody", {}).get("content", {}).items():
        assert media != "application/json" or "example" in form
    for status, answer in operation["responses"].items():
        assert "X-Request-Id" in answer["headers"]
        assert answer["description"]
        for media, form in answer.get("content", {}).items():
            binary = form.get("schema", {}).get("format") == "binary"
            assert binary or "example" in form or media == "application/vnd.apache.arrow.stream", (status, media)


def test_headers_are_documented_where_they_matter() -> None:
    def headers(method: str, path: str, status: str) -> set[str]:
        return set(DOCUMENT["paths"][path][method]["responses"][status]["headers"])

    assert {"ETag", "Cache-Control", "Array-Dtype"} <= headers("get", "/v1/graphs/{graph_id}/{name}", "200")
    assert "ETag" in headers("get", "/v1/tracks/{track_id}", "304")
    assert {"Location", "Retry-After", "Preference-Applied"} <= headers("post", "/v1/graphs", "202")
    assert "Retry-After" in headers("get", "/livez", "5XX")
    named = {
        name
        for _, _, operation in OPERATIONS
        for answer in operation["responses"].values()
        for name in answer["headers"]
    }
    assert set(DOCUMENT["components"]["headers"]) <= named
    parameters = {p["name"].lower() for p in DOCUMENT["paths"]["/v1/graphs/{graph_id}/arrays"]["get"]["parameters"]}
    assert "if-none-match" in parameters


async def test_examples_work_from_top_to_bottom(service: Any) -> None:
    known: dict[str, str] = {}
    later = [item for item in OPERATIONS if item[0] == "delete"]  # as they stand they would remove what others need
    for method, path, operation in [item for item in OPERATIONS if item not in later] + later:
        if path in STREAMS:
            continue
        url, query, headers = fill(path, operation, known)
        form = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        accept = next(iter(operation["responses"].get("200", {}).get("content", {"*/*": None})))
        body = {"json": form["example"]} if form else {}
        answer = await service.client.request(method, url, params=query, headers={**headers, "Accept": accept}, **body)
        assert answer.status_code < 300, (method, url, answer.text)
        documented = operation["responses"][str(answer.status_code)]
        check_answer(answer, documented, (method, path))
        if path == "/v1/tracks":
            known["track_id"] = answer.json()["id"]


def fill(path: str, operation: dict[str, Any], known: dict[str, str]) -> tuple[str, dict[str, Any], dict[str, str]]:
    """URL, query and headers with what the form in the browser holds at first."""
    filled = {
        (parameter["in"], parameter["name"]): known.get(
            parameter["name"], parameter.get("example", parameter["schema"].get("default"))
        )
        for parameter in operation.get("parameters", [])
    }
    path = path.replace("/problems/{name}", "/problems/graph-not-ready")
    url = re.sub(r"{(\w+)}", lambda found: str(filled["path", found[1]]), path)
    query = {name: value for (place, name), value in filled.items() if place == "query" and value is not None}
    headers = {name: value for (place, name), value in filled.items() if place == "header" and value is not None}
    return url, query, headers


def check_answer(answer: Any, documented: dict[str, Any], where: object) -> None:
    """The answer has the form and the keys of the example, and no header of ours that is not documented."""
    ours = {"etag", "location", "retry-after", "preference-applied", "content-location", "x-request-id", "array-dtype"}
    assert ours & set(answer.headers) <= {name.lower() for name in documented["headers"]}, where
    media = answer.headers.get("content-type", "").partition(";")[0]
    if not answer.content:
        return
    example = documented["content"][media]["example"]
    if media == "application/json" and isinstance(example, dict):
        real = answer.json()
        if real.get("state") != "ready" or example["state"] == "ready":
            built = {"telemetry", "certificate"}  # by the tests' own builds, which tell less
            told, said = ({name: body[name] for name in body if name not in built} for body in (real, example))
            assert fields_of(told) == fields_of(said), where
        for key in ("id", "dataset", "graph", "spec", "state", "n", "d", "dtype", "bytes"):
            if key in example and example[key] is not None and where != ("post", "/v1/tracks"):
                assert (key == "id" and "track" in str(where)) or real[key] == example[key], (where, key)
    if where == ("get", "/v1/graphs/{graph_id}/{name}"):
        assert len(answer.json()) == len(POINTS)
        assert answer.request.url.path == f"/v1/graphs/{GRAPH_ID}/neighbors"


def test_the_example_of_a_certificate_has_every_field_that_there_is() -> None:
    schema = DOCUMENT["components"]["schemas"]["GraphBody"]["properties"]["certificate"]
    (example,) = schema["examples"]
    assert set(example) == {field.name for field in dataclasses.fields(Certificate)}
    points = np.random.default_rng(0).random((60, 2))
    dense = build_graph(points, GraphSpec("knn", 3, Residual(Matern32(0.2), 8))).certificate.to_json()
    assert {name for name in dense if type(dense[name]) is not type(example[name])} == set()


def test_the_example_of_a_graph_tells_of_its_build_what_the_build_tells() -> None:
    example = example_of(DOCUMENT["paths"]["/v1/graphs"]["post"])
    graph = build_graph(np.array(POINTS), GraphSpec.from_json(example["spec"]))
    assert example["certificate"] == graph.certificate.to_json()
    assert fields_of(example["telemetry"]) == fields_of(graph.telemetry.to_json())
    described = {name: (array.dtype.name, list(array.shape)) for name, array in graph.arrays().items()}
    assert {name: (told["dtype"], told["shape"]) for name, told in example["arrays"].items()} == described


def fields_of(value: Any, name: str = "") -> set[str]:
    """Return the names of all fields, those within others after a point."""
    if not isinstance(value, dict):
        return set()
    return {f"{name}{key}" for key in value}.union(*(fields_of(each, f"{name}{key}.") for key, each in value.items()))


async def test_the_page_for_the_browser_needs_no_network(service: Any) -> None:
    page = await service.client.get("/docs")
    links = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""", page.text)
    assert links
    assert not [link for link in links if "//" in link]
    for link in links:
        answer = await service.client.get(link)
        assert answer.status_code == 200, link
        assert answer.content
