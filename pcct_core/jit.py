"""Compilation: which functions Python calls, which only compiled code does, and where machine code is kept between processes.

`entry` is for functions that Python calls. Their machine code is kept in files, named by what it was made from: the source of
their module and of all modules of this package that it imports, the types of the arguments, the releases of Python, Numba and
llvmlite, and the processor. So a file is never stale, whatever the times of files say, and needs no clean-up to be right.

`inner` is for functions that compiled code calls. Numba wraps every function for callers in Python and in C, optimises it and
makes machine code of it, half of its work, and then optimises it once more within each caller. These are only linked into
their callers; they are wrapped when Python first calls them, which only tests do.

`prebuilt/` beside this file, where a wheel or an image has one, holds machine code for whole classes of processors
(x86-64-v3, x86-64-v4): see `prebuild`.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import pickle
import platform
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite import binding
from numba import config, njit
from numba.core import serialize
from numba.core.caching import NullCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, CompileResult, DefaultPassBuilder
from numba.core.compiler_machinery import LoweringPass, PassManager, register_pass
from numba.core.registry import CPUDispatcher, cpu_target
from numba.core.typed_passes import AnnotateTypes

from pcct_core.errors import KernelCacheWarning
from pcct_core.files import find_code_directory, replacing

PACKAGE = Path(__file__).parent
PREBUILT = PACKAGE / "prebuilt"
SUFFIX = ".kernel"
# Classes of processors of the x86-64 psABI, best first, and what tells that a processor belongs to one.
LEVELS = {
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "x86-64-v3": ("avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"),
}

_IMPORT = re.compile(r"^from pcct_core\.(\w+) import", re.MULTILINE)
_DIGEST_BYTES = 16


class _LinkedCode(JITCodeLibrary):  # type: ignore[misc]
    """The code of a function that is only linked into its callers: they optimise it, and make machine code of it."""

    def _optimize_functions(self, ll_module: Any) -> None:
        pass

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Return 0, which says that there is no machine code."""
        return 0

    @property
    def codegen(self) -> _LinkedCode:
        """Return what is told of the function's environment."""
        return self

    def set_env(self, env_name: str, env: Any) -> None:
        """Pass over an environment: what these functions do needs no object of Python's."""


@register_pass(mutates_CFG=False, analysis_only=False)
class _LinkOnly(LoweringPass):  # type: ignore[misc]
    """Have the code of a function go into a `_LinkedCode`."""

    _name = "link_only"

    def __init__(self) -> None:
        LoweringPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        state.library = _LinkedCode(state.targetctx.codegen(), state.func_id.func_qualname)
        return True


class _InnerCompiler(CompilerBase):  # type: ignore[misc]
    """Numba's own compiler, with `_LinkOnly` before it writes code."""

    def define_pipelines(self) -> list[PassManager]:
        manager = DefaultPassBuilder.define_nopython_pipeline(self.state)
        manager.add_pass_after(_LinkOnly, AnnotateTypes)
        manager.finalize()
        return [manager]


class _Entry(CPUDispatcher):  # type: ignore[misc]
    """A compiled function for Python to call; compiled with no collection of garbage, a tenth of its work."""

    def compile(self, sig: Any) -> Any:
        """Compile the function for argument types, or read its machine code from a file."""
        collects = gc.isenabled()
        gc.disable()
        try:
            return super().compile(sig)
        finally:
            if collects:
                gc.enable()


class _Inner(CPUDispatcher):  # type: ignore[misc]
    """A compiled function without wrappers; a call from Python goes through a compiled caller, made on the first one."""

    def __call__(self, *args: Any) -> Any:
        if not hasattr(self, "_caller"):
            callee = self
            self._caller = njit(nogil=True)(lambda *given: callee(*given))
        return self._caller(*args)


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function for other compiled functions to call; releases the GIL."""
    return _compile_inner(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function as `inner` does, into its callers, without counting references; it may make no array.

    For what walks and scans: each call would hand over a hundred fields of a dozen arrays, and counting references to these for
    every bucket takes longer than scanning it.
    """
    return _compile_inner(function, _nrt=False, forceinline=True)


