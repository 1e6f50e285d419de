"""Files that appear whole: written beside their place and renamed into it."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_LONGEST_STEM = 100  # characters of the name that the unfinished file shares; file systems hold 255 bytes


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a file to write, which takes the place of `path` when the block ends; when the block raises, `path` is as before.

    A link is followed, so it stays a link. A file that is replaced hands down its permissions. What is no regular file, such
    as a pipe or /dev/stdout, is written as the bytes come. Raises OSError, also for a file that may not be written.
    """
    named = Path(path)
    if named.exists() and not named.is_file():
        with named.open("wb") as file:
            yield file
        return
    place = Path(os.path.realpath(path))
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


@contextmanager
def _told_of(path: str | os.PathLike[str], beside: Path) -> Iterator[None]:
    """Let an error about the unfinished file name the path that the caller knows."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename) != str(beside):
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
