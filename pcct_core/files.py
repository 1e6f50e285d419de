"""Files that appear whole: written beside their place and renamed into it. And the folder where compiled code is kept."""

from __future__ import annotations

import io
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

_LONGEST_STEM = 100  # characters of the name that the unfinished file shares; file systems hold 255 bytes


class Stream(io.RawIOBase, BinaryIO):
    """What is written goes on as it comes: zip archives ask no position of it, which /dev/null would tell as 0 for ever."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Write the bytes whole; return how many they are."""
        return self._file.write(data)

    def flush(self) -> None:
        """Let the file below write what it has kept."""
        if not self._file.closed:
            self._file.flush()


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a file to write, which takes the place of `path` when the block ends; when the block raises, `path` is as before.

    A link is followed, so it stays a link. A file that is replaced hands down its permissions. What is no regular file, such
    as a pipe or /dev/stdout, is written as the bytes come. Raises OSError, also for a file that may not be written.
    """
    named = Path(path)
    if named.exists() and not named.is_file():
        with _told_of(path, named), named.open("wb") as file:
            yield Stream(file)
        return
    place = _find_place(path)
    beside = place.with_name(f".{place.name[:_LONGEST_STEM]}.{secrets.token_hex(4)}.part")
    with _told_of(path, beside):
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(13, "Permission denied", beside)
        # 0o666 without the bits of the umask, as of every new file; mkstemp would make one that only its owner reads.
        opened = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        with _told_of(path, beside), os.fdopen(opened, "wb") as file:
            _hand_down(place, opened)
            yield file
        with _told_of(path, beside):
            beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def _find_place(path: str | os.PathLike[str]) -> Path:
    """Return what a path names, links followed. Raises OSError, naming the path, where the system finds no folder for it.

    `realpath` alone would take absent/../file for file, and a ring of links for a file.
    """
    end = Path(path)
    try:
        try:
            end.stat()
        except FileNotFoundError:
            while end.is_symlink():
                end = end.parent / end.readlink()
            end.parent.stat()
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    return Path(os.path.realpath(end))


@contextmanager
def _told_of(path: str | os.PathLike[str], beside: Path) -> Iterator[None]:
    """Let an error about the unfinished file, or about writing it, name the path that the caller knows."""
    try:
        yield
    except OSError as error:
        if error.errno is None or str(error.filename or beside) != str(beside):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def _hand_down(place: Path, opened: int) -> None:
    """Give the open file the owner and the permissions of the file at `place`, where there is one and we may."""
    try:
        old = place.stat()
    except FileNotFoundError:
        return
    for owner, group in ((old.st_uid, -1), (-1, old.st_gid)):
        with suppress(OSError):
            os.fchown(opened, owner, group)
    os.fchmod(opened, stat.S_IMODE(old.st_mode))


def write_arrays(path: str | os.PathLike[str], **arrays: Any) -> None:
    """Write the arrays as an uncompressed .npz file that `np.load` reads; the file at `path` is replaced whole, or not at all.

    Raises OSError.
    """
    import numpy as np

    with replacing(path) as file:  # np.savez would append .npz to a bare path
        np.savez(file, **arrays)


def find_code_directory(chosen: Path | None) -> tuple[Path | None, str]:
    """Return the folder for compiled code, None if there is none, and what is to be told of it: fact; advice, or nothing.

    It is the first of these that this process can write: `chosen`, where it is given; else `__pycache__` beside this file, then
    `~/.cache/pcct`; and then a folder of the user's own among the temporary files. Files there hold code that is run, so that
    folder must belong to the user, and nobody else may enter it.
    """
    places = [Path(__file__).parent / "__pycache__"]
    with suppress(RuntimeError):  # no home
        places.append(Path.home() / ".cache" / "pcct")
    if chosen is not None:
        places = [chosen]
    for place in places:
        if _writable(place):
            return place, ""
    tried = " and ".join(str(place) for place in places)
    advice = "set NUMBA_CACHE_DIR to a folder that can be written"
    private = Path(tempfile.gettempdir()) / f"pcct-{os.getuid()}"
    if _private(private) and _writable(private):
        return (
            private,
            f"{tried} cannot be written, so compiled code is kept in {private} until temporary files go; {advice}",
        )
    fact = f"{tried} and {private} cannot be written, so every process compiles anew, for up to a minute"
    return None, f"{fact}; {advice}"


def _writable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def _private(directory: Path) -> bool:
    """Make a folder that only the user can enter; False where it is there and somebody else could have written to it."""
    with suppress(OSError):
        directory.mkdir(mode=0o700)
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
