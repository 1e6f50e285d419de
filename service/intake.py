"""What comes in: one array into the store, bounded and all or nothing; small JSON; wishes, judged before a job."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, cast

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from pcct_core.columns import check_column_shape, first_fraction, fraction_fault
from pcct_core.errors import InvalidPoints, InvalidSpec
from pcct_core.points import Points, check_finite, check_metric, check_shape
from pcct_core.spec import Cosine, GraphSpec, Haversine, Inducing, Metric, Residual
from service.arrow import ArrowDecoder
from service.problems import UploadStalled
from service.settings import ServiceSettings
from service.unpacking import UnpackingDecoder, coding_of
from service.wire import (
    ARROW,
    BodyTooLarge,
    InvalidParameter,
    Layout,
    PointsDecoder,
    check_json,
    npy_header,
    points_decoder,
)
from worker.cost import build_bytes
from worker.query import QuerySpec, check_query
from worker.settings import ENTRY_BYTES
from worker.store import Dataset, Store

M = TypeVar("M", bound=BaseModel)

# Metrics that are not defined on every row. Where they fail is noted while the rows pass by, so that a graph that
# cannot be is refused when it is asked for, without reading the points again.
_PARTIAL_METRICS: tuple[Metric, ...] = (Haversine(), Cosine())
_GROUPS = "groups"  # noted likewise: a single column that cannot number the groups of other points


class Purpose(NamedTuple):
    """What an array on its way is for, where that is known: what cannot be is refused as soon as it is seen.

    metric: which its rows must suit. check: called with n and d before the first rows; raises for those that do not fit.
    """

    metric: Metric
    check: Callable[[int, int], None]


def check_wish(n: int, d: int, spec: GraphSpec, settings: ServiceSettings, references: Sequence[Dataset] = ()) -> None:
    """Raise InvalidPoints or InvalidSpec when spec does not fit n points in d dimensions, or costs too much here.

    references: the datasets that the specification names.
    """
    check_shape(n, d, spec)
    for field, stored in spec.columns().items():
        for column in (dataset for dataset in references if dataset.id == stored.id):
            check_column_shape((column.n, column.d), n, field)
            fault = column.facts.get("faults", {}).get(field)
            if fault is not None:
                raise InvalidSpec(fault["detail"], field)
    _check_cost(n, spec.k, settings)
    count, given = _inducing_count(spec.metric, references), _has_factors(spec.metric)
    size = build_bytes(n, d, spec.k, count, given=given, grouped=spec.groups is not None)
    _check_memory(size, spec.metric, settings)


def check_wish_on(
    dataset: Dataset, spec: GraphSpec, settings: ServiceSettings, references: Sequence[Dataset] = ()
) -> None:
    """Raise InvalidPoints or InvalidSpec when spec cannot be met on this dataset, by what its upload has noted."""
    check_wish(dataset.n, dataset.d, spec, settings, references)
    _check_faults(dataset, spec.metric)


def check_queries(
    n: int,
    d: int,
    asked: Dataset,
    wanted: GraphSpec | QuerySpec,
    settings: ServiceSettings,
    references: Sequence[Dataset] = (),
) -> None:
    """Raise InvalidPoints or InvalidSpec when n queries in d dimensions cannot ask a dataset, or cost too much here.

    wanted: their k and metric. references: the datasets that the metric names.
    """
    if d != asked.d:
        raise InvalidPoints(f"queries have {d} columns, the points of dataset {asked.id} have {asked.d}")
    _check_cost(n, wanted.k, settings)
    count = _inducing_count(wanted.metric, references)
    _check_memory(build_bytes(asked.n, d, wanted.k, count, n), wanted.metric, settings)


def check_query_on(asked: Dataset, k: int, metric: Metric) -> None:
    """Raise InvalidPoints or InvalidSpec when a dataset cannot be asked for neighbors, by whatever queries."""
    check_query(asked.n, asked.d, k, metric)
    _check_faults(asked, metric)


def check_query_between(
    asked: Dataset,
    queries: Dataset,
    spec: QuerySpec,
    settings: ServiceSettings,
    references: Sequence[Dataset] = (),
) -> None:
    """Raise InvalidPoints or InvalidSpec when a query cannot be answered on these two datasets."""
    check_query_on(asked, spec.k, spec.metric)
    check_queries(queries.n, queries.d, asked, spec, settings, references)
    _check_faults(queries, spec.metric)


def _check_cost(rows: int, k: int, settings: ServiceSettings) -> None:
    if k > settings.max_k:
        raise InvalidSpec(f"k is {k}, this service allows k ≤ {settings.max_k}", "k")
    size = rows * k * ENTRY_BYTES
    if size > settings.max_graph_bytes:
        raise InvalidSpec(
            f"k is {k} for {rows} points: a graph of {size} bytes, the limit is {settings.max_graph_bytes}", "k"
        )


def _check_memory(size: int, metric: Metric, settings: ServiceSettings) -> None:
    if size <= settings.max_build_bytes:
        return
    fact = f"the build would take about {size} bytes of memory, the limit is {settings.max_build_bytes}"
    if isinstance(metric, Residual):
        raise InvalidSpec(f"{fact}; use fewer inducing points or fewer points", "metric.inducing")
    raise InvalidSpec(f"{fact}; use a smaller k or fewer points", "k")


def _inducing_count(metric: Metric, references: Sequence[Dataset]) -> int:
    """Return m of a residual metric, 0 of any other."""
    if not isinstance(metric, Residual):
        return 0
    if isinstance(metric.inducing, Inducing):
        return metric.inducing.count
    stored = metric.inducing or (metric.factors and metric.factors[0])
    found = next((dataset for dataset in references if stored is not None and dataset.id == stored.id), None)
    if found is None:
        return 0
    return found.n if metric.factors is None else found.d


def _has_factors(metric: Metric) -> bool:
    return isinstance(metric, Residual) and metric.factors is not None


def _check_faults(dataset: Dataset, metric: Metric) -> None:
    fault = dataset.facts.get("faults", {}).get(_metric_name(metric))
    if fault is not None:
        raise InvalidPoints(fault["detail"], fault["row"])


async def receive_points(
    request: Request, store: Store, settings: ServiceSettings, purpose: Purpose | None = None
) -> tuple[Dataset, bool]:
    """Stream the request's array into the store; return its dataset, and False when it was known already.

    purpose: what it is for, where that is known.
    Raises InvalidPoints, InvalidSpec, WireError or UploadStalled; nothing is left behind then.
    """
    decoder = _decoder(request, settings)
    async with _Arrival(store, purpose) as arrival:
        async for piece in _pieces(request, settings):
            for rows in decoder.feed(piece):
                await arrival.take(rows, decoder.layout)
        # What had to be held whole (JSON, Arrow, Fortran order) is turned in a thread, so that nobody else waits for it.
        rest = decoder.finish()
        while (last := await asyncio.to_thread(_next_rows, rest)) is not None:
            await arrival.take(last, decoder.layout)
        return await arrival.commit()


def _decoder(request: Request, settings: ServiceSettings) -> PointsDecoder:
    encoding = request.headers.get("content-encoding")
    coding = coding_of(encoding)
    length = request.headers.get("content-length", "")
    decoder = points_decoder(
        request.headers.get("content-type"),
        encoding if coding is None else None,
        int(length) if length.isdecimal() and coding is None else None,
        request.query_params,
        settings.limits,
        {ARROW: ArrowDecoder},
    )
    return decoder if coding is None else UnpackingDecoder(decoder, coding)


async def check_parameters(request: Request) -> None:
    """Raise InvalidParameter for a query parameter that is given twice, or to a call that takes none: one would be ignored."""
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if not request.scope["route"].dependant.query_params:
            raise InvalidParameter(f"this call takes no query parameters; leave out {name!r:.80}", name)
        if name in seen:
            raise InvalidParameter(f"{name!r:.80} is there more than once; give it once", name)
        seen.add(name)


async def receive_json(request: Request, settings: ServiceSettings) -> bytes:
    """Return a request's JSON body, which may have `max_request_bytes`; raises UnsupportedBody or BodyTooLarge."""
    check_json(request.headers.get("content-type"), request.headers.get("content-encoding"))
    body = bytearray()
    async for piece in _pieces(request, settings):
        body += piece
        if len(body) > settings.max_request_bytes:
            raise BodyTooLarge(f"the body of this request may have {settings.max_request_bytes} bytes")
    return bytes(body)


