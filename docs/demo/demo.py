"""What `make demo` runs: a Vecchia graph of real places, checked and drawn, and a model of their altitude, fitted three ways.

Starts the service and leaves nothing running, also when it fails or is interrupted. Exit status 0 when the graph is there
and right; else 1, and one line that says why.
"""

import argparse
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from brute_force import WrongGraph, check_vecchia
from rich.console import Console
from rich.table import Table

from pcct_client import Client, ClientError, Graph

HERE = Path(__file__).parent
K = 30
ROWS_CHECKED = 200
START_TIMEOUT_S = 300  # the first start on a machine compiles the kernels
STOP_TIMEOUT_S = 30
BUILD_TIMEOUT_S = 900
SAY_EVERY_S = 2.0  # where there is no terminal, on which a line moves

console = Console(highlight=False)


class DemoFailed(Exception):
    """The demo cannot go on; the message is the one line for the person who ran it."""


def main() -> int:
    """Run the demo; returns the exit status."""
    arguments = _arguments()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs start with SIGINT ignored
        signal.signal(number, _interrupt)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    log = out / "service.log"
    try:
        run(out, log, arguments.places)
    except (DemoFailed, WrongGraph, ClientError, OSError) as error:
        console.print(f"demo failed: {error} (the service's log: {log})", style="red", soft_wrap=True, markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("demo interrupted; everything it started is stopped")
        return 1
    return 0


def run(out: Path, log: Path, count: int) -> None:
    """Do all of it, with the first `count` places, and leave graph.npz, map.png and timeline.png in out."""
    places = np.load(HERE / "places.npy")[:count]
    altitude = np.load(HERE / "altitude.npy")[:count]
    # Numba, SciPy and Matplotlib take seconds to load: those in which the service starts.
    loading = ThreadPoolExecutor(1).submit(
        lambda: [import_module(name) for name in ("three_ways", "neighbor_map", "timeline")]
    )
    with tempfile.TemporaryDirectory(prefix="pcct-demo-") as data_dir, service(Path(data_dir), log) as url:
        console.print(f"service ready at {url}")
        with Client(url) as client:
            with telling("building the graph") as tell:
                graph = client.vecchia(
                    places,
                    k=K,
                    order="maximin",
                    metric="haversine",
                    timeout=BUILD_TIMEOUT_S,
                    progress=lambda state, progress: tell(describe(state, progress)),
                )
            assert graph.order is not None  # noqa: S101  (every Vecchia graph has one)
            rows = np.sort(np.random.default_rng(0).choice(len(places), min(ROWS_CHECKED, len(places)), replace=False))
            check_vecchia(places, graph.order, graph.neighbors, graph.distances, rows)
            console.print(summary(graph, len(rows)))
            with telling("loading the model"):
                three_ways, neighbor_map, timeline = loading.result()
            model = three_ways.altitude_model(places, altitude, graph.order)
            start, k = np.array(three_ways.START), three_ways.K
            ways = three_ways.fit_three_ways(client, model, start, k, three_ways.POLICY, telling)
            console.print(three_ways.fit_table(ways, model, k))
            console.print(three_ways.what_it_shows(ways), soft_wrap=True)
    with telling("drawing"):
        graph.save(out / "graph.npz")
        neighbor_map.draw_map(out / "map.png", places, altitude, graph.order, graph.neighbors, graph.distances)
        count = f"{len(model.points):,}"
        title = f"Fitting a Vecchia Gaussian process to the altitude of {count} places, three ways to its neighbors"
        timeline.draw_timeline(out / "timeline.png", title, ways.fits, ways.builds)
    console.print(f"wrote graph.npz, map.png and timeline.png to {out}; everything is stopped again", soft_wrap=True)


def summary(graph: Graph, rows_checked: int) -> Table:
    """Return the small table: what was asked, how long each step took, and how it was checked."""
    n, k = graph.neighbors.shape
    table = Table(show_header=False, title="Vecchia graph of real places", title_justify="left")
    table.add_row("places (n)", f"{n:,}")
    table.add_row("neighbors each (k)", str(k))
    for step in ("upload", "queue", "build", "download"):
        table.add_row(step, f"{graph.timings[step]:.3f} s")
    certificate = graph.certificate
    table.add_row("rows checked", f"{rows_checked}, all equal to brute force")
    exact = "exact" if certificate.get("exact") else "not exact"
    table.add_row("certificate", f"{exact}, {certificate.get('method')}, {certificate.get('dtype')}")
    return table


def describe(state: str, progress: dict[str, Any]) -> str:
    """Return a build's state in a few words."""
    if not progress.get("total"):
        return state
    share = 100 * progress["done"] // progress["total"]
    eta_s = progress.get("eta_s")
    return f"{progress['phase']} {share} %" + (f", {eta_s:.0f} s to go" if eta_s is not None else "")


@contextmanager
def service(data_dir: Path, log: Path) -> Iterator[str]:
    """Run `pcct up` on a free port, yield its URL once it is ready, and see to it that all of it is gone afterwards."""
    command = [str(Path(sys.executable).with_name("pcct")), "up", "--port", "0", "--data-dir", str(data_dir)]
    # The demo has a store of its own, whatever this machine is set up to use.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PCCT_")}
    with log.open("w") as errors:
        # In a process group of its own, so that Ctrl-C reaches it through this script, once; in this session, because Linux
        # may share processors among sessions first, and refreshes would yield to nobody in another one.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, process_group=0, env=environment
        )
    try:
        with telling("starting the service (the first start on a machine compiles the kernels)") as tell:
            url = wait_until_ready(process, tell)
        yield url
    finally:
        with telling("stopping the service"):
            stop(process)


