"""Array formats on the wire: bodies in, canonical rows out; stored rows in, bodies out. No I/O, never pickle.

WireError
├── UnsupportedBody     nothing here reads this content type
│   └── UnsupportedCoding    nor this content encoding; `headers` say which are read
├── NothingAcceptable   nothing here writes what Accept asks for
├── BodyTooLarge        the body, or what its header announces, is over a configured limit
├── MalformedArray      the body is not the array that it claims to be
├── WrongLength         the body holds fewer or more bytes than its shape needs
└── InvalidParameter    a query parameter cannot be used; `field` names it

Faults of the array itself (rank, type, no rows, NaN) are `pcct_core.errors.InvalidPoints`, as everywhere.

An upload is decoded while it arrives: the header is read from a bounded buffer, shape and size are judged before the
data behind them is kept, and rows leave in blocks of about a megabyte. Only Fortran order has to be held whole.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from pcct_core.arrays import check_exact, numbers_fix
from pcct_core.errors import InvalidPoints, PcctError
from pcct_core.points import Points
from service.written_numbers import Written, check_written

Piece: TypeAlias = bytes | memoryview  # of a body; what a view shows does not change any more

NPY = "application/x-npy"
NPZ = "application/x-npz"
SAFETENSORS = "application/x-safetensors"
RAW = "application/octet-stream"
ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"

# Content codings of arrays, in both directions; `service.unpacking` undoes them.
CODINGS = ("zstd", "gzip")

NPY_MAGIC = b"\x93NUMPY"
_NPY_VERSIONS = ((1, 0), (2, 0), (3, 0))
# np.save writes 128 bytes; anything much longer is a structured type, which is not a point array.
_MAX_HEADER_BYTES = 4096
# A safetensors file may hold a whole model beside the points, about a hundred bytes of header for each of its tensors.
_MAX_SAFETENSORS_HEADER_BYTES = 1 << 17
_BLOCK_BYTES = 1 << 20

# Most bytes that one number takes as JSON text, a comma included: -1.2345678901234567e-308 and a bracket or two.
_JSON_NUMBER_BYTES = 28

# Types of points, by the names that raw numbers have, as they stand in a header. All but the first two become float64.
POINT_TYPES = {
    "float32": "<f4",
    "float64": "<f8",
    "float16": "<f2",
    "int8": "|i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "|u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "bool": "|b1",
}
_READABLE = frozenset(POINT_TYPES.values()) | {descr.replace("<", ">") for descr in POINT_TYPES.values()}
_SAFETENSORS_POINTS = {
    "BOOL" if name == "bool" else name[0].upper() + "".join(filter(str.isdigit, name)): descr
    for name, descr in POINT_TYPES.items()
}
_SAFETENSORS_TYPES = {"int32": "I32", "int64": "I64", "float32": "F32", "float64": "F64"}

# What a client sends that did not say what it sends: nothing, or curl's default for --data-binary.
_UNDECLARED = ("", "application/x-www-form-urlencoded")

HOW_TO_SEND = (
    "send a float32 or float64 .npy file as the whole body, e.g. "
    "curl -H 'Content-Type: application/x-npy' --data-binary @points.npy URL"
)

_ZIP_MAGIC = b"PK\x03\x04"
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_LARGE_ZIP_BYTES = 2_000_000_000  # zipfile turns to the 64-bit form of a file a little above this
_ARCHIVES = (NPZ, "application/zip", "application/x-zip-compressed")
NO_ARCHIVES = (
    "npz files are only written here, not read: they are zip archives, which can unpack to any size; save the points alone "
    f"with np.save and {HOW_TO_SEND}"
)


# zipfile sums up all it writes: these are the same sums, ten times as fast.
zipfile.crc32 = crc32  # type: ignore[attr-defined]


class WireError(PcctError):
    """A body or a wish about the answer's format that cannot be met."""


class UnsupportedBody(WireError):
    """The body's media type is not read here."""


class UnsupportedCoding(UnsupportedBody):
    """The body's content coding is not read here; `headers` say which are."""

    def __init__(self, coding: str, read: Sequence[str]) -> None:
        ways = " or ".join(["uncompressed", *(f"with {name}" for name in read)])
        super().__init__(f"Content-Encoding {coding:.80} is not read here; send the body {ways}")
        self.headers = {"Accept-Encoding": ", ".join(read) or "identity"}


class NothingAcceptable(WireError):
    """None of the formats in Accept is written here."""


class BodyTooLarge(WireError):
    """The body, or the array its header announces, is over a configured limit."""


