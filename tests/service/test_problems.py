import pytest
from redis.exceptions import BusyLoadingError, ConnectionError

from service.problems import PROBLEMS, problem_of

pytestmark = pytest.mark.anyio


def test_problem_types_are_one_per_meaning():
    titles = {}
    for problem in PROBLEMS.values():
        assert titles.setdefault(problem.slug, problem.title) == problem.title
        assert problem.slug == problem.slug.lower()


def test_problem_of_follows_the_inheritance():
    assert problem_of(BusyLoadingError()) is PROBLEMS[ConnectionError]
    assert problem_of(ZeroDivisionError()).status == 500


@pytest.mark.parametrize(
    ("method", "url", "status", "slug"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("GET", "/v1/nothing", 404, "not-found"),
        ("PATCH", "/v1/datasets", 405, "method-not-allowed"),
        ("GET", "/v1/knn", 405, "method-not-allowed"),
    ],
)
async def test_unknown_routes_and_methods_are_problems(service, method, url, status, slug):
    answer = await service.client.request(method, url)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"/problems/{slug}"
    assert answer.json()["status"] == status
    assert status != 405 or answer.headers["allow"]


async def test_a_refused_method_names_those_of_every_route_at_the_path(service):
    answer = await service.client.put(f"/v1/datasets/{'0' * 64}")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD, DELETE, OPTIONS"
    assert answer.json()["detail"].endswith("use GET, HEAD, DELETE, OPTIONS")


async def test_unexpected_errors_do_not_show_their_inside(service, monkeypatch):
    async def fail(id):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(service.app.state.backend.store, "dataset", fail)
    answer = await service.client.get(f"/v1/datasets/{'0' * 64}")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "/problems/internal-error"
    assert "secret" not in answer.text