def wait_until_ready(process: "subprocess.Popen[str]", tell: Callable[[str], None]) -> str:
    """Return the URL that `pcct up` announces. Raises DemoFailed when it ends first or takes too long."""
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pump, args=(process, lines), daemon=True).start()
    begun = time.monotonic()
    while time.monotonic() - begun < START_TIMEOUT_S:
        try:
            line = lines.get(timeout=1.0)
        except queue.Empty:
            continue
        if line is None:
            raise DemoFailed(f"the service ended with status {process.wait()} before it was ready")
        if ready := re.search(r"pcct ready at (http://\S+)", line):
            return ready[1]
        tell(line.strip())
    raise DemoFailed(f"the service was not ready within {START_TIMEOUT_S} s")


def stop(process: "subprocess.Popen[str]") -> None:
    """Stop the service and everything it started; kills what does not go by itself, and says so."""
    family = [process.pid, *descendants(process.pid)]
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    deadline = time.monotonic() + STOP_TIMEOUT_S / 3
    while (left := [pid for pid in family if is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    if left:
        raise DemoFailed(f"the service left {len(left)} processes behind, which were killed: {left}")


def descendants(pid: int) -> list[int]:
    """Return the processes that descend from pid; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, queue_ = [], [pid]
    while queue_:
        below = children.get(queue_.pop(), [])
        found += below
        queue_ += below
    return found


def is_alive(pid: int) -> bool:
    """Return whether the process runs; one that has ended and waits to be reaped does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:
        return not Path("/proc").exists()


@contextmanager
def telling(what: str) -> Iterator[Callable[[str], None]]:
    """Show that work goes on: a line that moves on a terminal, elsewhere the latest news every two seconds."""
    if console.is_terminal:
        with console.status(what) as status:
            yield lambda news: status.update(f"{what}: {news}")
        return
    console.print(what, soft_wrap=True)
    begun, latest, over = time.monotonic(), [""], threading.Event()

    def tell() -> None:
        while not over.wait(SAY_EVERY_S):
            console.print(f"  {time.monotonic() - begun:.0f} s  {latest[-1]}".rstrip(), soft_wrap=True, markup=False)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield latest.append
    finally:
        over.set()
        teller.join()


def _pump(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    """Keep reading what the service prints, so that it never blocks on a full pipe."""
    for line in process.stdout or ():
        lines.put(line)
    lines.put(None)


def _interrupt(number: int, frame: object) -> None:
    for asked in (signal.SIGINT, signal.SIGTERM):  # a second one would cut short how everything is stopped
        signal.signal(asked, signal.SIG_IGN)
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Start pcct, ask it for a graph of real places, check it, draw it.")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="where the results go (default: demo-out)")
    parser.add_argument("--places", type=int, default=32_768, help="use only the first PLACES (default: 32768)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
