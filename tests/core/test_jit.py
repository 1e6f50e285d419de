import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from numba import config

from pcct_core import jit
from pcct_core.errors import KernelCacheWarning
from pcct_core.files import find_code_directory
from pcct_core.warm import PARTS, is_warm

CODE = Path(jit.__file__).parent


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the sources, which digests are then taken of."""
    shutil.copytree(CODE, tmp_path / "pcct_core", ignore=shutil.ignore_patterns("__pycache__", "prebuilt"))
    monkeypatch.setattr(jit, "PACKAGE", tmp_path / "pcct_core")
    return tmp_path / "pcct_core"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder of temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.mark.parametrize("changed", ["search", "topk", "simd", "jit"])
def test_source_digest_follows_everything_that_a_function_may_inline(package, changed):
    digest = jit.source_digest.__wrapped__
    before = digest("search")
    with (package / f"{changed}.py").open("a") as source:
        source.write("\n# another line\n")
    assert digest("search") != before


def test_source_digest_leaves_code_that_has_not_changed(package):
    digest = jit.source_digest.__wrapped__
    before = digest("topk")
    (package / "vif.py").write_text("")
    assert digest("topk") == before


def test_find_code_directory_takes_the_first_that_can_be_written(tmp_path, monkeypatch):
    assert find_code_directory(tmp_path / "a" / "b") == (tmp_path / "a" / "b", "")
    assert find_code_directory(None) == (CODE / "__pycache__", "")


def test_find_code_directory_falls_back_to_a_private_one(temporary):
    found, told = find_code_directory(Path("/proc/none"))
    assert found.parent == temporary
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert told.endswith("; set NUMBA_CACHE_DIR to a folder that can be written")


def test_find_code_directory_trusts_no_folder_of_others(temporary, tmp_path):
    private = find_code_directory(Path("/proc/none"))[0]
    private.chmod(0o750)
    found, told = find_code_directory(Path("/proc/none"))
    assert found is None
    assert "every process compiles anew" in told
    private.rmdir()
    private.symlink_to(tmp_path)
    assert find_code_directory(Path("/proc/none"))[0] is None


def test_code_directory_warns_of_what_does_not_last(monkeypatch, temporary):
    monkeypatch.setattr(config, "CACHE_DIR", "/proc/none")
    with pytest.warns(KernelCacheWarning, match="/proc/none cannot be written"):
        assert jit.code_directory.__wrapped__().parent == temporary


def test_a_damaged_file_of_machine_code_is_not_run(tmp_path):
    file = tmp_path / f"some{jit.SUFFIX}"
    jit._write(file, b"machine code")
    assert jit._read(file) == b"machine code"
    file.write_bytes(file.read_bytes()[:-1])
    assert jit._read(file) is None
    assert jit._read(tmp_path / "none") is None


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="nothing is compiled")
def test_machine_code_comes_from_its_file(tmp_path, monkeypatch, package):
    monkeypatch.setattr(jit, "code_directory", lambda: tmp_path)
    (package / "test_jit.py").write_text("")

    def double(x):
        return 2 * x

    first = jit.entry(double)
    assert first(21) == 42
    second = jit.entry(double)
    assert second(21) == 42
    assert [sum(one.stats.cache_hits.values()) for one in (first, second)] == [0, 1]
    assert second(1.5) == 3.0
    assert len(list(tmp_path.glob(f"*{jit.SUFFIX}"))) == 2


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="nothing is compiled")
def test_code_of_older_sources_makes_room(tmp_path, monkeypatch, package):
    monkeypatch.setattr(jit, "code_directory", lambda: tmp_path)
    monkeypatch.setattr(jit, "source_digest", jit.source_digest.__wrapped__)

    def double(x):
        return 2 * x

    (package / "test_jit.py").write_text("")
    jit.entry(double)(21)
    (before,) = tmp_path.glob(f"*{jit.SUFFIX}")
    (package / "test_jit.py").write_text("# another line")
    jit.entry(double)(21)
    (after,) = tmp_path.glob(f"*{jit.SUFFIX}")
    assert before != after


def test_prebuilt_code_serves_processors_of_its_level(tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "PREBUILT", tmp_path)
    monkeypatch.setattr(jit, "code_directory", lambda: None)
    monkeypatch.setattr(jit, "level_here", lambda: "x86-64-v3")
    from pcct_core import warm

    assert not is_warm("float64")
    (tmp_path / warm._mark_name("float64", "x86-64-v4")).touch()
    assert not is_warm("float64")
    (tmp_path / warm._mark_name("float64", "x86-64-v3")).touch()
    assert is_warm("float64")


def test_inner_functions_can_be_called_from_python():
    from pcct_core.simd import count_bits

    assert count_bits(np.uint32(0b1011)) == 3


def test_parts_are_those_that_workers_compile():
    from worker.compiling import FIRST, SHIFTS

    assert sorted(part for shift in SHIFTS for part in shift) == sorted(PARTS)
    assert FIRST in PARTS
