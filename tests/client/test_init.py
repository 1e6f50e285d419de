import pickle
import subprocess
import sys

import pytest

import pcct_client


def test_every_name_is_there_and_pickles_by_its_own_module() -> None:
    for name in pcct_client.__all__:
        value = getattr(pcct_client, name)
        assert pickle.loads(pickle.dumps(value)) is value
    assert set(pcct_client.__all__) <= set(dir(pcct_client))


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'pcct_client' has no attribute 'Cleint'"):
        _ = pcct_client.Cleint  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import pcct_client; dir(pcct_client)", ("httpx", "numpy", "asyncio")),
        ("import pcct_client; pcct_client.errors.NotFound", ("httpx", "numpy")),
        ("from pcct_client import *; Client; Graph", ("numba", "scipy", "fastapi", "redis", "pcct_core", "pandas")),
    ],
)
def test_names_load_only_what_they_need(code: str, absent: tuple[str, ...]) -> None:
    check = f"{code}\nimport sys; print([name for name in {absent!r} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.stderr) == ("[]\n", "")
