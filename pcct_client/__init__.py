"""Client of the pcct service: points in, exact neighbor graphs out. Needs httpx and NumPy only.

    from pcct_client import Client

    with Client("http://127.0.0.1:8000") as client:
        graph = client.vecchia(X, k=30)

The map, each module using only those before it:

errors    every named error
arrays    points as canonical `.npy` bytes, their id, and answers back into arrays
graph     the answer
calls     what is said to the service and in which order, shared by both clients; no I/O
client    the two clients
"""

from pcct_client.arrays import dataset_id
from pcct_client.client import AsyncClient, Client
from pcct_client.errors import (
    BadAnswer,
    BuildFailed,
    ClientError,
    InvalidArray,
    InvalidRequest,
    NotFound,
    RequestRefused,
    ServerUnavailable,
    TooLarge,
    WaitTimeout,
)
from pcct_client.graph import Graph

__all__ = [
    "AsyncClient",
    "BadAnswer",
    "BuildFailed",
    "Client",
    "ClientError",
    "Graph",
    "InvalidArray",
    "InvalidRequest",
    "NotFound",
    "RequestRefused",
    "ServerUnavailable",
    "TooLarge",
    "WaitTimeout",
    "dataset_id",
]
