"""The service does what its OpenAPI document says: schemathesis sends what fits it, and what does not."""

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import schemathesis
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from service.app import create_app
from service.settings import ServiceSettings

schema = schemathesis.openapi.from_dict(create_app(ServiceSettings()).openapi())


@schemathesis.serializer("application/x-npy", "application/x-safetensors", "application/vnd.apache.arrow.stream")
def as_bytes(_context: object, value: Any) -> bytes:
    """Send binary formats as generated: noise, which must be refused like any other wrong array."""
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")


@pytest.fixture(scope="module")
def url(embedded_url: str, serve: Callable[..., AbstractAsyncContextManager[Any]]) -> Iterator[str]:
    """The service behind a real server, with a worker, for all of these tests."""
    waits = {"max_wait_s": 0.1, "oneshot_wait_s": 0.1}
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serve(embedded_url, **waits)) as service:
        yield str(service.client.base_url)


@schema.parametrize()
@settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_every_operation_answers_as_documented(case, url):
    # What a schema cannot say, such as k < n or a dataset that is there, is refused with 422 or 404.
    case.call_and_validate(base_url=url, timeout=20, excluded_checks=[positive_data_acceptance])
