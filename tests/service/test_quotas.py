"""What one namespace may take: each limit refuses with its fact and fix, and leaves the others alone."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

import numpy as np
import pytest

from pcct_core.errors import InvalidSpec
from pcct_core.spec import GraphSpec
from service.crowd import Crowd, TooManyAtOnce
from service.intake import check_wish
from service.settings import ServiceSettings
from worker.cost import build_bytes
from worker.keys import Keys
from worker.store import Dataset

pytestmark = pytest.mark.anyio

POINTS = np.random.default_rng(3).random((30, 2))
RESIDUAL = {"type": "residual", "kernel": "matern52", "lengthscale": 0.3, "inducing": {"count": 20}}


@pytest.mark.parametrize(
    ("kind", "n", "d", "k", "m", "measured"),
    [
        ("knn", 200_000, 2, 30, 0, 84e6),
        ("vecchia", 200_000, 2, 30, 0, 88e6),
        ("vecchia", 20_000, 3, 10, 512, 150e6),
        ("vecchia", 100_000, 2, 1, 0, 28.4e6),
        ("knn", 60_000, 3, 1, 8, 26.3e6),
    ],
)
def test_build_bytes_is_above_what_was_measured_and_below_twice_that(kind, n, d, k, m, measured):
    """measured: growth of the resident set while the graph was built, and the points, on two cores."""
    assert measured <= build_bytes(n, d, k, m) <= 2 * measured


@pytest.mark.parametrize(
    ("n", "d", "k", "m", "given", "grouped", "measured"),
    [(11_612, 17, 31, 322, True, False, 90e6), (75_872, 9, 1, 0, False, True, 52e6)],
)
def test_build_bytes_counts_given_factors_and_the_room_of_groups(n, d, k, m, given, grouped, measured):
    assert measured <= build_bytes(n, d, k, m, given=given, grouped=grouped) <= 3 * measured
    assert build_bytes(n, d, k, m, given=given, grouped=grouped) > 1.15 * build_bytes(n, d, k, m)


def test_the_door_counts_given_factors_and_groups():
    named = {"dataset": "a" * 64}
    factors = {"type": "residual", "kernel": "rbf", "v": "a" * 64, "p": "b" * 64}
    V = Dataset("a" * 64, 1000, 50, "float64", 400_000)
    for spec, references in (({"k": 3, "metric": factors}, [V]), ({"k": 3, "groups": named}, [])):
        size = build_bytes(1000, 2, 3, 50 * bool(references), given=bool(references), grouped=not references)
        for limit, fits in ((size, True), (size - 1, False)):
            settings = ServiceSettings(_env_file=None, max_build_bytes=limit)
            with nullcontext() if fits else pytest.raises(InvalidSpec, match=f"about {size} bytes"):
                check_wish(1000, 2, GraphSpec.from_json(spec), settings, references)


@pytest.mark.parametrize(
    ("n", "d", "k", "inducing", "fits"),
    [
        (1_000_000, 2, 50, None, True),
        (1_000_000, 3, 30, None, True),
        (4_000_000, 3, 30, None, False),
        (1_000_000, 2, 200, None, False),
        (65_536, 3, 30, 512, True),
        (1_000_000, 3, 30, 512, False),
    ],
)
def test_defaults_leave_a_machine_of_4_gb_room(n, d, k, inducing, fits, monkeypatch):
    monkeypatch.setattr("service.settings.usable_memory", lambda: 4 << 30)
    metric = {"type": "euclidean"} if inducing is None else RESIDUAL | {"inducing": {"count": inducing}}
    spec = GraphSpec.from_json({"kind": "knn", "k": k, "metric": metric})
    settings = ServiceSettings(_env_file=None)
    assert 2 * settings.max_build_bytes + settings.max_body_bytes <= 4 << 30
    if fits:
        check_wish(n, d, spec, settings)
    else:
        with pytest.raises(InvalidSpec):
            check_wish(n, d, spec, settings)


async def test_builds_over_the_memory_that_is_allowed_are_refused_before_they_are_queued(start_service):
    limit = build_bytes(30, 2, 3, 10)
    async with start_service(max_build_bytes=limit, worker=False) as service:
        dataset = await service.upload(POINTS)
        inducing = await service.upload(POINTS[:20])
        small = RESIDUAL | {"inducing": {"count": 10}}
        assert (await service.ask(dataset, None, kind="knn", k=3, metric=small)).status_code == 202
        stored = RESIDUAL | {"inducing": {"dataset": inducing}}
        for metric in (RESIDUAL, stored):
            wish = {"kind": "knn", "k": 3, "metric": metric}
            answers = [
                await service.ask(dataset, None, **wish),
                await service.client.post("/v1/tracks", json={"dataset": dataset, "spec": wish}),
            ]
            for answer in answers:
                assert answer.status_code == 422
                body = answer.json()
                assert body["field"] == "metric.inducing"
                assert str(limit) in body["detail"]
                assert "use fewer inducing points" in body["detail"]
        text = '{"type":"residual","kernel":"rbf","lengthscale":0.3,"inducing":{"count":30}}'
        for url in ("/v1/knn", f"/v1/datasets/{dataset}/query"):
            answer = await service.client.post(url, params={"k": 3, "metric": text}, json=POINTS.tolist())
            assert (answer.status_code, answer.json()["field"]) == (422, "metric.inducing"), url
        answer = await service.ask(dataset, None, kind="knn", k=29)
        assert (answer.status_code, answer.json()["field"]) == (422, "k")
        assert "use a smaller k or fewer points" in answer.json()["detail"]


async def test_jobs_over_the_limit_are_429_and_what_is_queued_or_there_is_still_answered(start_service):
    async with start_service(max_jobs=2) as service:
        service.gate.hold()
        dataset = await service.upload(POINTS)
        for k in (1, 2):
            assert (await service.ask(dataset, None, kind="knn", k=k)).status_code == 202
        refused = await service.ask(dataset, None, kind="knn", k=3)
        assert (refused.status_code, refused.json()["type"]) == (429, "/problems/too-many-jobs")
        assert refused.headers["retry-after"]
        assert (await service.ask(dataset, None, kind="knn", k=2)).status_code == 202
        service.gate.release()
        assert (await service.ask(dataset, kind="knn", k=2)).json()["state"] == "ready"
        while True:
            again = await service.ask(dataset, kind="knn", k=3)
            if again.status_code != 429:
                break
            await asyncio.sleep(0.01)  # the last job has published and is about to end
        assert again.json()["state"] == "ready"


async def test_long_polls_and_streams_over_the_limit_are_429_and_end_when_others_do(start_service):
    async with start_service(max_waits=1, worker=False) as service:
        dataset = await service.upload(POINTS)
        graph = (await service.ask(dataset, None, kind="knn", k=2)).json()["id"]
        wish = {"dataset": dataset, "spec": {"kind": "vecchia", "k": 2}}
        track = (await service.client.post("/v1/tracks", json=wish)).json()["id"]
        waiting = asyncio.create_task(service.client.get(f"/v1/graphs/{graph}", headers={"Prefer": "wait=20"}))
        crowd = service.app.state.backend.crowd
        while True:
            if crowd._present:
                break
            await asyncio.sleep(0.01)
        for url in (f"/v1/graphs/{graph}", f"/v1/tracks/{track}"):
            answer = await service.client.get(url, headers={"Prefer": "wait=20"})
            assert (answer.status_code, answer.json()["type"]) == (429, "/problems/too-many-at-once")
            assert (await service.client.get(url)).status_code == 200
        assert (await service.client.get(f"/v1/tracks/{track}/events")).status_code == 429
        await service.client.delete(f"/v1/graphs/{graph}")
        await waiting
        assert not crowd._present


def test_a_crowd_of_one_namespace_leaves_the_others_their_room():
    crowd = Crowd({"wait": 2, "one-shot": 1})
    with crowd.present("a", "wait"), crowd.present("a", "wait"):
        with pytest.raises(TooManyAtOnce, match="PCCT_MAX_WAITS"), crowd.present("a", "wait"):
            pass
        with crowd.present("b", "wait"), crowd.present("a", "one-shot"):
            pass
    assert not crowd._present


async def test_jobs_are_counted_by_namespace(start_service, redis):
    async with start_service(max_jobs=1, worker=False) as service:
        await redis.hset(Keys.shares("interactive"), "other", 5)
        dataset = await service.upload(POINTS)
        assert (await service.ask(dataset, None, kind="knn", k=1)).status_code == 202
        assert (await service.ask(dataset, None, kind="knn", k=2)).status_code == 429
