"""Files that appear whole: written beside their place and renamed into it."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write the arrays as an uncompressed .npz file; the file at `path` is replaced whole, or stays as it is.

    A link is followed, and a file that is replaced hands down its permissions. What is no regular file, such as a pipe, is
    written as the bytes come. Raises OSError, also for a file that may not be written.
    """
    named = Path(path)
    if named.exists() and not named.is_file():
        with named.open("wb") as pipe:
            np.savez(pipe, **arrays)  # type: ignore[arg-type]
        return
    place = Path(os.path.realpath(path))
    if named.exists() and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    beside = place.with_name(f".{place.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("xb") as file:
            if named.exists():
                beside.chmod(place.stat().st_mode & 0o7777)
            np.savez(file, **arrays)  # type: ignore[arg-type]
        beside.replace(place)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        beside.unlink(missing_ok=True)
