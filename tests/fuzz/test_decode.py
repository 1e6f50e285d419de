"""The decoders on the fuzzer's corpus, on what hypothesis makes of it, and on headers that lie; all in bounded memory."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

HERE = Path(__file__).parent
CORPUS = sorted((HERE / "corpus").iterdir())
SEEDS = [path.read_bytes() for path in CORPUS]
MOST_BYTES = 1 << 20  # taken for a body of a few hundred bytes, whatever it claims

_spec = importlib.util.spec_from_file_location("decode", HERE / "decode.py")
assert _spec is not None
assert _spec.loader is not None
fuzz = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz)


def peak_bytes(data: bytes) -> int:
    """Return how much memory decoding took at its peak."""
    tracemalloc.start()
    try:
        fuzz.decode(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_corpus_is_decoded_or_refused(path: Path) -> None:
    points = fuzz.decode(path.read_bytes())
    assert (points is not None) == path.name.startswith("good-")


@given(seed=st.sampled_from(SEEDS), cut=st.integers(0, 700), noise=st.binary(max_size=24), at=st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_damaged_bodies_are_decoded_or_refused(seed: bytes, cut: int, noise: bytes, at: int) -> None:
    for data in (seed[:cut], seed[:at] + noise + seed[at + len(noise) :], seed[:at] + noise + seed[at:]):
        fuzz.decode(data)


@given(kind=st.integers(0, 255), flags=st.integers(0, 255), body=st.binary(max_size=300))
@settings(deadline=None)
def test_noise_is_decoded_or_refused(kind: int, flags: int, body: bytes) -> None:
    fuzz.decode(bytes([kind, flags]) + body)


SHAPES = [(9_999, 13), (1 << 40, 1 << 40), (10_000, 64), (1, 1 << 62), (1 << 62, 1), (8_191, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("flags", [3, 7])
def test_memory_follows_what_came_and_not_what_a_npy_header_claims(
    shape: tuple[int, int], fortran: bool, flags: int
) -> None:
    text = f"{{'descr': '<f8', 'fortran_order': {fortran}, 'shape': {shape}}}\n".encode()
    data = bytes([0, flags]) + b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(16)
    assert peak_bytes(data) < MOST_BYTES
    assert fuzz.decode(data) is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [1, 2])
def test_memory_follows_what_came_and_not_what_a_safetensors_header_claims(shape: tuple[int, int], kind: int) -> None:
    offsets = [0, 8 * shape[0] * shape[1]]
    text = json.dumps({"points": {"dtype": "F64", "shape": shape, "data_offsets": offsets}}).encode()
    data = bytes([kind, 3]) + len(text).to_bytes(8, "little") + text + bytes(16)
    assert peak_bytes(data) < MOST_BYTES
    assert fuzz.decode(data) is None


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("kind", range(len(fuzz.KINDS)))
def test_pickles_are_never_loaded(kind: int) -> None:
    text = b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 1)}\n"
    for body in (
        pickle.dumps(_Trap()),
        b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + pickle.dumps(_Trap()),
    ):
        assert fuzz.decode(bytes([kind, 3]) + body) is None


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris, of the extra fuzz, is not installed")
def test_fuzzing_for_a_moment_finds_nothing(tmp_path: Path) -> None:
    options = ["-runs=3000", "-max_len=600", "-seed=1", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, HERE / "decode.py", *options, tmp_path, HERE / "corpus"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