class MalformedArray(WireError):
    """The body is not the array that its type claims."""


class WrongLength(WireError):
    """The body ends before its array does, or goes on behind it."""


class InvalidParameter(WireError):
    """A query parameter cannot be used.

    field: name of the parameter.
    """

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class Limits(NamedTuple):
    """What an uploaded array may cost; see `service.settings.ServiceSettings` for the meaning of each."""

    max_body_bytes: int
    max_points: int
    max_dimensions: int
    max_fortran_bytes: int
    max_json_bytes: int


class Layout(NamedTuple):
    """How the numbers of an (n, d) array lie in a body.

    dtype: one of `POINT_TYPES` in the body's byte order. fortran: columns follow each other instead of rows.
    """

    n: int
    d: int
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def data_bytes(self) -> int:
        """Bytes of all numbers together."""
        return self.n * self.d * self.dtype.itemsize

    @property
    def canonical_dtype(self) -> np.dtype[Any]:
        """The little-endian type of the stored rows; all but float32 becomes float64, as everywhere (`as_points`)."""
        return self.dtype.newbyteorder("<") if self.dtype.name in ("float32", "float64") else np.dtype("<f8")

    @property
    def canonical_bytes(self) -> int:
        """Bytes of the stored rows together."""
        return self.n * self.d * self.canonical_dtype.itemsize


class PointsDecoder(Protocol):
    """Takes a body piece by piece and gives its rows in canonical form: C order, little-endian.

    The layout is known once enough of the body has come, and always before the first rows.
    """

    @property
    def layout(self) -> Layout | None:
        """The array's layout, None until it is known."""
        ...

    def feed(self, piece: bytes) -> Iterator[Points]:
        """Take the next piece, yield the rows that are complete with it."""
        ...

    def finish(self) -> Iterator[Points]:
        """Say that the body has ended, yield what was held back; raises WrongLength when something is missing."""
        ...


def points_decoder(
    content_type: str | None,
    content_encoding: str | None,
    content_length: int | None,
    query: Mapping[str, str],
    limits: Limits,
    others: Mapping[str, Callable[[Limits], PointsDecoder]] = MappingProxyType({}),
) -> PointsDecoder:
    """Return the decoder for a body by its headers and the query parameters `dtype`, `shape` and `tensor`.

    others: decoders of further media types, which need more than the bytes.

    Raises UnsupportedBody for a type nothing reads, BodyTooLarge when Content-Length is already over the limit.
    """
    _check_uncompressed(content_encoding, CODINGS)
    if content_length is not None and content_length > limits.max_body_bytes + _MAX_HEADER_BYTES:
        raise BodyTooLarge(f"the body has {content_length} bytes, the limit is {limits.max_body_bytes}")
    media = _media_type(content_type)
    raw = "dtype" in query or "shape" in query
    tensor = query.get("tensor")
    if tensor is not None and media != SAFETENSORS:
        raise InvalidParameter(
            f"tensor names one of a safetensors file; send that with Content-Type {SAFETENSORS}", "tensor"
        )
    if media == NPY:
        return _HeadedDecoder(_NPY_HEADER, limits, content_length)
    if media == SAFETENSORS:
        header = _Header("safetensors", _safetensors_header_bytes, partial(_find_tensor, tensor=tensor))
        return _HeadedDecoder(header, limits, content_length)
    if media == JSON:
        return _JsonDecoder(limits)
    if raw and media in (RAW, *_UNDECLARED):
        return _RowDecoder(_raw_layout(query, limits), 0, content_length)
    if media == RAW or media in _UNDECLARED:
        return _SniffingDecoder(limits, content_length, media)
    if media in others:
        return others[media](limits)
    if media in _ARCHIVES:
        raise UnsupportedBody(NO_ARCHIVES)
    if media == "multipart/form-data":
        raise UnsupportedBody(f"multipart/form-data is not read here (curl -F sends it); {HOW_TO_SEND}")
    raise UnsupportedBody(
        f"Content-Type {media} is not read here; use {', '.join((NPY, SAFETENSORS, *others, JSON))}, or {RAW} with "
        f"?dtype=&shape=: {HOW_TO_SEND}"
    )


def check_json(content_type: str | None, content_encoding: str | None) -> None:
    """Raise UnsupportedBody for the body of a JSON call that says it is something else, or compressed."""
    _check_uncompressed(content_encoding, ())
    media = _media_type(content_type)
    if media != JSON and not media.endswith("+json") and media not in _UNDECLARED:
        raise UnsupportedBody(f"Content-Type {media} is not read here; send JSON with Content-Type {JSON}")


