"""How much memory there is, by the kernel's word."""

from __future__ import annotations

import os
from pathlib import Path


def usable_memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Return the bytes of memory that this machine has, or its container where that has fewer.

    limit: file of the control group; "max" or no file for none.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(limit.read_text()))
    except (OSError, ValueError):
        return machine
