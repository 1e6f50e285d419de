"""Client of the pcct service: points in, exact neighbor graphs out. Needs httpx and NumPy only.

    from pcct_client import Client

    with Client("http://127.0.0.1:8000") as client:
        graph = client.vecchia(X, k=30)
        with client.track(X, k=30, lengthscale=0.3) as session:
            for epoch in range(200):
                graph = session.step(lengthscale=model.lengthscale)

The map, each module using only those before it:

settings  what is read from the environment
errors    every named error
inputs    points from arrays of any library, and from data frames
arrays    points as canonical `.npy` bytes, their id, and answers back into arrays
extras    libraries that are used when they are there
convert   a graph in other libraries' terms
plot      a row of a graph as a picture
graph     the answer
progress  a bar on the terminal
calls     what is said to the service and in which order, shared by both clients; no I/O
following what a session knows of its track, and the flows that keep it true; no I/O
session   the two sessions: what runs those flows beside a training loop
client    the two clients
sklearn   scikit-learn's neighbor transformer over pcct graphs; imported by itself, needs scikit-learn
"""

from pcct_client.arrays import dataset_id
from pcct_client.client import AsyncClient, Client
from pcct_client.convert import GraphArrays
from pcct_client.errors import (
    BadAnswer,
    BuildFailed,
    ClientClosed,
    ClientError,
    Forbidden,
    InvalidArray,
    InvalidKey,
    InvalidRequest,
    InvalidStep,
    InvalidUrl,
    MissingExtra,
    NotForThisGraph,
    NotFound,
    RateLimited,
    RequestRefused,
    ServerUnavailable,
    SessionClosed,
    TooLarge,
    TruncatedAnswer,
    Unauthorized,
    VersionMismatch,
    WaitTimeout,
)
from pcct_client.following import RefreshPolicy
from pcct_client.graph import Children, Graph
from pcct_client.session import AsyncSession, Session

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "BadAnswer",
    "BuildFailed",
    "Children",
    "Client",
    "ClientClosed",
    "ClientError",
    "Forbidden",
    "Graph",
    "GraphArrays",
    "InvalidArray",
    "InvalidKey",
    "InvalidRequest",
    "InvalidStep",
    "InvalidUrl",
    "MissingExtra",
    "NotForThisGraph",
    "NotFound",
    "RateLimited",
    "RefreshPolicy",
    "RequestRefused",
    "ServerUnavailable",
    "Session",
    "SessionClosed",
    "TooLarge",
    "TruncatedAnswer",
    "Unauthorized",
    "VersionMismatch",
    "WaitTimeout",
    "dataset_id",
]
