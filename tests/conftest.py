"""What every room's tests share: one embedded Valkey per session, empty at the start of each test that uses it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# A shell that runs the tests in the background has them ignore Ctrl-C, which some of them press.
signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from redis.asyncio import Redis


def pytest_configure(config: pytest.Config) -> None:
    """Compile before several processes run the tests: each would else compile for itself."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        from worker.compiling import SHIFTS

        print("compiling, once for all test processes", flush=True)
        commands = [[sys.executable, "-P", "-m", "pcct_core.warm", *shift] for shift in SHIFTS]
        with ExitStack() as compiling:
            opened = [subprocess.Popen(command, stdin=subprocess.PIPE) for command in commands]
            compilers = [compiling.enter_context(compiler) for compiler in opened]
            assert [compiler.wait() for compiler in compilers] == [0] * len(compilers)


@pytest.fixture
def folder_of_namesakes(tmp_path: Path) -> Iterator[Path]:
    """A folder as users have them, with modules named as ours and as those that we import; fails where one has been run."""
    folder = tmp_path / "namesakes"
    trace = folder / "was run"
    names = ("service/__init__", "service/cli", "service/selftest", "pcct_core/__init__", "worker", "redis", "numpy")
    for name in names:
        module = folder / f"{name}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(f"open({str(trace)!r}, 'a').write({name!r} + ' ')\nraise SystemExit({name!r})\n")
    yield folder
    assert not trace.exists(), trace.read_text()


@pytest.fixture(scope="session")
def embedded_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the real embedded store for the session; its URL."""
    from service.embedded import EmbeddedStore
    from service.processes import Lifeline

    lifeline = Lifeline()
    store = EmbeddedStore(tmp_path_factory.mktemp("valkey"), lifeline)
    store.start()
    yield store.url
    store.stop()
    lifeline.close()


@pytest.fixture
def valkey_url(embedded_url: str) -> str:
    """The URL of an empty store."""
    from redis import Redis

    with Redis.from_url(embedded_url) as client:
        client.flushall()
    return embedded_url


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    """A client of the empty store."""
    from redis.asyncio import Redis

    async with Redis.from_url(valkey_url) as client:
        yield client
