"""Every error of the client, named by what is wrong; each message states the fact and the fix.

ClientError
├── InvalidArray (also a ValueError)      refused here, before anything was sent
├── MissingExtra (also an ImportError)    a library that is not installed was asked for
├── NotForThisGraph (also a ValueError)   a graph was asked for what it does not have
├── InvalidStep (also a ValueError)       a session was stepped with what no graph can have; nothing was sent
├── InvalidUrl (also a ValueError)        the URL cannot be that of a service; nothing was sent
├── InvalidHeader (also a ValueError)     a header of the client's cannot be sent; the message does not show its value
├── InvalidSetting (also a ValueError)    the environment names a proxy or certificates that cannot be used
├── CannotPickle (also a TypeError)       a session, or a client with a transport of its own, was to be pickled
├── BelongsElsewhere                      a session or a transport was used in another process or event loop than its own
├── NoEventLoop (also a RuntimeError)     AsyncClient was used where no asyncio loop runs
├── ClientClosed                          a client was used after it had been closed
├── SessionClosed                         a session was used after it had been closed
├── ServerUnavailable                     nobody answered at the URL, or the service cannot work now (502, 503, 504)
├── WaitTimeout (also a TimeoutError)     the answer did not come within `timeout`; a build goes on meanwhile
├── BuildFailed                           the service gave the build up; `state` is "failed" or "cancelled"
├── InvalidKey (also a ValueError)        the API key cannot be sent as it is
├── VersionMismatch                       the service speaks another version of the contract
├── BadAnswer                             what came back is not what a pcct service says
│   └── TruncatedAnswer                       an array ended before its end
└── RequestRefused                        the service said no; has status, type, title, detail, row, field
    ├── InvalidRequest (also a ValueError)    the points or the specification cannot be used; see `row`, `field`
    ├── Unauthorized                          the API key is missing or wrong
    ├── Forbidden                             the API key does not allow this
    ├── NotFound                              no such dataset or graph
    ├── RateLimited                           too many requests; `retry_after_s` says when there may be more
    └── TooLarge                              more bytes than the service takes

Warnings (UserWarnings):
GeographicCoordinates                     degrees are compared as if they were lengths
UnknownCoordinates                        one of two sets of points does not say which system its coordinates are in
UnknownColumns                            a frame is matched by position with a dataset whose columns have no known names
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any


class ClientError(Exception):
    """Base of all errors raised on purpose by pcct_client. They pickle, so that worker processes can raise them."""

    def __reduce__(self) -> tuple[Callable[..., ClientError], tuple[Any, ...], dict[str, Any]]:
        """Return the error without its constructor's arguments, which are others than those of `Exception`."""
        return _bare, (type(self), *self.args), self.__dict__


def _bare(kind: type[ClientError], *args: Any) -> ClientError:
    error = kind.__new__(kind, *args)
    super(ClientError, error).__init__(*args)
    return error


class InvalidArray(ClientError, ValueError):
    """The array cannot be sent as it is."""


class GeographicCoordinates(UserWarning):
    """Longitude and latitude in degrees, under a metric that takes them for lengths; the message has what to do.

    `warnings.simplefilter("error", GeographicCoordinates)` makes an error of it.
    """


class UnknownCoordinates(UserWarning):
    """Points and queries are compared as they stand, and geopandas knows the system of coordinates of one of them alone."""


class UnknownColumns(UserWarning):
    """The columns of a frame are taken in their order, for nobody here knows what those of the other dataset are called."""


class MissingExtra(ClientError, ImportError):
    """An optional library is not installed; the message has the command that installs it."""


class NotForThisGraph(ClientError, ValueError):
    """This kind of graph has no such thing, or an argument does not fit the graph."""


class InvalidStep(ClientError, ValueError):
    """A hyperparameter that is no positive number, or an epoch that goes backwards."""


class InvalidUrl(ClientError, ValueError):
    """The URL cannot be that of a service; the message has one that can."""


class InvalidHeader(ClientError, ValueError):
    """A header that no request can carry; the message names it and does not show its value."""


class InvalidSetting(ClientError, ValueError):
    """A proxy or certificates of the environment cannot be used; the message names the variable."""


class CannotPickle(ClientError, TypeError):
    """What belongs to one process cannot be sent to another; the message says what to send instead."""


class BelongsElsewhere(ClientError):
    """A session or a transport works only in the process, and with asyncio in the loop, that began it."""


class NoEventLoop(ClientError, RuntimeError):
    """No asyncio loop runs here: outside of a coroutine, under trio, or in a fork of a process whose loop ran."""

    def __init__(self) -> None:
        super().__init__(
            "AsyncClient works in asyncio, and none of its loops runs here; call it from a coroutine under asyncio.run(...), "
            "or use Client (under trio in trio.to_thread.run_sync)"
        )


