"""Libraries that are used when they are there: none of them is needed for points in and graphs out."""

from __future__ import annotations

import importlib
from typing import Any

from pcct_client.errors import MissingExtra

# What brings a library: an extra of ours, or its own name where the choice of a build is the user's.
_INSTALL = {
    "matplotlib": "pip install 'pcct[plot]'",
    "scipy": "pip install 'pcct[sparse]'",
    "networkx": "pip install 'pcct[networkx]'",
    "pandas": "pip install 'pcct[frames]'",
    "polars": "pip install polars",
    "torch": "pip install torch",
    "jax": "pip install jax",
}


def load(module: str, purpose: str) -> Any:
    """Return a module of an optional library, imported now; purpose: what needs it, as the user called it.

    Raises MissingExtra with the command that installs it.
    """
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != library:
            raise MissingExtra(f"{purpose} needs {library}, which cannot be imported: {error}") from error
        raise MissingExtra(f"{purpose} needs {library}, which is not installed: {_INSTALL[library]}") from error
