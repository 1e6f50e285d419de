"""Client of the pcct service: points in, exact neighbor graphs out. Needs httpx and NumPy only.

    from pcct_client import Client

    with Client("http://127.0.0.1:8000") as client:
        graph = client.vecchia(X, k=30)
        with client.track(X, k=30, lengthscale=0.3) as session:
            for epoch in range(200):
                graph = session.step(lengthscale=model.lengthscale)

The map, each module using only those before it:

errors    every named error
settings  what is read from the environment
reach     URL, headers, proxy and certificates, and connections that belong to one process or one event loop
values    real numbers from arrays of any library, exactly
geometry  points of geopandas and shapely, and the system of their coordinates
frames    columns of data frames, by their names
groups    labels of points whose neighbors stay among them
names     what the columns of datasets are called that were sent from here
inputs    points from whatever a call is given; two of them matched by their names
arrays    points as canonical `.npy` bytes, their id, and answers back into arrays
extras    libraries that are used when they are there
files     files that appear whole
convert   a graph in other libraries' terms
plot      a row of a graph as a picture
graph     the answer
progress  a bar on the terminal
calls     what is said to the service and in which order, shared by both clients; no I/O
following what a session knows of its track, and the flows that keep it true; no I/O
session   the two sessions: what runs those flows beside a training loop
client    the two clients
sklearn   scikit-learn's neighbor transformer over pcct graphs; imported by itself, needs scikit-learn


Names load on first use, so a program that may not need the service does not load httpx.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcct_client.arrays import dataset_id as dataset_id
    from pcct_client.client import AsyncClient as AsyncClient
    from pcct_client.client import Client as Client
    from pcct_client.convert import GraphArrays as GraphArrays
    from pcct_client.errors import BadAnswer as BadAnswer
    from pcct_client.errors import BelongsElsewhere as BelongsElsewhere
    from pcct_client.errors import BuildFailed as BuildFailed
    from pcct_client.errors import CannotPickle as CannotPickle
    from pcct_client.errors import ClientClosed as ClientClosed
    from pcct_client.errors import ClientError as ClientError
    from pcct_client.errors import Forbidden as Forbidden
    from pcct_client.errors import GeographicCoordinates as GeographicCoordinates
    from pcct_client.errors import InvalidArray as InvalidArray
    from pcct_client.errors import InvalidHeader as InvalidHeader
    from pcct_client.errors import InvalidKey as InvalidKey
    from pcct_client.errors import InvalidRequest as InvalidRequest
    from pcct_client.errors import InvalidSetting as InvalidSetting
    from pcct_client.errors import InvalidStep as InvalidStep
    from pcct_client.errors import InvalidUrl as InvalidUrl
    from pcct_client.errors import MissingExtra as MissingExtra
    from pcct_client.errors import NoEventLoop as NoEventLoop
    from pcct_client.errors import NotForThisGraph as NotForThisGraph
    from pcct_client.errors import NotFound as NotFound
    from pcct_client.errors import RateLimited as RateLimited
    from pcct_client.errors import RequestRefused as RequestRefused
    from pcct_client.errors import ServerUnavailable as ServerUnavailable
    from pcct_client.errors import SessionClosed as SessionClosed
    from pcct_client.errors import TooLarge as TooLarge
    from pcct_client.errors import TruncatedAnswer as TruncatedAnswer
    from pcct_client.errors import Unauthorized as Unauthorized
    from pcct_client.errors import UnknownColumns as UnknownColumns
    from pcct_client.errors import UnknownCoordinates as UnknownCoordinates
    from pcct_client.errors import VersionMismatch as VersionMismatch
    from pcct_client.errors import WaitTimeout as WaitTimeout
    from pcct_client.following import RefreshPolicy as RefreshPolicy
    from pcct_client.graph import Children as Children
    from pcct_client.graph import Graph as Graph
    from pcct_client.session import AsyncSession as AsyncSession
    from pcct_client.session import Session as Session

_HOME = {
    "arrays": ("dataset_id",),
    "client": (
        "AsyncClient",
        "Client",
    ),
    "convert": ("GraphArrays",),
    "errors": (
        "BadAnswer",
        "BelongsElsewhere",
        "BuildFailed",
        "CannotPickle",
        "ClientClosed",
        "ClientError",
        "Forbidden",
        "GeographicCoordinates",
        "InvalidArray",
        "InvalidHeader",
        "InvalidKey",
        "InvalidRequest",
        "InvalidSetting",
        "InvalidStep",
        "InvalidUrl",
        "MissingExtra",
        "NoEventLoop",
        "NotForThisGraph",
        "NotFound",
        "RateLimited",
        "RequestRefused",
        "ServerUnavailable",
        "SessionClosed",
        "TooLarge",
        "TruncatedAnswer",
        "Unauthorized",
        "UnknownColumns",
        "UnknownCoordinates",
        "VersionMismatch",
        "WaitTimeout",
    ),
    "following": ("RefreshPolicy",),
    "graph": (
        "Children",
        "Graph",
    ),
    "session": (
        "AsyncSession",
        "Session",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return import_module(f"pcct_client.{name}")
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'pcct_client' has no attribute {name!r}")
    value = getattr(import_module(f"pcct_client.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