class ClientClosed(ClientError):
    """The client's connections are closed; `Client(url)` opens others."""

    def __init__(self, url: str) -> None:
        super().__init__(f"the client of {url} is closed; make another, or ask before its `with` block ends")


class SessionClosed(ClientError):
    """The session has ended; `Client.track` begins another."""


class ServerUnavailable(ClientError):
    """No service answered; nothing that was uploaded or built is lost, so the same call can be made again.

    retry_after_s: how long the service asked to wait before that, or None. can_repeat: whether trying again within the
    same call can help.
    """

    def __init__(self, message: str, retry_after_s: float | None = None, can_repeat: bool = True) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.can_repeat = can_repeat


class WaitTimeout(ClientError, TimeoutError):
    """The answer did not come in time.

    graph_id: the graph that was waited for, or None when not even that was answered.
    """

    def __init__(self, message: str, graph_id: str | None = None) -> None:
        super().__init__(message)
        self.graph_id = graph_id


class BuildFailed(ClientError):
    """The graph will not become ready.

    graph_id: the graph. state: "failed" or "cancelled". problem: what the service says about it, as problem+json.
    """

    def __init__(self, message: str, graph_id: str, state: str, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.graph_id = graph_id
        self.state = state
        self.problem = dict(problem or {})


class BadAnswer(ClientError):
    """The answer cannot be read: the URL is not a pcct service, or something between changed it."""


class TruncatedAnswer(BadAnswer):
    """The connection ended inside an array; none of it is returned."""


class InvalidKey(ClientError, ValueError):
    """The API key holds what no header can; the message does not show it."""


class VersionMismatch(ClientError):
    """The service speaks another version of the contract than this client.

    ours, theirs: the versions.
    """

    def __init__(self, ours: str, theirs: str) -> None:
        super().__init__(
            f"the service speaks version {theirs} of the contract, this client version {ours}; "
            "install the client that comes with that service"
        )
        self.ours = ours
        self.theirs = theirs


class RequestRefused(ClientError):
    """The service refused the request, and says why as RFC 9457 problem+json.

    status: HTTP status. type: stable URI of the kind of problem. title: that kind in words. detail: this case.
    row: first offending row of the array, or None. field: offending field of the specification, or None.
    problem: the whole document.
    """

    fix = ""  # said where the service says none, as in answers to HEAD
    fix_is_ours = False  # said in any case: what to do here is not what the service knows

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = dict(problem)
        self.type = str(problem.get("type", "about:blank"))
        self.title = str(problem.get("title") or _phrase(status))
        self.detail = str(problem.get("detail") or "")
        row, field = problem.get("row"), problem.get("field")
        self.row = row if isinstance(row, int) else None
        self.field = field if isinstance(field, str) else None
        said = f"{self.title}: {self.detail}" if self.detail else self.title
        super().__init__(f"{said}; {self.fix}" if self.fix and (self.fix_is_ours or not self.detail) else said)


class InvalidRequest(RequestRefused, ValueError):
    """The points or the specification cannot be used."""


class NotFound(RequestRefused):
    """The dataset or graph is not there: never made, deleted, or evicted."""


class Unauthorized(RequestRefused):
    """The service wants an API key, and got none or one that it does not know."""

    fix = "give a valid key: Client(url, api_key=…), or the environment variable PCCT_API_KEY"
    fix_is_ours = True


class Forbidden(RequestRefused):
    """The API key is valid and does not allow this."""

    fix = "use a key with a larger scope, or ask whoever runs the service for one"


class RateLimited(RequestRefused):
    """Too many requests in a short time.

    retry_after_s: how long the service asked to wait, or None.
    """

    fix = "wait a little, or ask for less at once"

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after_s: float | None = None) -> None:
        super().__init__(status, problem)
        self.retry_after_s = retry_after_s


class TooLarge(RequestRefused):
    """The upload is larger than the service is set up to take."""


_STATUSES = frozenset(HTTPStatus)

_BY_STATUS: dict[int, type[RequestRefused]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    413: TooLarge,
    422: InvalidRequest,
    429: RateLimited,
}


def _phrase(status: int) -> str:
    """Return a status in words, for answers without a body as those to HEAD."""
    return HTTPStatus(status).phrase if status in _STATUSES else f"HTTP {status}"


def refusal(status: int, problem: Mapping[str, Any]) -> RequestRefused:
    """Return the error for a problem document, by its HTTP status."""
    return _BY_STATUS.get(status, RequestRefused)(status, problem)
