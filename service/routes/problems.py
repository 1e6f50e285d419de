"""/problems: what the `type` of every problem means, as pages for people and JSON for programs; `docs/PROBLEMS.md` too.

`python -m service.routes.problems > docs/PROBLEMS.md` writes that page anew.
"""

from __future__ import annotations

import html
import re
import sys
from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel

from service.prefix import link
from service.problems import JOB_PROBLEMS, Problem, UnknownProblem, every_problem, problem_type
from service.wire import JSON, choose_format

HTML = "text/html"

router = APIRouter(prefix="/problems", tags=["problems"])

_CACHE = {"Cache-Control": "public, max-age=3600", "Vary": "Accept"}
_STYLE = "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}code{background:#eee}"


class ProblemPage(BaseModel):
    """What a kind of problem means. example: a `detail` as it is answered. retry_after_s: null when waiting does not help."""

    type: str
    title: str
    status: int
    cause: str
    fix: str
    example: str
    retry_after_s: int | None

    @classmethod
    def of(cls, problem: Problem) -> ProblemPage:
        """Return the page of one row of the table."""
        return cls(
            type=problem_type(problem.slug),
            title=problem.title,
            status=problem.status,
            cause=problem.cause,
            fix=problem.fix,
            example=problem.example,
            retry_after_s=problem.retry_after_s,
        )


_EXAMPLE = ProblemPage.of(every_problem()["graph-not-ready"]).model_dump()
_PAGE = {HTML: {"schema": {"type": "string"}, "example": "<!doctype html><title>The graph is not finished</title>"}}


@router.head("", include_in_schema=False)
@router.get(
    "",
    summary="List all kinds of problems",
    response_model=list[ProblemPage],
    responses={200: {"description": "Every kind", "content": {JSON: {"example": [_EXAMPLE]}, **_PAGE}}},
)
async def list_problems(request: Request) -> Response:
    """List every kind of problem that this service answers, as HTML where `Accept` prefers that."""
    rows = every_problem().values()
    if choose_format(request.headers.get("accept"), (JSON, HTML)) == JSON:
        return JSONResponse([ProblemPage.of(row).model_dump() for row in rows], headers=_CACHE)
    items = "".join(
        f'<li>{int(row.status)} <a href="{problem_type(row.slug)}">{html.escape(row.title, quote=False)}</a>'
        for row in rows
    )
    return _page("Problems", f"<ul>{items}</ul>")


@router.head("/{name}", include_in_schema=False)
@router.get(
    "/{name}",
    summary="Explain one kind of problem",
    response_model=ProblemPage,
    responses={200: {"description": "Cause, fix and an example", "content": {JSON: {"example": _EXAMPLE}, **_PAGE}}},
)
async def read_problem(name: str, request: Request) -> Response:
    """Say what a problem's `type` means, what to do, and how it looks; HTML where `Accept` prefers that."""
    problem = every_problem().get(name)
    if problem is None:
        raise UnknownProblem(f"there is no problem {name!r}; GET /problems lists all")
    if choose_format(request.headers.get("accept"), (JSON, HTML)) == JSON:
        return JSONResponse(ProblemPage.of(problem).model_dump(), headers=_CACHE)
    rows = "".join(f"<dt><b>{word}</b><dd>{_html(text)}" for word, text in _facts(problem))
    return _page(
        problem.title,
        f'<dl>{rows}</dl><p><a href="{link("/problems")}">All problems</a> · <a href="{link("/docs")}">API</a>',
    )


def problems_markdown() -> str:
    """Return `docs/PROBLEMS.md`."""
    lines = [
        "# Problems",
        "",
        "Every error over HTTP is `application/problem+json` (RFC 9457). Its `type` is a stable name to branch on, and a",
        "path of the service that answers with what stands here. `python -m service.routes.problems` makes this page.",
    ]
    for problem in every_problem().values():
        lines += ["", f"## {problem.slug}", "", f"**{problem.title}.** {problem.cause}", ""]
        lines += [f"- {word}: {text}" for word, text in _facts(problem)[1:]]
    return "\n".join(lines) + "\n"


def _facts(problem: Problem) -> list[tuple[str, str]]:
    status = HTTPStatus(problem.status)
    where = "; as the `error` of a graph or track" if problem in JOB_PROBLEMS else ""
    facts = [
        ("Cause", problem.cause),
        ("Status", f"{int(status)} {status.phrase}{where}"),
        ("Fix", problem.fix),
        ("Example", f"`{problem.example}`" if "`" not in problem.example else problem.example),
    ]
    wait = problem.retry_after_s
    return facts if wait is None else [*facts, ("Retry-After", f"{wait} s; the same request may succeed then")]


def _html(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _page(title: str, body: str) -> HTMLResponse:
    head = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title, quote=False)} · pcct</title>'
    )
    return HTMLResponse(
        f"{head}<style>{_STYLE}</style><h1>{html.escape(title, quote=False)}</h1>{body}</html>", headers=_CACHE
    )


if __name__ == "__main__":
    sys.stdout.write(problems_markdown())
