"""Every error of the core, named by what is wrong; each message states the fact and the fix.

PcctError
├── InvalidInput (also a ValueError)
│   ├── InvalidPoints      an array that cannot be used; `row` is the first offending row, if one is
│   └── InvalidSpec        a specification that cannot be met; `field` names the offending field
│       └── TooManyPairs   a radius that holds more neighbors than may be kept
├── NotPositiveDefinite    the kernel matrix of the inducing points has no Cholesky factor
├── FileFormatError        a saved tree or graph that this version cannot read
└── Cancelled              the caller's cancel token was set

KernelCacheWarning         a UserWarning: compiled code cannot be kept where it lasts
"""

from typing import Any


class PcctError(Exception):
    """Base of all errors raised on purpose by pcct."""


class InvalidInput(PcctError, ValueError):
    """The caller's input cannot be used as it is."""


class InvalidPoints(InvalidInput):
    """A point array was refused at the door.

    row: index of the first offending row, or None when the fault is not in one row.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.row)


class InvalidSpec(InvalidInput):
    """A graph specification was refused.

    field: dotted name of the offending field, such as "metric.lengthscale".
    """

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.field)


class TooManyPairs(InvalidSpec):
    """A radius has more points within it than may be kept; the message says how many, and which radius would fit."""


class NotPositiveDefinite(PcctError):
    """The kernel matrix of the inducing points has no Cholesky factor; the message says what to change."""


class FileFormatError(PcctError):
    """A saved file has a format or version that this release does not know."""


class Cancelled(PcctError):
    """The work was cancelled between two chunks; nothing was kept."""


class KernelCacheWarning(UserWarning):
    """Compiled code cannot be kept where it lasts; the message says where it is kept and what to set."""
