"""Pages made from code: the HTTP interface, the command and the settings, as Markdown."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

from service.app import create_app
from service.cli import app
from service.settings import ServiceSettings

sys.path.insert(0, str(Path(__file__).parents[2] / "deploy"))
from settings_table import render_table


def cli_page() -> str:
    """Return the page of the command: its help, for every subcommand."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="pcct"), name="pcct")
    text = re.sub(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+\n", "", text)  # the page's own contents lists them, unabridged
    return text.replace("# `pcct`", "# Command line", 1)


def settings_page() -> str:
    """Return the page of the settings: the table of the deployment guide."""
    return f"# Settings\n\nEnvironment variables, all optional; an empty one counts as not set.\n\n{render_table()}"


def http_page() -> str:
    """Return the page of the HTTP interface, from the OpenAPI document."""
    document = create_app(ServiceSettings()).openapi()
    described = {tag["name"]: tag.get("description", "") for tag in document.get("tags", [])}
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            text = "\n".join(_operation(method, path, operation, document))
            by_tag.setdefault((operation.get("tags") or ["other"])[0], []).append(text)
    lines = ["# HTTP", "", document["info"]["description"], ""]
    lines += [
        "The service shows the same at `/docs`, to try out, and as `/openapi.json`, to generate clients from.",
        "",
    ]
    for tag, operations in by_tag.items():
        lines += [f"## {tag.capitalize()}", "", described.get(tag, ""), "", *operations]
    return "\n".join(lines)


def _operation(method: str, path: str, operation: dict[str, Any], document: dict[str, Any]) -> Iterator[str]:
    yield from (f"### {method.upper()} {path}", "", operation.get("summary", "") + ".", "")
    yield from (operation.get("description", ""), "")
    parameters = [_resolve(each, document) for each in operation.get("parameters", [])]
    if parameters:
        yield from ("| parameter | in | default | meaning |", "|---|---|---|---|")
        for each in parameters:
            schema = each.get("schema", {})
            default = f"`{json.dumps(schema['default'])}`" if schema.get("default") is not None else ""
            required = "" if not each.get("required") else "required. " if each["in"] != "path" else ""
            yield f"| `{each['name']}` | {each['in']} | {default} | {required}{_cell(each.get('description', ''))} |"
        yield ""
    body = _resolve(operation.get("requestBody", {}), document).get("content", {})
    if body:
        yield from (f"Body: {', '.join(f'`{each}`' for each in body)}.", "")
        yield from _example(body)
    yield from ("| answer | meaning | formats |", "|---|---|---|")
    for status, answer in operation["responses"].items():
        answer = _resolve(answer, document)
        name = f"{status} {HTTPStatus(int(status)).phrase}" if status.isdigit() else status
        headers = ", ".join(f"`{each}`" for each in answer.get("headers", {}))
        said = f"{_cell(answer.get('description', '')).rstrip('.')}." + (f" Headers: {headers}." if headers else "")
        yield f"| {name} | {said} | {', '.join(f'`{each}`' for each in answer.get('content', {}))} |"
    yield ""
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            yield from _example(_resolve(answer, document).get("content", {}))


def _example(content: dict[str, Any]) -> Iterator[str]:
    """Yield the first JSON example of a body or an answer."""
    media = content.get("application/json", {})
    examples = [each.get("value") for each in media.get("examples", {}).values()]
    example = media.get("example", examples[0] if examples else None)
    if example is not None:
        text = json.dumps(example, indent=2, ensure_ascii=False)
        text = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda row: f"[{' '.join(row[1].split())}]", text)
        yield from ("```json", text, "```", "")


def _resolve(node: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """Return what a `$ref` points at, or the node itself."""
    if "$ref" not in node:
        return node
    for step in node["$ref"].removeprefix("#/").split("/"):
        document = document[step]
    return document


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
