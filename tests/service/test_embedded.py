from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from service.embedded import EmbeddedStore, EmbeddedStoreError
from service.processes import Lifeline


@pytest.fixture
def lifeline() -> Iterator[Lifeline]:
    lifeline = Lifeline()
    yield lifeline
    lifeline.close()


@pytest.fixture
def store(tmp_path: Path, lifeline: Lifeline) -> Iterator[EmbeddedStore]:
    # Longer than a socket's path may be.
    store = EmbeddedStore(tmp_path / ("long" * 30) / "data", lifeline)
    yield store
    store.stop()


def test_start_keeps_what_was_written(store: EmbeddedStore) -> None:
    store.start()
    with Redis.from_url(store.url) as client:
        client.set("kept", b"\0" * 100_000)
    store.stop()
    assert store.pid is None
    store.start()
    with Redis.from_url(store.url) as client:
        assert client.strlen("kept") == 100_000


def test_start_listens_on_a_private_socket_only(store: EmbeddedStore) -> None:
    store.start()
    path = Path(store.url.removeprefix("unix://"))
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert store.data_dir.stat().st_mode & 0o777 == 0o700
    with Redis.from_url(store.url) as client:
        assert client.config_get("port")["port"] == "0"
    store.stop()
    assert not path.parent.exists()


def test_start_twice_on_one_directory_names_the_other(store: EmbeddedStore, lifeline: Lifeline) -> None:
    store.start()
    with pytest.raises(EmbeddedStoreError, match=f"in use by another pcct \\(process {os.getpid()}\\)"):
        EmbeddedStore(store.data_dir, lifeline).start()
    with Redis.from_url(store.url) as client:
        assert client.ping()


def test_start_in_a_place_that_is_no_directory(tmp_path: Path, lifeline: Lifeline) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedStoreError, match=r"cannot be used .*choose another with --data-dir"):
        EmbeddedStore(tmp_path / "file" / "data", lifeline).start()


def test_start_on_damaged_files_says_where_the_log_is(store: EmbeddedStore) -> None:
    directory = store.data_dir / "appendonlydir"
    directory.mkdir(parents=True)
    (directory / "appendonly.aof.manifest").write_text("nonsense")
    with pytest.raises(EmbeddedStoreError, match=r"did not start: .*its log is .*valkey\.log"):
        store.start()


def test_look_after_starts_a_dead_server_again(store: EmbeddedStore) -> None:
    store.start()
    with Redis.from_url(store.url) as client:
        client.set("kept", "yes")  # answered, so with the kernel: nothing to wait for
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
    line = None
    while line is None:
        line = store.look_after()
        time.sleep(0.01)
    assert "embedded store ended unexpectedly" in line
    assert value_after_restart(store) == b"yes"


def value_after_restart(store: EmbeddedStore) -> bytes:
    """Look after the store until it answers again."""
    with Redis.from_url(store.url) as client:
        while True:
            store.look_after()
            with suppress(RedisError):
                return client.get("kept")
            time.sleep(0.02)


def test_server_ends_with_a_parent_that_is_killed(tmp_path: Path, lifeline: Lifeline) -> None:
    code = (
        "import sys, time; from pathlib import Path; from service.embedded import EmbeddedStore;"
        "from service.processes import Lifeline; store = EmbeddedStore(Path(sys.argv[1]), Lifeline()); store.start();"
        "print(store.url, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        url = parent.stdout.readline().strip()
        with Redis.from_url(url) as client:
            client.set("kept", "yes")
        parent.kill()
    # The lock goes only with the server, and the next start waits for it.
    store = EmbeddedStore(tmp_path, lifeline)
    store.start()
    try:
        with Redis.from_url(store.url) as client:
            assert client.get("kept") == b"yes"
        assert not Path(url.removeprefix("unix://")).parent.exists()
    finally:
        store.stop()
