"""Files that appear whole: written beside their place and renamed into it."""

from __future__ import annotations

import errno
import io
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


class _Stream(io.RawIOBase, BinaryIO):
    """What is written goes on as it comes: zip archives ask no position of it, which /dev/null would tell as 0 for ever."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        """Write the bytes whole; return how many they are."""
        return self._file.write(data)


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write the arrays as an uncompressed .npz file; the file at `path` is replaced whole, or stays as it is.

    A link is followed, and a file that is replaced hands down its permissions. What is no regular file, such as a pipe, is
    written as the bytes come. Raises OSError, which names the path, also for a file that may not be written.
    """
    try:
        _write_whole(Path(path), arrays)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _write_whole(named: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    if named.exists() and not named.is_file():
        with named.open("wb") as pipe:
            np.savez(_Stream(pipe), **arrays)  # type: ignore[arg-type]
        return
    place = _find_place(named)
    if named.exists() and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    beside = place.with_name(f".{place.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("xb") as file:
            if named.exists():
                beside.chmod(place.stat().st_mode & 0o7777)
            np.savez(file, **arrays)  # type: ignore[arg-type]
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def _find_place(named: Path) -> Path:
    """Return what a path names, links followed; raises OSError where the system finds no folder for it.

    `realpath` alone would take absent/../file for file, and a ring of links for a file.
    """
    try:
        named.stat()
    except FileNotFoundError:
        while named.is_symlink():
            named = named.parent / named.readlink()
        named.parent.stat()
    return Path(os.path.realpath(named))
