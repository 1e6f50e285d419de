"""The names of everything in Redis or Valkey: all keys and channels are made here, and nowhere else.

Datasets, graphs and tracks lie under a namespace, so the same points in two namespaces are two objects that know nothing of
each other. Workers and metrics belong to the whole deployment.
"""

from __future__ import annotations

import re

from pcct_core.errors import InvalidInput

DEFAULT_NAMESPACE = "default"

_NAMESPACE = re.compile("[a-z0-9][a-z0-9-]{0,62}")


class InvalidNamespace(InvalidInput):
    """A namespace has a name that cannot be one."""


def checked_namespace(name: str) -> str:
    """Return the name when it can be a namespace; raises InvalidNamespace."""
    if not _NAMESPACE.fullmatch(name):
        raise InvalidNamespace(
            f"{name!r} cannot be a namespace; use 1 to 63 lower-case letters, digits and hyphens, no hyphen first"
        )
    return name


class Keys:
    """Every key and channel of one namespace, and those that all share."""

    every_change = "pcct:ns:*:changes"  # a pattern of channels
    api_keys = "pcct:api-keys"
    layout = "pcct:layout"  # String: number of the layout that what lies here has, see `store.LAYOUT`
    metrics = "pcct:metrics"
    # String: what the draws of certificates depend on, hexadecimal; see `store.Store.secret`
    secret = "pcct:secret"  # noqa: S105  (a name)
    tracked = "pcct:tracked"  # set: namespaces that have tracks
    workers = "pcct:workers"

    def __init__(self, namespace: str = DEFAULT_NAMESPACE) -> None:
        self.namespace = namespace
        self._base = f"pcct:ns:{namespace}"

    @property
    def changes(self) -> str:
        """Channel: ids of the graphs and tracks that change."""
        return f"{self._base}:changes"

    def dataset(self, id: str) -> str:
        """Hash: description of a dataset."""
        return f"{self._base}:dataset:{id}"

    def points(self, id: str) -> str:
        """Hash: row chunks of a dataset by number."""
        return f"{self._base}:dataset:{id}:points"

    def profiles(self, id: str) -> str:
        """Hash: gate lookups learned on a dataset, by "kernel:k"."""
        return f"{self._base}:dataset:{id}:profiles"

    def graph(self, id: str) -> str:
        """Hash: the record of a graph."""
        return f"{self._base}:graph:{id}"

    def arrays(self, id: str) -> str:
        """Hash: row chunks of a graph's arrays, "name:number"."""
        return f"{self._base}:graph:{id}:arrays"

    def track(self, id: str) -> str:
        """Hash: the record of a track."""
        return f"{self._base}:track:{id}"

    def track_events(self, id: str) -> str:
        """Stream: the latest events of a track."""
        return f"{self._base}:track:{id}:events"

    @property
    def recent(self) -> str:
        """Sorted set: what may be evicted, by when it was last used."""
        return f"{self._base}:recent"

    @property
    def sizes(self) -> str:
        """Hash: bytes of what may be evicted."""
        return f"{self._base}:sizes"

    @property
    def tracks(self) -> str:
        """Sorted set: ids of all tracks, by when they were last used."""
        return f"{self._base}:track-uses"

    @property
    def jobs(self) -> str:
        """Set: ids of graphs that were queued and not published since."""
        return f"{self._base}:jobs"

    @staticmethod
    def queued(queue: str) -> str:
        """Sorted set: the jobs of a queue that wait or run, by when they were queued."""
        return f"pcct:turns:{queue}:queued"

    @staticmethod
    def waiting(queue: str) -> str:
        """Sorted set: the jobs of a queue that wait, by their turn."""
        return f"pcct:turns:{queue}:waiting"

    @staticmethod
    def tags(queue: str) -> str:
        """Hash: the last turn that was given out, by namespace; under "" the last one served."""
        return f"pcct:turns:{queue}:tags"

    @staticmethod
    def shares(queue: str) -> str:
        """Hash: how many jobs of a queue wait or run, by namespace."""
        return f"pcct:turns:{queue}:shares"

    @staticmethod
    def taken(queue: str) -> str:
        """Hash: the job of each ticket that a worker holds."""
        return f"pcct:turns:{queue}:taken"

    @staticmethod
    def staging(token: str) -> str:
        """Hash: chunks on their way in; expires by itself."""
        return f"pcct:staging:{token}"

    @staticmethod
    def worker(name: str) -> str:
        """String: a worker's heartbeat; expires by itself."""
        return f"pcct:worker:{name}"
