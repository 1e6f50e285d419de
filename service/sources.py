"""Points that a command line names: a .npy file, a pipe or standard input; of any other file, how to make a .npy file."""

from __future__ import annotations

import difflib
import io
import json
import mmap
import os
import shlex
import stat
import sys
import tokenize
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np

from pcct_core.arrays import check_exact
from pcct_core.errors import InvalidInput, InvalidPoints

Bytes: TypeAlias = bytearray | mmap.mmap
Array: TypeAlias = np.ndarray[Any, Any]

RECORD = "record"  # the member of a written graph that says how it was made, as JSON text
STANDARD = Path("-")  # standard input, and standard output
_MAGIC = b"\x93NUMPY"
_PIECE_BYTES = 1 << 20
_LOOKED_AT_BYTES = 1 << 16  # of a file that is not .npy, to say what it is
_SAVE = "save the points with np.save"


class InvalidFile(InvalidInput):
    """A file named on the command line cannot be used."""


def read_points(path: Path) -> Array:
    """Return the array of a .npy file, mapped and not read, of a pipe, or of standard input where `path` is "-".

    Raises InvalidFile or InvalidPoints, whose message has the command that makes a .npy file of what was named.
    """
    if path == STANDARD:
        return _array_in(_read_standard(), None)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return _array_in(_read_all(file), path)
            if status.st_size == 0:
                raise InvalidFile(f"{path} is empty; {_SAVE}({str(path)!r}, X)")
            return _array_in(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path)
    except FileNotFoundError as error:
        raise InvalidFile(f"{path} cannot be read: {error.strerror}; {_near(path)}") from error
    except IsADirectoryError as error:
        raise InvalidFile(f"{path} cannot be read: it is a directory; {_within(path)}") from error
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read: {error.strerror}") from error


def groups_file(groups: str, points: Path) -> Path | None:
    """Return the file of labels that --groups names, None where it names a column of the points: a number, or no file at all.

    Raises InvalidFile where both are standard input.
    """
    path = Path(groups)
    if _is_column(groups) or (path != STANDARD and path.suffix != ".npy" and not path.exists()):
        return None
    if path == points == STANDARD:
        raise InvalidFile("points and groups are both standard input, which holds one array; name a file of the groups")
    return path


def split_column(array: Array, column: str) -> tuple[Array, Array]:
    """Return the points without one of their columns, and that column: the labels of groups.

    column: its number, from 0, or from -1 backwards; or its name in a structured array. Raises InvalidFile.
    """
    if array.dtype.names is not None:
        return _split_field(array, column)
    if not _is_column(column):
        raise InvalidFile(
            f"groups are {column!r:.80}, which is no file here, and the points have no names of columns; give the number of a "
            "column, or a .npy file of one label for every point"
        )
    if array.ndim != 2:
        raise InvalidFile(f"groups are column {column}, and the points have shape {array.shape}; expected (n, d)")
    d, number = array.shape[1], int(column)
    if not -d <= number < d:
        raise InvalidFile(f"groups are column {number}, and the points have the columns 0 to {d - 1}")
    if d == 1:
        raise InvalidFile(f"groups are column {number}, the only one of the points; put the labels into a second file")
    return np.delete(array, number, axis=1), array[:, number]


def _split_field(array: Array, column: str) -> tuple[Array, Array]:
    """Return the fields of a structured array that are no labels as columns, and the one that holds the labels."""
    names = list(array.dtype.names or ())
    if column not in names:
        raise InvalidFile(f"groups are {column!r:.80}, which is neither a file here nor one of {', '.join(names)}")
    others = [array[name] for name in names if name != column]
    wrong = [name for name in names if name != column and array[name].dtype.kind not in "fiub"]
    if wrong or not others:
        said = f"field {wrong[0]!r} is no number" if wrong else "no other field is left"
        raise InvalidFile(f"{said}; save coordinates alone, and the groups in a second file")
    for values in others:
        check_exact(values, values)
    return np.column_stack(others), array[column]


def _is_column(groups: str) -> bool:
    digits = groups.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 10


def _read_standard() -> bytearray:
    if sys.stdin is None or sys.stdin.isatty():
        raise InvalidFile("standard input is a terminal; send it a .npy file, as in: pcct graph - < points.npy")
    return _read_all(sys.stdin.buffer)


