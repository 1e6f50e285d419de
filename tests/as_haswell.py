"""Run pytest as on a processor with AVX2 and without AVX-512: `python tests/as_haswell.py tests/core tests/client`.

Sums of products round differently in wider registers, so a test that passes on one kind of processor says nothing of the other.
OpenBLAS, Numba and NumPy are each told by the environment, which processes that tests start inherit. Kernels for the other
processor are cached beside the usual ones. On a processor without AVX-512 nothing runs, for it would repeat the usual run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

import numpy as np

# What LLVM knows of a Haswell (2013), without the name: Numba passes features on beside it, and would add this machine's.
_NUMBA_FEATURES = (
    "+64bit,+avx,+avx2,+bmi,+bmi2,+cmov,+crc32,+cx16,+cx8,+f16c,+fma,+fsgsbase,+fxsr,+invpcid,+lzcnt,+mmx,+movbe,+pclmul,"
    "+popcnt,+rdrnd,+sahf,+sse,+sse2,+sse3,+sse4.1,+sse4.2,+ssse3,+xsave,+xsaveopt"
)


def wide_features(dispatched: Sequence[str], there: Mapping[str, bool]) -> list[str]:
    """Return what NumPy must leave unused: its AVX-512 code paths that this processor has.

    dispatched: names of the code paths that this NumPy was built with. there: name → whether the processor has it. NumPy
    warns of every other name that it is told to leave unused.
    """
    return [name for name in dispatched if name.startswith(("AVX512", "X86_V4")) and there[name]]


def numpy_features() -> tuple[list[str], dict[str, bool]]:
    """Return NumPy's code paths and the processor's features, as `wide_features` takes them."""
    package = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
    core = import_module(f"{package}._multiarray_umath")
    return core.__cpu_dispatch__, core.__cpu_features__


def environment(unused: Sequence[str]) -> dict[str, str]:
    """Return the variables that make OpenBLAS, Numba and NumPy compute as on a Haswell; unused: from `wide_features`."""
    named = {"OPENBLAS_CORETYPE": "Haswell", "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": _NUMBA_FEATURES}
    return {**named, "NPY_DISABLE_CPU_FEATURES": " ".join(unused)} if unused else named


def main(arguments: Sequence[str]) -> None:
    """Become pytest with these arguments, as on a Haswell, or say why not."""
    dispatched, there = numpy_features()
    if not there.get("AVX2"):
        sys.exit("this processor has no AVX2, so it cannot compute as one that has")
    if not there.get("AVX512F"):
        print("this processor has no AVX-512: the usual run of the tests was already as on one with AVX2 alone")
        return
    command = [sys.executable, "-m", "pytest", *arguments]
    os.execve(sys.executable, command, {**os.environ, **environment(wide_features(dispatched, there))})


if __name__ == "__main__":
    main(sys.argv[1:])