async def receive_model(request: Request, settings: ServiceSettings, kind: type[M]) -> M:
    """Return a request's JSON body as a model; raises UnsupportedBody, BodyTooLarge or RequestValidationError.

    No body is an empty object where the model has a default for everything.
    """
    body = await receive_json(request, settings)
    if not body.strip() and not any(field.is_required() for field in kind.model_fields.values()):
        return kind()
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


class _Arrival:
    """One array on its way from the decoder to the store: each block of rows is judged, hashed and staged."""

    def __init__(self, store: Store, purpose: Purpose | None) -> None:
        self._store = store
        self._purpose = purpose
        self._layout: Layout | None = None
        self._digest = hashlib.sha256()
        self._hashing: asyncio.Future[None] | None = None
        self._rows = 0
        self._faults: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._layout is not None:
            await self._upload.__aexit__(kind, error, trace)

    async def take(self, rows: Points, layout: Layout | None) -> None:
        """Take the next rows; the first ones open the upload."""
        if self._layout is None:
            await self._open(layout)
        check_finite(rows, self._rows)
        self._note_faults(rows)
        data = memoryview(cast(Any, rows)).cast("B")
        self._rows += rows.shape[0]
        await self._hashed()
        self._hashing = asyncio.get_running_loop().run_in_executor(None, self._digest.update, data)
        await self._upload.write(data)

    async def commit(self) -> tuple[Dataset, bool]:
        """Make what has come a dataset, named by its content."""
        await self._hashed()
        return await self._upload.commit(self._digest.hexdigest(), {"faults": self._faults})

    async def _hashed(self) -> None:
        """Return when all rows before are in the digest; a thread takes them while others arrive."""
        if self._hashing is not None:
            await self._hashing

    async def _open(self, layout: Layout | None) -> None:
        assert layout is not None  # noqa: S101  (decoders know it before they give rows)
        if self._purpose is not None:
            self._purpose.check(layout.n, layout.d)
        self._digest.update(npy_header(layout.canonical_dtype.name, (layout.n, layout.d)))
        self._upload = await self._store.upload(layout.n, layout.d, layout.canonical_dtype.name).__aenter__()
        self._layout = layout

    def _note_faults(self, rows: Points) -> None:
        if rows.shape[1] == 1 and _GROUPS not in self._faults:
            row = first_fraction(rows[:, 0])
            if row is not None:
                detail = fraction_fault(self._rows + row, float(rows[row, 0]))
                self._faults[_GROUPS] = {"row": self._rows + row, "detail": detail}
        for metric in _PARTIAL_METRICS:
            name = _metric_name(metric)
            if name in self._faults or (isinstance(metric, Haversine) and rows.shape[1] != 2):
                continue
            try:
                check_metric(rows, metric, self._rows)
            except InvalidPoints as fault:
                if self._purpose is not None and self._purpose.metric == metric:
                    raise
                self._faults[name] = {"row": fault.row, "detail": str(fault)}


def _next_rows(blocks: Iterator[Points]) -> Points | None:
    return next(blocks, None)


def _metric_name(metric: Metric) -> str:
    return str(metric.to_json()["type"])


async def _pieces(request: Request, settings: ServiceSettings) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; raises UploadStalled when it pauses too long, or comes too slowly to be meant.

    What counts is the time that we wait for the client; what it waits for us is not its fault.
    """
    idle_s, stream = settings.upload_idle_s, request.stream()
    waited_s, received = 0.0, 0
    while True:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(idle_s):
                piece = await anext(stream, None)
        except TimeoutError:
            raise UploadStalled(
                f"nothing has come for {idle_s:g} s and the body is not complete; send it again"
            ) from None
        if piece is None:
            return
        waited_s += time.monotonic() - begun
        received += len(piece)
        if received < settings.min_upload_rate * (waited_s - idle_s):
            raise UploadStalled(
                f"{received} bytes have come in {waited_s:.0f} s, less than {settings.min_upload_rate} a second; "
                "send the body faster"
            )
        yield piece