def _read_all(file: IO[bytes]) -> bytearray:
    data = bytearray()
    while piece := file.read(_PIECE_BYTES):
        data += piece
    return data


def _array_in(data: Bytes, path: Path | None) -> Array:
    """Return the array of the bytes of a .npy file. path: of the file, None for standard input."""
    name = "standard input" if path is None else str(path)
    if not len(data):
        raise InvalidFile(f"{name} is empty; {_SAVE}, and send that file")
    if data[: len(_MAGIC)] != _MAGIC:
        raise InvalidFile(f"{name} is not a .npy file; {_conversion(bytes(data[:_LOOKED_AT_BYTES]), path)}")
    header = io.BytesIO(data[:_LOOKED_AT_BYTES])
    try:
        shape, fortran, dtype = _read_header(header)
    except (ValueError, EOFError) as error:
        raise InvalidFile(f"{name} is cut short or damaged ({error}); {_SAVE} again") from error
    if dtype.hasobject:
        raise InvalidPoints(f"{name} holds Python objects, which are never unpickled; save X.astype('float64') instead")
    count = int(np.prod(shape, dtype=object))
    wanted, found = count * dtype.itemsize, len(data) - header.tell()
    if found < wanted:
        raise InvalidFile(f"{name} is cut short: its header tells of {wanted} bytes, {found} follow; {_SAVE} again")
    # A view of a map keeps the file mapped; one of a bytearray keeps that.
    numbers: Array = np.frombuffer(data, dtype, count, header.tell()) if count else np.empty(0, dtype)
    return numbers.reshape(shape, order="F" if fortran else "C")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, Fortran order and type that the header of a .npy file tells; raises ValueError."""
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # files of Python 2 are as good
        try:
            shape, fortran, dtype = read(file)
        except (tokenize.TokenError, SyntaxError) as error:  # NumPy reads what may be of Python 2 word by word
            raise ValueError("its header is no dictionary") from error
    if min(shape, default=0) < 0:
        raise ValueError(f"its header tells of the shape {shape}")
    return shape, fortran, dtype


def _near(path: Path) -> str:
    """Return what to do about a path at which nothing is: the name that was probably meant, if there is one."""
    try:
        names = [each.name for each in path.parent.iterdir() if each.suffix == ".npy"]
    except OSError:
        return f"{path.parent} is no directory that can be read; name a .npy file"
    close = difflib.get_close_matches(path.name, names, 1)
    return f"did you mean {path.parent / close[0]}?" if close else "name a .npy file that np.save has written"


def _within(folder: Path) -> str:
    """Return what to do about a directory: a file in it that could be named."""
    try:
        names = sorted(each.name for each in folder.iterdir() if each.suffix == ".npy")
    except OSError:
        names = []
    return f"name a file, such as {folder / names[0]}" if names else "name a .npy file"


class _Kind(NamedTuple):
    """A format that is known by its first bytes. code: Python that saves its numbers, or words when it starts with a colon."""

    magic: bytes
    name: str
    code: str


_KINDS = (
    _Kind(
        b"PAR1",
        "a Parquet file",
        "import pandas; np.save({target}, pandas.read_parquet({source}).select_dtypes('number').to_numpy('float64'))",
    ),
    _Kind(
        b"ARROW1",
        "an Arrow file",
        "import pandas; np.save({target}, pandas.read_feather({source}).select_dtypes('number').to_numpy('float64'))",
    ),
    _Kind(b"\x89HDF\r\n", "an HDF5 file", ": read the data set with h5py, and save it with np.save"),
    _Kind(b"CDF", "a NetCDF file", ": read the variables with scipy.io.netcdf_file, and save them with np.save"),
    _Kind(b"MATLAB 5", "a MATLAB file", ": read the matrix with scipy.io.loadmat, and save it with np.save"),
    _Kind(b"\x80", "a pickle, which is never read here", ": load it where you trust it, and save X with np.save"),
    _Kind(b"\x1f\x8b", "compressed", ": unpack it with gunzip first"),
    _Kind(b"\x28\xb5\x2f\xfd", "compressed", ": unpack it with unzstd first"),
    _Kind(b"BZh", "compressed", ": unpack it with bunzip2 first"),
    _Kind(b"\xfd7zXZ", "compressed", ": unpack it with unxz first"),
)


def _conversion(head: bytes, path: Path | None) -> str:
    """Return what a file is whose first bytes are no .npy file's, and the command that makes one of it.

    path: None for standard input, of which only the kind can be told.
    """
    if head.startswith(b"PK"):
        return _conversion_of_zip(path)
    for kind in _KINDS:
        if head.startswith(kind.magic):
            return f"it is {kind.name}: {_command(kind.code, path)}"
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) < _LOOKED_AT_BYTES else "ignore")
    except UnicodeDecodeError:
        return f"it begins with {head[:8]!r}; {_SAVE}"
    if "\0" in text:
        return f"it begins with {head[:8]!r}; {_SAVE}"
    if text.lstrip().startswith(("[[", "{")):
        code = "import json; np.save({target}, np.array(json.load(open({source}))))"
        return f"it is JSON: {_command(code if text.lstrip()[0] == '[' else ': save the rows with np.save', path)}"
    return f"it is text: {_command(_loading_code(text, head), path)}"


def _command(code: str, path: Path | None) -> str:
    """Return the shell command that runs the code, {source} and {target} filled in; words stay words.

    The target is named after the source, and nothing that is there already.
    """
    if code.startswith(":"):
        return code.removeprefix(":").strip()
    if path is None:
        return f"save it to a file and call `pcct graph` on that, which tells how to make a .npy file of it, or {_SAVE}"
    number, target = 2, path.with_suffix(".npy")
    while target.exists():
        number, target = number + 1, path.with_name(f"{path.stem}-{number}.npy")
    filled = code.replace("{target}", repr(str(target))).replace("{source}", repr(str(path)))
    run = f"python -c {shlex.quote(f'import numpy as np; {filled}')}"
    return f"convert it with: {run} and name {shlex.quote(str(target))}"


def _conversion_of_zip(path: Path | None) -> str:
    """Return what to do about a zip archive: the first of its arrays that could be points is saved."""
    if path is None:
        return f"it is a zip archive; send one array alone: {_SAVE}"
    try:
        shapes = _shapes_in(path)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        return f"it is a damaged zip archive ({error}); {_SAVE} again"
    if not shapes:
        return f"it is a zip archive without arrays; {_SAVE}"
    if {"neighbors", "distances"} <= shapes.keys():
        return "it is a graph; name the points that it was built from"
    member = next((name for name, shape in shapes.items() if len(shape) == 2), next(iter(shapes)))
    code = f"np.save({{target}}, np.load({{source}})[{member!r}])"
    return f"it is an .npz file of {', '.join(shapes)}: {_command(code, path)}"


def _shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of an .npz file by its name; none for another zip archive."""
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if not member.endswith(".npy"):
                return {}
            with archive.open(member) as file:
                shapes[member.removesuffix(".npy")] = _read_header(file)[0]
    return shapes


