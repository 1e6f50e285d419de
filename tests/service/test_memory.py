import os

import pytest

from service.memory import usable_memory

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(("text", "expected"), [("1048576\n", 1 << 20), ("max\n", MACHINE), (str(1 << 62), MACHINE)])
def test_usable_memory_is_that_of_the_machine_or_its_container(tmp_path, text, expected):
    limit = tmp_path / "memory.max"
    limit.write_text(text)
    assert usable_memory(limit) == expected


def test_usable_memory_needs_no_control_group(tmp_path):
    assert usable_memory(tmp_path / "none") == MACHINE
