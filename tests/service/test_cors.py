import numpy as np
import pytest

pytestmark = pytest.mark.anyio

PAGE = "https://maps.example"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "prefer"}


async def test_pages_of_other_origins_are_not_allowed_by_default(service):
    answer = await service.client.get("/livez", headers={"Origin": PAGE})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origins", [PAGE, f"https://other.example, {PAGE}/"])
async def test_named_origins_may_call_and_read_headers(start_service, origins):
    async with start_service(cors_origins=origins) as service:
        asked = await service.client.options("/v1/graphs", headers=PREFLIGHT)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == PAGE
        graph = await service.graph(np.random.default_rng(0).random((9, 2)), k=2)
        answer = await service.client.get(f"/v1/graphs/{graph}/neighbors", headers={"Origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "ETag" in answer.headers["access-control-expose-headers"]
        assert {"accept", "origin"} <= {part.strip().lower() for part in answer.headers["vary"].split(",")}
        stranger = await service.client.get("/livez", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers


async def test_errors_may_be_read_by_pages_too(start_service):
    async with start_service(cors_origins="*") as service:
        answer = await service.client.get("/nowhere", headers={"Origin": PAGE})
        assert answer.status_code == 404
        assert answer.headers["access-control-allow-origin"] == "*"
