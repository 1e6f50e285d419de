"""A few of the requests of `tests/fuzz/ask.py`, which `make fuzz` sends by the ten thousand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.anyio

_SPEC = importlib.util.spec_from_file_location("ask", Path(__file__).parents[1] / "fuzz/ask.py")
ask = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(ask)


@pytest.mark.parametrize("seed", [1, 2])
async def test_fuzzed_requests_are_answered_and_never_by_a_fault_of_ours(start_service, seed):
    async with start_service(max_wait_s=0.1, oneshot_wait_s=5) as service:
        statuses = await ask.fuzz(service.client, seed, 300)
    assert 200 in statuses
    assert {status for status in statuses if status >= 500} <= {503}