def _compile_inner(function: Callable[..., Any], **options: bool) -> Any:
    if config.DISABLE_JIT:
        return function
    shared = {"nopython": True, "nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return _Inner(function, targetoptions=shared | options, pipeline_class=_InnerCompiler)


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function for Python to call, and keep its machine code in a file; releases the GIL."""
    if config.DISABLE_JIT:
        return function
    compiled = _Entry(function, targetoptions={"nopython": True, "nogil": True, "no_cfunc_wrapper": True})
    compiled._cache = _KeptCode(function)
    return compiled


class _KeptCode(NullCache):  # type: ignore[misc]
    """The files of one function's machine code, one for each choice of argument types: how Numba asks for them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        self._module = function.__module__.rpartition(".")[2]

    @property
    def cache_path(self) -> str:
        """Return the directory of the files, for Numba's statistics."""
        return str(code_directory())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function for argument types, None where no file has it."""
        target_context.refresh()
        for directory, target in places():
            if (state := _read(directory / self._file(sig, target))) is not None:
                return CompileResult._rebuild(target_context, *pickle.loads(state))  # noqa: S301  (see `code_directory`)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function, in place of what older sources gave for the same argument types."""
        directory = code_directory()
        if directory is None:
            return
        file = directory / self._file(sig, target_here())
        with suppress(OSError):  # a full disk costs time, not the graph
            _write(file, serialize.dumps(data._reduce()))
            for other in directory.glob(f"{file.name.partition('@')[0]}@*{SUFFIX}"):
                if other != file:
                    other.unlink()

    def _file(self, sig: Any, target: str) -> str:
        made_for = _digest(str(sig).encode(), environment_digest(target).encode())
        return f"{self._name}-{made_for}@{source_digest(self._module)}{SUFFIX}"


@functools.cache
def code_directory() -> Path | None:
    """Return where this process reads and writes machine code, None if nowhere; a KernelCacheWarning says what that costs.

    NUMBA_CACHE_DIR names another place than those that `files.find_code_directory` lists.
    """
    directory, told = find_code_directory(Path(config.CACHE_DIR) if config.CACHE_DIR else None)
    if told:
        warnings.warn(told, KernelCacheWarning, stacklevel=2)
    return directory


@functools.cache
def source_digest(module: str) -> str:
    """Return the hash of a module's source and of those of the package's modules that it imports, directly or not.

    module: its name within the package. What is compiled reads globals and inlines functions of nothing else.
    """
    found: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = (PACKAGE / f"{name}.py").read_bytes()
            waiting += _IMPORT.findall(found[name].decode())
    return _digest(*(part for name in sorted(found) for part in (name.encode(), found[name])))


def environment_digest(target: str) -> str:
    """Return the hash of what machine code is made with, and for: releases, and a target as `target_here` names it."""
    releases = (sys.implementation.cache_tag, numba.__version__, llvmlite.__version__, target)
    return _digest(*(each.encode() for each in releases))


@functools.cache
def target_here() -> str:
    """Return the name of what this process compiles for: a level where NUMBA_CPU_NAME says so, else the processor."""
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    return name if name in LEVELS else f"{triple}/{name}/{features}"


@functools.cache
def level_here() -> str | None:
    """Return the best class of processors that this one belongs to, None for none."""
    have = binding.get_host_cpu_features() if platform.machine() == "x86_64" else {}
    return next((level for level, needed in LEVELS.items() if all(have.get(each) for each in needed)), None)


def places() -> list[tuple[Path, str]]:
    """Return where machine code for this process may be, and what it would be compiled for, most particular first.

    Code of a lower level would run here too, but not as fast as the processor does: it is not used.
    """
    directory, level = code_directory(), level_here()
    found = [] if directory is None else [(directory, target_here())]
    return found if level is None else [*found, (PREBUILT, level)]


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _read(file: Path) -> bytes | None:
    """Return what `_write` wrote, None where there is no such file, or a damaged one."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    digest, state = data[: 2 * _DIGEST_BYTES], data[2 * _DIGEST_BYTES :]
    return state if digest == _digest(state).encode() else None


def _write(file: Path, state: bytes) -> None:
    with replacing(file) as out:
        out.write(_digest(state).encode() + state)
