import os
import signal
import subprocess
import sys

import pytest

from service import doctor
from service.settings import ServiceSettings
from worker.settings import WorkerSettings


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    """No variables of ours or Numba's, and a data directory that nobody uses."""
    import os

    for name in list(os.environ):
        if name.startswith(("PCCT_", "NUMBA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PCCT_DATA_DIR", str(tmp_path / "a" / "b"))


def levels(findings):
    return [finding.level for finding in findings]


def check_problem(findings, *words, level="problem"):
    found = [finding for finding in findings if finding.level == level]
    assert len(found) == 1, found
    assert found[0].fix
    for word in words:
        assert word in found[0].fact


def test_doctor_finds_no_problem_here_and_writes_plain_lines(capsys, tmp_path):
    assert doctor.run_doctor()
    lines = capsys.readouterr().out.splitlines()
    assert "0 to repair" in lines[-1]
    names = {line.split(":")[0].split(maxsplit=1)[1] for line in lines[:-1]}
    everything = "settings versions server store threads BLAS memory self-test"
    assert names == {*everything.split(), "kernel cache", "data directory"}
    assert all(("; fix: " in line) != line.startswith("ok ") for line in lines[:-1])
    assert list(tmp_path.iterdir()) == []  # it only looks


def test_doctor_shows_a_table_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_examine", lambda: iter([doctor.Finding("problem", "disk", "[full]", "make room")]))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert not doctor.run_doctor()
    out = capsys.readouterr().out
    assert "problem" in out
    assert "[full]" in out
    assert "make room" in out


def test_doctor_reports_everything_but_the_self_test_without_numba():
    code = (
        "import sys; from service import doctor; "
        "names = [f.name for f in doctor._examine() if 'numba' not in sys.modules]; "
        "sys.exit('self-test' not in names)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_doctor_goes_on_behind_a_check_that_fails(monkeypatch, capsys):
    def fail():
        raise RuntimeError("what a surprise")

    monkeypatch.setattr(doctor, "check_blas", fail)
    monkeypatch.setattr(doctor, "check_selftest", lambda: iter([doctor.Finding("ok", "self-test", "not run")]))
    assert not doctor.run_doctor()
    out = capsys.readouterr().out
    assert "what a surprise" in out
    assert "self-test" in out


def test_doctor_names_settings_that_cannot_be_read_and_those_that_nothing_reads(monkeypatch):
    monkeypatch.setenv("PCCT_THREADS", "many")
    monkeypatch.setenv("PCCT_CHUNK_BYTES", "1")
    monkeypatch.setenv("PCCT_THREDS", "2")
    monkeypatch.setattr(doctor, "check_selftest", lambda: iter([]))
    found = [finding for finding in doctor._examine() if finding.name == "settings"]
    assert levels(found) == ["problem", "problem", "warning"]
    assert "PCCT_THREADS='many'" in found[0].fact + found[1].fact
    assert "PCCT_THREDS" in found[2].fact


def test_check_versions_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "_PACKAGES", ("numpy", "no-such-package"))
    check_problem(list(doctor.check_versions()), "no-such-package not installed")


@pytest.mark.parametrize(("needed", "level"), [(True, "problem"), (False, "warning")])
def test_check_server_without_the_wheel(monkeypatch, needed, level):
    def find_server():
        raise doctor.EmbeddedStoreError("no wheel")

    monkeypatch.setattr(doctor, "find_server", find_server)
    check_problem(list(doctor.check_server(needed=needed)), "no wheel", level=level)


def test_check_store_finds_the_embedded_one_good(embedded_url):
    assert set(levels(doctor.check_store(WorkerSettings(redis_url=embedded_url)))) == {"ok"}


def test_check_store_finds_none_and_keeps_the_password(tmp_path):
    settings = WorkerSettings(redis_url="redis://:secret@127.0.0.1:1/0", store_timeout_s=1.0)
    findings = list(doctor.check_store(settings))
    check_problem(findings, "127.0.0.1:1", "does not answer")
    assert "secret" not in str(findings)


GOOD = {"redis_version": "6.2.0", "role": "master", "aof_enabled": 1, "maxmemory": 0, "maxmemory_policy": "noeviction"}


@pytest.mark.parametrize(
    ("facts", "level", "words"),
    [
        ({"redis_version": "6.0.16"}, "problem", "Redis 6.0.16"),
        ({"role": "slave"}, "problem", "replica"),
        ({"aof_enabled": 0}, "warning", "last snapshot"),
        ({"maxmemory": 1 << 30, "maxmemory_policy": "allkeys-lru"}, "problem", "evicts queue and tracks"),
        ({"maxmemory": 1 << 30, "maxmemory_policy": "volatile-lru"}, "warning", "evicts uploads"),
    ],
)
def test_judge_store_finds_what_is_wrong(facts, level, words):
    assert levels(doctor.judge_store("it", GOOD)) == ["ok"] * 3
    check_problem(list(doctor.judge_store("it", GOOD | facts)), words, level=level)


def test_judge_store_knows_valkey_and_a_policy_without_a_limit():
    findings = list(doctor.judge_store("it", GOOD | {"valkey_version": "7.2.5", "maxmemory_policy": "allkeys-lru"}))
    assert "Valkey 7.2.5" in findings[0].fact
    assert levels(findings) == ["ok"] * 3


def test_check_kernel_cache_says_where_code_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert [(finding.level, finding.fact) for finding in doctor.check_kernel_cache()] == [("ok", str(tmp_path))]
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert levels(doctor.check_kernel_cache()) == ["problem", "ok"]


@pytest.mark.parametrize(("shared", "level"), [(False, "warning"), (True, "problem")])
def test_check_kernel_cache_gives_advice_that_helps(monkeypatch, tmp_path, shared, level):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/none")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if shared:
        (tmp_path / f"pcct-{os.getuid()}").mkdir(mode=0o755)
    check_problem(list(doctor.check_kernel_cache()), "/proc/none", level=level)
    assert next(doctor.check_kernel_cache()).fix == "set NUMBA_CACHE_DIR to a folder that can be written"


def test_check_data_dir_finds_a_place_that_cannot_be_written_and_a_full_disk(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    check_problem(list(doctor.check_data_dir(WorkerSettings(data_dir=tmp_path / "file" / "below"))), "file")
    monkeypatch.setattr(doctor, "_DISK_BYTES", {"problem": 1 << 60, "warning": 1 << 61})
    check_problem(list(doctor.check_data_dir(WorkerSettings(data_dir=tmp_path))), "free")


def test_check_threads_finds_more_threads_than_cores(monkeypatch, tmp_path):
    assert levels(doctor.check_threads(WorkerSettings(threads=1, refresh_threads=1))) == ["ok"]
    check_problem(list(doctor.check_threads(WorkerSettings(threads=4096))), "4096 for a graph", level="warning")
    monkeypatch.setattr(doctor, "cpu_quota", lambda file: 0.5)
    check_problem(list(doctor.check_threads(WorkerSettings(threads=1))), "0.5 cores of time", level="warning")


@pytest.mark.parametrize(("text", "cores"), [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None)])
def test_cpu_quota_reads_a_control_group(tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(text)
    assert doctor.cpu_quota(tmp_path / "cpu.max") == cores
    assert doctor.cpu_quota(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("available_kb", "level"),
    [(100 << 10, "problem"), (500 << 10, "warning"), (1500 << 10, "warning"), (8 << 20, "ok")],
)
def test_check_memory_judges_what_is_available(tmp_path, available_kb, level):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable:   {available_kb} kB\n")
    assert levels(doctor.check_memory(ServiceSettings(max_body_bytes=2 << 30), meminfo)) == [level]
    assert levels(doctor.check_memory(ServiceSettings(max_body_bytes=2 << 30), tmp_path / "none")) == ["warning"]


@pytest.mark.parametrize(
    ("status", "out", "err", "words"),
    [
        (1, "", "Traceback …\nImportError: Numba needs NumPy 2.4 or less\n", "Numba needs NumPy"),
        (3, "", "", "exit status 3"),
        (-signal.SIGSEGV, "", "", "SIGSEGV"),
        (0, '{"seconds": 1.0, "faults": ["the k-NN graph is wrong"]}\n', "", "the k-NN graph is wrong"),
    ],
)
def test_check_selftest_makes_findings_of_what_breaks(monkeypatch, status, out, err, words):
    ended = subprocess.CompletedProcess([], status, out, err)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: ended)
    check_problem(list(doctor.check_selftest()), words)


def test_check_selftest_runs_nothing_of_the_current_folder(monkeypatch, folder_of_namesakes):
    monkeypatch.chdir(folder_of_namesakes)
    assert levels(doctor.check_selftest()) == ["ok"]


def test_check_selftest_survives_a_numba_that_cannot_be_imported(monkeypatch, tmp_path):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise ImportError('this Numba is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check_problem(list(doctor.check_selftest()), "this Numba is broken")
