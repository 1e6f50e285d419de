"""/livez and /readyz: is this process alive; can it do its work."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import BaseModel

from service.backend import InOpenBackend
from service.problems import NotReady

router = APIRouter(tags=["health"])


class ReadyBody(BaseModel):
    """What was found: jobs that wait or run, workers alive, and how many of those are ready for most graphs.

    compiling: parts of the machine code that every worker still waits for; graphs that need them wait too.
    """

    status: str
    jobs: int
    workers: int
    warm_workers: int
    compiling: list[str]


@router.head("/livez", include_in_schema=False)
@router.get("/livez")
async def read_livez() -> dict[str, str]:
    """Say that this process answers."""
    return {"status": "alive"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"description": "A problem that names what is missing"}})
async def read_readyz(response: Response, backend: InOpenBackend) -> ReadyBody:
    """Say that the store and the queue answer and that a warm worker is there; 503 with what is missing otherwise."""
    response.headers["Cache-Control"] = "no-store"
    await backend.store.check_layout()
    jobs = await backend.queue.depth() + await backend.refreshes.depth()
    warning = await backend.warning()
    if warning is not None:
        raise NotReady(warning)
    workers = await backend.store.workers()
    return ReadyBody(
        status="ready",
        jobs=jobs,
        workers=len(workers),
        warm_workers=sum(worker.warm for worker in workers),
        compiling=sorted(set.intersection(*(set(worker.compiling) for worker in workers if worker.warm))),
    )