def _check_uncompressed(content_encoding: str | None, read: Sequence[str]) -> None:
    """Raise UnsupportedCoding for a body that is compressed. read: the codings that could be undone before."""
    if content_encoding is not None and content_encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedCoding(content_encoding, read)


def _media_type(content_type: str | None) -> str:
    """Return a Content-Type without its parameters, "" for none."""
    return (content_type or "").partition(";")[0].strip().lower()


class _RowDecoder:
    """Cuts the numbers of a known layout into blocks of rows."""

    def __init__(self, layout: Layout, header_bytes: int, content_length: int | None) -> None:
        self.layout: Layout | None = layout
        self._layout = layout
        self._received = self._given = 0
        self._pending = bytearray()
        row_bytes = layout.d * layout.dtype.itemsize
        # Of what comes; the rows that are made of it have about a megabyte.
        self._block_bytes = max(1, _BLOCK_BYTES // (layout.d * layout.canonical_dtype.itemsize)) * row_bytes
        if content_length is not None:
            self._judge_length(content_length - header_bytes)

    def feed(self, piece: bytes) -> Iterator[Points]:
        self._received += len(piece)
        if self._received > self._layout.data_bytes:
            self._judge_length(self._received)
        self._pending += piece
        if self._layout.fortran:
            return
        while len(self._pending) >= self._block_bytes:
            yield self._take(self._block_bytes)
        if self._received == self._layout.data_bytes and self._pending:
            yield self._take(len(self._pending))

    def _take(self, size: int) -> Points:
        """Return the first rows of what is pending, without a copy of them."""
        block, self._pending = self._pending, self._pending[size:]
        return self._canonical(
            np.frombuffer(block, self._layout.dtype, size // self._layout.dtype.itemsize).reshape(-1, self._layout.d)
        )

    def finish(self) -> Iterator[Points]:
        self._judge_length(self._received)
        if self._layout.fortran:
            rows = np.frombuffer(self._pending, self._layout.dtype).reshape(self._layout.d, self._layout.n).T
            step = self._block_bytes // (self._layout.d * self._layout.dtype.itemsize)
            for start in range(0, self._layout.n, step):
                yield self._canonical(rows[start : start + step])

    def _canonical(self, rows: NDArray[Any]) -> Points:
        if rows.dtype == np.bool_:
            rows = rows.view(np.uint8) != 0  # a body may hold any byte
        check_exact(rows, rows, first_row=self._given)
        self._given += len(rows)
        return np.ascontiguousarray(rows, dtype=self._layout.canonical_dtype)

    def _judge_length(self, found: int) -> None:
        layout = self._layout
        if found == layout.data_bytes:
            return
        claim = f"a ({layout.n}, {layout.d}) array of {layout.dtype.name} has {layout.data_bytes} bytes of numbers"
        if found < layout.data_bytes:
            raise WrongLength(
                f"{claim}, the body holds {found}: it was cut short; with curl use --data-binary, -d drops bytes"
            )
        raise WrongLength(f"{claim}, the body goes on behind them; send one array and nothing else")


class _Found(NamedTuple):
    """What a header says: the points' layout, and the bytes of other arrays before and behind them."""

    layout: Layout
    before: int = 0
    behind: int = 0


class _Header(NamedTuple):
    """How a format says what follows. length: of the header with all before it, None while too little has come to say."""

    name: str
    length: Callable[[bytes | bytearray], int | None]
    find: Callable[[bytes, Limits], _Found]


class _HeadedDecoder:
    """Reads a header that is bounded, then rows; passes over what stands before and behind them."""

    def __init__(self, header: _Header, limits: Limits, content_length: int | None) -> None:
        self.layout: Layout | None = None
        self._header = header
        self._limits = limits
        self._content_length = content_length
        self._head = bytearray()
        self._rows: _RowDecoder | None = None
        self._before = self._wanted = self._behind = 0

    def feed(self, piece: bytes) -> Iterator[Points]:
        if self._rows is None:
            self._head += piece
            header_bytes = self._header.length(self._head)
            if header_bytes is None or len(self._head) < header_bytes:
                return
            found = self._header.find(bytes(self._head[:header_bytes]), self._limits)
            self.layout, self._before, self._behind = found
            self._wanted = found.layout.data_bytes
            around = header_bytes + found.before + found.behind
            self._rows = _RowDecoder(found.layout, around, self._content_length)
            piece = bytes(self._head[header_bytes:])
            self._head.clear()
        yield from self._cut(self._rows, piece)

    def finish(self) -> Iterator[Points]:
        if self._rows is None:
            if not self._head:
                raise MalformedArray(f"the body is empty; {HOW_TO_SEND}")
            raise WrongLength(
                f"the body ends inside its {self._header.name} header, after {len(self._head)} bytes; {HOW_TO_SEND}"
            )
        yield from self._rows.finish()
        if self._behind:
            raise WrongLength(
                f"the body ends {self._behind} bytes before its {self._header.name} file does; send all of it"
            )

    def _cut(self, rows: _RowDecoder, piece: bytes) -> Iterator[Points]:
        """Give the part of a piece that holds points to their decoder, and what belongs to nothing, which it refuses."""
        skipped = min(self._before, len(piece))
        taken = min(self._wanted, len(piece) - skipped)
        ignored = min(self._behind, len(piece) - skipped - taken)
        self._before, self._wanted, self._behind = self._before - skipped, self._wanted - taken, self._behind - ignored
        if taken:
            yield from rows.feed(piece[skipped : skipped + taken])
        if skipped + taken + ignored < len(piece):
            yield from rows.feed(piece[skipped + taken + ignored :])


class _JsonDecoder:
    """Reads a JSON list of rows, held whole, so small ones only."""

    def __init__(self, limits: Limits) -> None:
        self.layout: Layout | None = None
        self._limits = limits
        self._text = bytearray()

    def feed(self, piece: bytes) -> Iterator[Points]:
        self._text += piece
        if len(self._text) > self._limits.max_json_bytes:
            raise BodyTooLarge(
                f"a JSON array may have {self._limits.max_json_bytes} bytes here; for larger ones {HOW_TO_SEND}"
            )
        yield from ()

    def finish(self) -> Iterator[Points]:
        points = _points_from_json(bytes(self._text))
        self.layout = _checked_layout(points.shape, "<f8", False, self._limits)
        yield points


class _SniffingDecoder:
    """Decides by the first bytes when nobody said what the body is."""

    def __init__(self, limits: Limits, content_length: int | None, media: str) -> None:
        self._limits = limits
        self._content_length = content_length
        self._media = media
        self._head = b""
        self._chosen: PointsDecoder | None = None

    @property
    def layout(self) -> Layout | None:
        return self._chosen.layout if self._chosen else None

    def feed(self, piece: bytes) -> Iterator[Points]:
        if self._chosen is None:
            self._head += piece
            if len(self._head) < len(NPY_MAGIC):
                return
            self._chosen, piece = self._choose(), self._head
        yield from self._chosen.feed(piece)

    def finish(self) -> Iterator[Points]:
        if self._chosen is None:
            self._chosen = self._choose()
            yield from self._chosen.feed(self._head)
        yield from self._chosen.finish()

    def _choose(self) -> PointsDecoder:
        if self._head.startswith(NPY_MAGIC):
            return _HeadedDecoder(_NPY_HEADER, self._limits, self._content_length)
        if not self._head:
            raise MalformedArray(f"the body is empty; {HOW_TO_SEND}")
        if self._head.startswith(_ZIP_MAGIC):
            raise UnsupportedBody(NO_ARCHIVES)
        _check_unpacked(self._head)
        if self._media != RAW and self._head.lstrip().startswith(b"["):
            return _JsonDecoder(self._limits)
        if self._media == RAW:
            raise MalformedArray(
                f"the body is not a .npy file; add ?dtype=float32&shape=n,d for raw numbers, or {HOW_TO_SEND}"
            )
        raise UnsupportedBody(f"the body has no Content-Type and is not a .npy file; {HOW_TO_SEND}")


def _check_unpacked(head: bytes | bytearray) -> None:
    """Raise UnsupportedBody for a compressed body that does not say so."""
    for magic, coding in _PACKED.items():
        if head.startswith(magic):
            raise UnsupportedBody(f"the body is compressed; say so with -H 'Content-Encoding: {coding}'")


def _npy_header_bytes(head: bytes | bytearray) -> int | None:
    """Return the length of magic, version and header together, None while too little has come to say."""
    if not NPY_MAGIC.startswith(bytes(head[: len(NPY_MAGIC)])):
        _check_unpacked(head)
        raise MalformedArray(f"the body is not a .npy file: it starts with {bytes(head[:8])!r}; {HOW_TO_SEND}")
    if len(head) < 8:
        return None
    version = (head[6], head[7])
    if version not in _NPY_VERSIONS:
        raise MalformedArray(
            f"the .npy format is {version[0]}.{version[1]}, which does not exist: its bytes were altered on the way; "
            f"with curl use --data-binary, -d drops bytes: {HOW_TO_SEND}"
        )
    width = 2 if version == (1, 0) else 4
    if len(head) < 8 + width:
        return None
    length = int.from_bytes(head[8 : 8 + width], "little")
    if length > _MAX_HEADER_BYTES:
        raise MalformedArray(f"the .npy header claims {length} bytes; a float array needs 118: {HOW_TO_SEND}")
    return 8 + width + length


# Python 2 wrote long integers with an L behind: (1000L, 3L). No name in a type's description ends with a digit and an L.
_PYTHON2_LONG = re.compile(r"\b(\d+)[lL]\b")

# Names that np.load takes besides those that np.save writes; without a byte order, as here, it means its own machine's.
_OTHER_NAMES = {
    f"{order}{name}": descr.replace("<", ">") if order == ">" else descr
    for known, names in (
        ("float16", ("f2", "e", "half")),
        ("float32", ("f4", "f", "single")),
        ("float64", ("f8", "d", "double", "float")),
        ("int8", ("i1", "b", "byte")),
        ("int16", ("i2", "h", "short")),
        ("int32", ("i4", "i", "intc")),
        ("int64", ("i8", "l", "q", "p", "long", "longlong", "int", "int_", "intp")),
        ("uint8", ("u1", "B", "ubyte")),
        ("uint16", ("u2", "H", "ushort")),
        ("uint32", ("u4", "I", "uintc")),
        ("uint64", ("u8", "L", "Q", "P", "ulong", "ulonglong", "uint", "uintp")),
        ("bool", ("b1", "?", "bool_")),
    )
    for descr in (POINT_TYPES[known],)
    for name in (known, *names)
    for order in ("", "=", "|", "<", ">")
}


def _find_npy(head: bytes, limits: Limits) -> _Found:
    """Read the dictionary of a .npy header (magic and version included) whose length has been judged."""
    version = head[6]
    text = head[10 if version == 1 else 12 :].decode("utf-8" if version == 3 else "latin-1", errors="replace").strip()
    try:
        fields = ast.literal_eval(_PYTHON2_LONG.sub(r"\1", text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise MalformedArray(f"the .npy header cannot be read; {HOW_TO_SEND}") from None
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise MalformedArray(f"the .npy header must hold descr, fortran_order and shape; {HOW_TO_SEND}")
    shape, fortran = fields["shape"], fields["fortran_order"]
    if not isinstance(fortran, bool) or not isinstance(shape, tuple) or not all(type(size) is int for size in shape):
        raise MalformedArray(f"the .npy header has a wrong shape or fortran_order; {HOW_TO_SEND}")
    descr = fields["descr"]
    if isinstance(descr, str | bytes):
        name = descr if isinstance(descr, str) else descr.decode("latin-1")
        descr = _OTHER_NAMES.get(name, name)
    return _Found(_checked_layout(shape, descr, fortran, limits))


def _safetensors_header_bytes(head: bytes | bytearray) -> int | None:
    if len(head) < 8:
        return None
    length = int.from_bytes(head[:8], "little")
    if length > _MAX_SAFETENSORS_HEADER_BYTES:
        raise MalformedArray(
            f"the safetensors header claims {length} bytes, {_MAX_SAFETENSORS_HEADER_BYTES} are read here; "
            "save_file({'points': X}, path) writes about 100"
        )
    return 8 + length


class _Tensor(NamedTuple):
    """An entry of a safetensors header: its type and shape as they stand there, and its first and behind-last byte."""

    dtype: object
    shape: tuple[Any, ...]
    begin: int
    end: int


def _find_tensor(head: bytes, limits: Limits, tensor: str | None) -> _Found:
    """Read the header of a safetensors file and find the points in it: its only tensor, or the one of this name."""
    tensors = _read_tensors(head)
    if tensor is None and len(tensors) != 1:
        raise MalformedArray(
            f"the safetensors file holds {len(tensors)} tensors{_listed(tensors)}; "
            "say which holds the points with ?tensor=NAME, or send it alone"
        )
    name = next(iter(tensors)) if tensor is None else tensor
    if name not in tensors:
        raise InvalidParameter(f"the safetensors file has no tensor {name!r:.80}{_listed(tensors)}", "tensor")
    dtype, shape, begin, end = tensors[name]
    if not all(type(size) is int for size in shape):
        raise MalformedArray("the safetensors header has a wrong shape; save_file({'points': X}, path) writes one")
    layout = _checked_layout(shape, _SAFETENSORS_POINTS.get(str(dtype), dtype), False, limits)
    if end - begin != layout.data_bytes:
        raise MalformedArray(f"the safetensors header places {layout.data_bytes} bytes at [{begin}, {end}]")
    return _Found(layout, begin, max(other.end for other in tensors.values()) - end)


def _read_tensors(head: bytes) -> dict[str, _Tensor]:
    try:
        fields = json.loads(head[8:])
        found = {
            name: _Tensor(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in fields.items()
            if name != "__metadata__"
        }
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
        raise MalformedArray(
            "the safetensors header cannot be read; save_file({'points': X}, path) writes one"
        ) from None
    for name, (_, _, begin, end) in found.items():
        if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
            raise MalformedArray(f"the safetensors header places {name!r:.80} at [{begin!s:.20}, {end!s:.20}]")
    reached = 0
    for begin, end in sorted((begin, end) for _, _, begin, end in found.values()):
        if begin != reached:
            raise MalformedArray(f"the safetensors header leaves a gap or an overlap at byte {min(begin, reached)}")
        reached = end
    return found


def _listed(tensors: Mapping[str, object]) -> str:
    """Return their names as a part of a sentence, the first few where there are many."""
    names = [f"{name!r:.80}" for name in list(tensors)[:_NAMES_TOLD]]
    more = f" and {len(tensors) - _NAMES_TOLD} more" if len(tensors) > _NAMES_TOLD else ""
    return f": {', '.join(names)}{more}" if names else ""


_NAMES_TOLD = 20
_NPY_HEADER = _Header(".npy", _npy_header_bytes, _find_npy)


def _raw_layout(query: Mapping[str, str], limits: Limits) -> Layout:
    """Return the layout of raw little-endian numbers from ?dtype= and ?shape=."""
    name = query.get("dtype", "")
    if name not in POINT_TYPES:
        raise InvalidParameter(
            f"dtype is {name!r:.80}; raw numbers need ?dtype= one of {', '.join(POINT_TYPES)}", "dtype"
        )
    sizes = query.get("shape", "").split(",")
    if not all(size.strip().isascii() and size.strip().isdigit() and len(size) < 20 for size in sizes):
        raise InvalidParameter(f"shape is {query.get('shape', '')!r}; raw numbers need ?shape=n,d", "shape")
    return _checked_layout(tuple(int(size) for size in sizes), POINT_TYPES[name], False, limits)


def _checked_layout(shape: tuple[int, ...], descr: object, fortran: bool, limits: Limits) -> Layout:
    """Return the layout, or refuse its type, rank or size; nothing has been allocated for it yet."""
    if not isinstance(descr, str) or descr not in _READABLE:
        kind = str(descr)[:40]
        never = " (objects are pickles, which are never read)" if "O" in kind else ""
        raise InvalidPoints(f"points have type {kind}{never}; {_type_fix(descr, len(shape))}")
    if len(shape) != 2:
        fix = "; use X.reshape(-1, 1) for one dimension" if len(shape) == 1 else ""
        raise InvalidPoints(f"points have shape {shape}; expected (n, d){fix}")
    if min(shape) < 1:
        raise InvalidPoints(f"points have shape {shape}; at least one row and one column are needed")
    layout = Layout(shape[0], shape[1], np.dtype(str(descr)), fortran and 1 not in shape)
    if layout.canonical_bytes > limits.max_body_bytes:
        raise BodyTooLarge(
            f"a ({layout.n}, {layout.d}) array of {layout.canonical_dtype.name} has {layout.canonical_bytes} bytes, "
            f"the limit is {limits.max_body_bytes}"
        )
    if layout.n > limits.max_points:
        raise BodyTooLarge(f"the array has {layout.n} points, the limit is {limits.max_points}")
    if layout.d > limits.max_dimensions:
        raise BodyTooLarge(f"the array has {layout.d} columns, the limit is {limits.max_dimensions}")
    if layout.fortran and layout.data_bytes > limits.max_fortran_bytes:
        raise BodyTooLarge(
            f"an array in Fortran order may have {limits.max_fortran_bytes} bytes, this one has {layout.data_bytes}; "
            "send np.ascontiguousarray(X)"
        )
    return layout


def _type_fix(descr: Any, rank: int) -> str:
    """Return what makes points of an array of this type, as it stands in a header, before it is saved."""
    try:
        dtype = np.lib.format.descr_to_dtype(descr)
    except (TypeError, ValueError, SyntaxError, LookupError, AttributeError, RecursionError):
        dtype = np.dtype(object)
    return numbers_fix(dtype, rank)


def _points_from_json(text: bytes) -> NDArray[np.float64]:
    """Return a JSON list of rows as float64 (n, d); numbers only, all rows of one length."""
    example = "send a list of rows such as [[0.0, 1.0], [2.0, 3.0]]"
    try:
        rows = json.loads(text, parse_float=Written)
    except (ValueError, RecursionError):
        raise MalformedArray(f"the body is not JSON; {example}") from None
    if not isinstance(rows, list):
        raise MalformedArray(f"the JSON body is not a list; {example}")
    if not rows:
        raise InvalidPoints("points have shape (0,); at least one row and one column are needed")
    for index, row in enumerate(rows):
        if not isinstance(row, list):
            raise InvalidPoints(f"row {index} is not a list; {example}", index)
        if len(row) != len(rows[0]):
            raise InvalidPoints(f"row {index} has {len(row)} values, row 0 has {len(rows[0])}", index)
        if not {*map(type, row)} <= {int, float, Written}:
            raise InvalidPoints(f"row {index} holds something else than numbers; {example}", index)
    try:
        points = np.array(rows, dtype="<f8").reshape(len(rows), len(rows[0]))
    except OverflowError:
        raise InvalidPoints("a number is too large for float64") from None
    check_written(rows, points)
    return points


def npy_header(dtype: str, shape: Sequence[int]) -> bytes:
    """Return the header that np.save writes for a C-ordered little-endian array, so header + data is its file.

    dtype: NumPy name such as "float32" or "int64".
    """
    descr = np.dtype(dtype).newbyteorder("<").str
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {tuple(shape)!r}, }}"
    length = math.ceil((10 + len(text) + 1) / 128) * 128 - 10
    return NPY_MAGIC + b"\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1).encode("ascii") + b"\n"


class ArrayStream(NamedTuple):
    """One array on its way out.

    dtype: NumPy name. shape: of the whole array. rows: its C-ordered little-endian bytes, piece by piece.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: AsyncIterator[Piece]

    @property
    def data_bytes(self) -> int:
        """Length of the numbers alone."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def npy_bytes(self) -> int:
        """Length of the array as a .npy file."""
        return len(npy_header(self.dtype, self.shape)) + self.data_bytes


async def write_npy(array: ArrayStream) -> AsyncIterator[Piece]:
    """Yield the array as a .npy file."""
    yield npy_header(array.dtype, array.shape)
    async for piece in array.rows:
        yield piece


async def write_json(array: ArrayStream) -> AsyncIterator[bytes]:
    """Yield the array as a JSON list, of rows if it has columns; null where a distance is infinite, which JSON has not."""
    yield b"["
    comma = b""
    async for piece in array.rows:
        block = np.frombuffer(piece, np.dtype(array.dtype).newbyteorder("<")).reshape(-1, *array.shape[1:])
        values = block.astype(object)
        values[~np.isfinite(block)] = None
        yield comma + json.dumps(values.tolist(), separators=(",", ":"), allow_nan=False)[1:-1].encode()
        comma = b","
    yield b"]"


async def write_json_object(arrays: Iterable[ArrayStream]) -> AsyncIterator[bytes]:
    """Yield the arrays as a JSON object of lists, by name."""
    before = b"{"
    for array in arrays:
        yield before + json.dumps(array.name).encode() + b":"
        async for piece in write_json(array):
            yield piece
        before = b","
    yield b"}"


def safetensors_header(arrays: Sequence[ArrayStream]) -> bytes:
    """Return what stands before the numbers of the arrays in a safetensors file; they must follow in this order."""
    entries: dict[str, Any] = {}
    end = 0
    for array in arrays:
        begin, end = end, end + array.data_bytes
        dtype = _SAFETENSORS_TYPES[np.dtype(array.dtype).name]
        entries[array.name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the first number is aligned for a reader that maps the file
    return len(text).to_bytes(8, "little") + text


def safetensors_order(arrays: Iterable[ArrayStream]) -> list[ArrayStream]:
    """Return the arrays in the order in which every one of them is aligned: wide numbers first."""
    return sorted(arrays, key=lambda array: -np.dtype(array.dtype).itemsize)


async def write_safetensors(arrays: Sequence[ArrayStream]) -> AsyncIterator[Piece]:
    """Yield the arrays, in the order of `safetensors_order`, as a safetensors file."""
    yield safetensors_header(arrays)
    for array in arrays:
        async for piece in array.rows:
            yield piece


async def write_npz(arrays: Iterable[ArrayStream]) -> AsyncIterator[Piece]:
    """Yield the arrays as an uncompressed .npz file that np.load reads; same arrays, same bytes."""
    out = Drain()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for array in arrays:
            member = zipfile.ZipInfo(f"{array.name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.file_size = array.npy_bytes  # decides whether the entry needs the 64-bit form
            with archive.open(member, "w") as file:
                async for piece in write_npy(array):
                    file.write(piece)
                    yield out.take()
    yield out.take()


def npz_bytes(arrays: Iterable[ArrayStream]) -> int | None:
    """Return the length of what `write_npz` yields, None where it has more than 2 GB, in the form for large files."""
    # Each file has a header, its sum and lengths behind it, and an entry at the end, both with its name; PKZIP APPNOTE 4.3.
    length = 22 + sum(30 + 16 + 46 + 2 * len(f"{array.name}.npy") + array.npy_bytes for array in arrays)
    return length if length < _LARGE_ZIP_BYTES else None


class Drain(io.RawIOBase):
    """A file that cannot seek, whose content is taken away as it is written."""

    def __init__(self) -> None:
        self._written: list[Piece] = []

    def writable(self) -> bool:
        """Say that it takes data."""
        return True

    def write(self, data: Any) -> int:
        """Take data, all of it."""
        # Rows as they are: no copy of them.
        kept = isinstance(data, bytes) or (isinstance(data, memoryview) and isinstance(data.obj, bytes))
        self._written.append(data if kept else bytes(data))
        return len(self._written[-1])

    def take(self) -> Piece:
        """Return what was written since the last call."""
        taken, self._written = self._written, []
        return taken[0] if len(taken) == 1 else b"".join(taken)


def choose_format(accept: str | None, offered: Sequence[str]) -> str:
    """Return the offered media type that Accept prefers; the first one when it does not care.

    Raises NothingAcceptable when every offered type is excluded.
    """
    ranges = [_media_range(item) for item in (accept or "").split(",") if item.strip()] or [("*/*", 1.0)]
    quality = {media: _quality(media, ranges) for media in offered}
    best = max(offered, key=lambda media: quality[media])  # max keeps the first of equals
    if quality[best] <= 0:
        raise NothingAcceptable(f"nothing here fits Accept: {accept}; ask for {' or '.join(offered)}")
    return best


def choose_sized_format(accept: str | None, offered: Sequence[str], numbers: int, max_json_bytes: int) -> str:
    """Return as `choose_format` does, without JSON where an answer of so many numbers may take more than max_json_bytes.

    Raises NothingAcceptable, with what to do instead.
    """
    if numbers * _JSON_NUMBER_BYTES <= max_json_bytes:
        return choose_format(accept, offered)
    others = [media for media in offered if media != JSON]
    try:
        return choose_format(accept, others)
    except NothingAcceptable:
        choose_format(accept, offered)
        raise NothingAcceptable(
            f"{numbers} numbers are too many for JSON, which is limited to {max_json_bytes} bytes here "
            f"({max_json_bytes // _JSON_NUMBER_BYTES} numbers); ask for {' or '.join(others)}, or for a part of an "
            "array with ?rows=a:b&k="
        ) from None


def choose_coding(accept_encoding: str | None, offered: Sequence[str]) -> str | None:
    """Return the offered content coding that Accept-Encoding prefers, the first of equals; None when it names none."""
    qualities = dict(_media_range(item) for item in (accept_encoding or "").split(",") if item.strip())
    best = max(offered, key=lambda coding: qualities.get(coding, 0.0))
    return best if qualities.get(best, 0.0) > 0 else None


def takes_coding(accept_encoding: str | None, coding: str) -> bool:
    """Return whether a client with this Accept-Encoding reads a coding; one that says nothing reads any."""
    if accept_encoding is None:
        return True
    qualities = dict(_media_range(item) for item in accept_encoding.split(",") if item.strip())
    return qualities.get(coding, qualities.get("*", 0.0)) > 0


def _media_range(item: str) -> tuple[str, float]:
    media, *parameters = (part.strip().lower() for part in item.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return media, float(value)
            except ValueError:
                return media, 0.0
    return media, 1.0


def _quality(media: str, ranges: Sequence[tuple[str, float]]) -> float:
    """Return the quality of the most specific range that covers media, 0 when none does."""
    for pattern in (media, media.partition("/")[0] + "/*", "*/*"):
        for name, quality in ranges:
            if name == pattern:
                return quality
    return 0.0
