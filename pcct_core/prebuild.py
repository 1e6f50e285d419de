"""Machine code for whole classes of processors, to ship in a wheel or an image: `python -m pcct_core.prebuild`.

It goes to `prebuilt/` beside this file, for each class of `jit.LEVELS` that this processor belongs to: compiling runs the code
too. Where sources, Python, Numba and llvmlite are those of the build, nothing is compiled on such a processor.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llvmlite import binding

from pcct_core import jit
from pcct_core.warm import PARTS

# What LLVM is to assume of a level. AVX-512 by vectors of 64 bytes: that is what the loops are written in.
_BASE = "+64bit,+cmov,+cx8,+cx16,+fxsr,+mmx,+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+sahf,+popcnt,+crc32,+xsave,+avx"


def prebuild() -> list[str]:
    """Compile all parts for every level that this processor can run; return the levels. Replaces what was there."""
    have = binding.get_host_cpu_features()
    levels = [level for level, needed in jit.LEVELS.items() if all(have.get(each) for each in needed)]
    shutil.rmtree(jit.PREBUILT, ignore_errors=True)
    jit.PREBUILT.mkdir()
    for level in levels:
        print(f"compiling for {level}: a minute or two", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            target = {"NUMBA_CPU_NAME": level, "NUMBA_CPU_FEATURES": features_of(level), "NUMBA_CACHE_DIR": directory}
            command = [sys.executable, "-P", "-m", "pcct_core.warm", *PARTS]
            with subprocess.Popen(command, env=os.environ | target, stdin=subprocess.PIPE) as compiler:
                if compiler.wait() != 0:
                    sys.exit(f"compiling for {level} failed: see above")
            for file in Path(directory).glob(f"*{jit.SUFFIX}"):
                shutil.copy(file, jit.PREBUILT)
    return levels


def features_of(level: str) -> str:
    """Return the features of a level as LLVM reads them, of all levels below it too."""
    needed = [feature for other in jit.LEVELS if other <= level for feature in jit.LEVELS[other]]
    wide = ["-prefer-256-bit"] if level == "x86-64-v4" else []
    return ",".join([_BASE, *(f"+{feature}" for feature in needed), *wide])


if __name__ == "__main__":
    made = prebuild()
    print(f"{jit.PREBUILT} holds code for {', '.join(made) or 'no level: this processor belongs to none'}")
