import os

import numpy as np
import pytest

from pcct_core.files import replacing, write_arrays


def test_replacing_leaves_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"new")
        raise OSError(28, "no space")

    with pytest.raises(OSError, match="no space"), replacing(path) as file:
        fail(file)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_shows_nothing_before_the_end_and_keeps_permissions(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o604)
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o604


def test_replacing_makes_a_file_as_open_does(tmp_path):
    (tmp_path / "plain").touch()
    with replacing(tmp_path / ("n" * 255)) as file:  # the longest name that there is
        file.write(b"new")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("there", [True, False])
def test_replacing_follows_a_link(tmp_path, there):
    target = tmp_path / "folder" / "file"
    target.parent.mkdir()
    if there:
        target.write_bytes(b"old")
    (tmp_path / "link").symlink_to(target)
    with replacing(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"new"


def test_replacing_writes_what_is_no_file_as_it_comes(tmp_path):
    read, write = os.pipe()
    with replacing(f"/dev/fd/{write}") as file:
        file.write(b"new")
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"new"


@pytest.mark.parametrize(("name", "kind"), [("no/file", FileNotFoundError), ("", IsADirectoryError)])
def test_errors_name_the_path_that_was_asked_for(tmp_path, name, kind):
    path = tmp_path / name
    with pytest.raises(kind) as caught:
        write_arrays(path, a=np.zeros(2))
    assert str(caught.value.filename) == str(path)
    assert list(tmp_path.iterdir()) == []


def test_write_arrays_writes_to_a_device():
    write_arrays(os.devnull, a=np.arange(3))


@pytest.mark.parametrize("name", ["absent/../file", "file/../other", "round", "lost", "/dev/full"])
def test_write_arrays_names_a_path_that_leads_nowhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "lost").symlink_to("absent/../file")
    there = set(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"No such|Not a dir|Too many|No space") as caught:
        write_arrays(name, a=np.arange(3))
    assert caught.value.filename == name
    assert set(tmp_path.iterdir()) == there
    assert (tmp_path / "file").read_bytes() == b"old"
