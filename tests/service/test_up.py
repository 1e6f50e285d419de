import asyncio
import queue
import socket
from pathlib import Path

import pytest

from service import up
from service.up import open_listener

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("handed_down", [False, True])
async def test_open_listener_makes_connections_that_send_at_once(handed_down):
    listener = open_listener("127.0.0.1", 0)
    if handed_down:
        listener = socket.socket(fileno=listener.detach())
    accepted = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), sock=listener)
    _, ours = await asyncio.open_connection(*listener.getsockname())
    theirs = await accepted
    option = theirs.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    for writer in (ours, theirs):
        writer.close()
        await writer.wait_closed()
    server.close()
    await server.wait_closed()
    assert option != 0


def test_teller_says_again_and_again_what_is_waited_for(monkeypatch):
    monkeypatch.setattr(up, "_SAY_EVERY_S", 0.01)
    said = queue.Queue()
    with up._Teller("pcct is starting", said.put) as teller:
        assert said.get(timeout=60) == "pcct is starting, 0 s"
        teller.news = "no worker is ready"
        while (line := said.get(timeout=60)) == "pcct is starting, 0 s":
            pass
    assert line.startswith("pcct is starting, ")
    assert line.endswith(" s: no worker is ready")


@pytest.mark.parametrize(
    ("found", "environment", "said"),
    [
        ((Path("/kept"), ""), {"NUMBA_CACHE_DIR": "/kept"}, ""),
        ((Path("/tmp/own"), "kept for a while; do"), {"NUMBA_CACHE_DIR": "/tmp/own"}, "pcct: kept for a while; do\n"),
        ((None, "kept nowhere; do"), {}, ""),
    ],
)
def test_kernel_cache_is_chosen_and_told_once_for_all_workers(monkeypatch, capsys, found, environment, said):
    monkeypatch.setattr(up, "find_code_directory", lambda chosen: found)
    assert up._kernel_cache() == environment
    assert capsys.readouterr().err == said