def _loading_code(text: str, head: bytes) -> str:
    """Return the code that loads the numbers of a text by np.loadtxt: its header passed over, its columns of words left out."""
    lines = text.splitlines()[:1000]
    for number, line in enumerate(lines):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        delimiter = next((mark for mark in (",", ";", "\t") if mark in line), None)
        fields = [field.strip().strip('"') for field in line.split(delimiter)]
        columns = [column for column, field in enumerate(fields) if _is_number(field)]
        if not columns:
            continue
        options = [f"delimiter={delimiter!r}"] if delimiter is not None else []
        options += [f"skiprows={number}"] if number else []
        options += [f"usecols={tuple(columns)}"] if len(columns) < len(fields) else []
        options += ["quotechar='\"'"] if '"' in line else []
        options += ["encoding='utf-8-sig'"] if head.startswith(b"\xef\xbb\xbf") else []
        return f"np.save({{target}}, np.loadtxt({', '.join(['{source}', *options, 'ndmin=2'])}))"
    return ": but its first lines hold no numbers; save the columns that do with np.save"


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field


def describe_graph(path: Path) -> str | None:
    """Return what graph an .npz file holds that `pcct graph` or `Graph.save` has written, None for any other file."""
    known = {"neighbors", "distances", "order", "offsets"}
    try:
        shapes = _shapes_in(path)
        if not {"neighbors", "distances"} <= shapes.keys() or not (RECORD in shapes or shapes.keys() <= known):
            return None
        if RECORD not in shapes:
            return "a graph"
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            spec = json.loads(str(arrays[RECORD]))["spec"]
        return f"a {spec['kind']} graph" + (f" with k = {spec['k']}" if "k" in spec else "")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
