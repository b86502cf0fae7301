"""How kernels are compiled, and how their layers are spread over threads.

Kernels release the GIL and are cached on disk. Threads come from a pool of our own: Numba's threading layers are
not safe under concurrent callers, and planning runs beside a serving loop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numba
import numpy as np
from numba.core import config
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, Flags, compile_extra
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import _FunctionCompiler  # type: ignore[attr-defined]
from numba.core.registry import CPUDispatcher

from .cache import KernelCache

Function = TypeVar("Function", bound=Callable[..., Any])
KERNELS: list[Kernel] = []
"""all kernels of the modules that have been imported"""


class _PartLibrary(JITCodeLibrary):  # type: ignore[misc]
    """LLVM code of a kernel as others call it: it is not optimised, and no machine code is made of it."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


class _PartCompiler(_FunctionCompiler):  # type: ignore[misc]
    """As far as types and LLVM code."""

    def _compile_core(self, args: Any, return_type: Any) -> Any:
        flags: Any = Flags()
        target = self.targetdescr.target_context
        self.targetdescr.options.parse_as_flags(flags, self.targetoptions)
        flags.no_cpython_wrapper = flags.no_compile = True
        library = _PartLibrary(target.codegen(), self.py_func.__qualname__)
        made = compile_extra(
            self.targetdescr.typing_context,
            target,
            self.py_func,
            args,
            return_type,
            flags,
            self.locals,
            library,
        )
        made = made._replace(entry_point=object())  # what callers know this code by
        target.insert_user_function(made.entry_point, made.fndesc, [library])
        return made


class _Part(CPUDispatcher):  # type: ignore[misc]
    """A kernel as other kernels call it.

    Numba links the code of a callee into each of its callers, and there into theirs. By itself it also optimises
    it each time, makes machine code of it and the entry from Python, which for tuples of arrays takes longest. Here
    that is done in the kernel alone that Python calls, and once.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        super().__init__(function, targetoptions=options)
        self._compiler = _PartCompiler(function, self.targetdescr, options, {}, Compiler)

    def add_overload(self, cres: Any) -> None:
        """See Numba: kept for kernels, and not where calls from Python are looked up."""
        self.overloads[tuple(cres.signature.args)] = cres


class Kernel(CPUDispatcher):  # type: ignore[misc]
    """Numba's dispatcher with the cache of `planning.cache`, compiling a kernel for types and not for values.

    Numba compiles a callee anew for every constant that is passed to it; ours gain nothing from that.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        super().__init__(function, targetoptions=options)
        self._cache = KernelCache(function)
        self._part = _Part(function, options)
        KERNELS.append(self)

    @property
    def calls(self) -> list[Kernel]:
        """The kernels whose names this one speaks of: parts of it, which are compiled into it."""
        known = self.py_func.__globals__
        return [known[name] for name in self.py_func.__code__.co_names if isinstance(known.get(name), Kernel)]

    @property
    def cache(self) -> KernelCache:
        """Where it is kept."""
        return self._cache

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """See Numba: called for each call of this kernel in another one."""
        return self._part.get_call_template(tuple(numba.types.unliteral(one) for one in args), kws)

    def get_overload(self, sig: Any) -> Any:
        """See Numba: by what another kernel knows the code that it calls."""
        return self._part.get_overload(sig)

    def compile(self, sig: Any) -> Any:
        """See Numba: from the cache, or compiled and put there."""
        with global_compiler_lock:
            held = self._cache.held
            try:
                return super().compile(sig)
            finally:
                self._cache.unlock(held)


def kernel(function: Function) -> Function:
    """Compile with Numba on first call, or take from the cache what was compiled before."""
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return function
    # The wrapper for callers in C has no user here, and takes as long to compile as a small kernel.
    options = {"nopython": True, "nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    return Kernel(function, options)  # type: ignore[return-value]


@kernel
def copy_into(target, source):
    """Write ``source [N]`` into ``target [N]``: a slice assignment compiles all that its error message is made with.

    Both are of one length.
    """
    for i in range(target.size):
        target[i] = source[i]


def num_threads() -> int:
    """Threads that planning uses: ``EQUIPOISE_NUM_THREADS``, else the processors at hand, at most 8."""
    wanted = os.environ.get("EQUIPOISE_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 8)


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # a forked child has the pool's object, not its threads


def for_layers(run: Callable[..., Any], num_layers: int, *arguments: Any) -> None:
    """Call ``run(first, last, *arguments)`` on ranges that cover all layers, in parallel.

    ``run`` writes its results into arrays among ``arguments``; layers must not depend on each other, so the
    result does not depend on the number of threads. Arrays that are read-only or not contiguous are other types to
    Numba: ``run`` gets copies of them, so that it is compiled once.
    """
    if _are_plain(arguments):
        _on_threads(run, num_layers, arguments)
        return
    lent: list[tuple[np.ndarray, np.ndarray]] = []
    _on_threads(run, num_layers, [_plain(argument, lent) for argument in arguments])
    for array, copy in lent:
        array[...] = copy


def _are_plain(arguments: Iterable[Any]) -> bool:
    """Whether all arrays, those in named tuples too, are contiguous, aligned and writeable."""
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            if not argument.flags.carray:
                return False
        elif isinstance(argument, tuple) and not _are_plain(argument):
            return False
    return True


def _plain(argument: Any, lent: list[tuple[np.ndarray, np.ndarray]]) -> Any:
    """An argument with copies of arrays that are not plain, noted in ``lent`` where ``run`` may write to them."""
    if isinstance(argument, tuple) and hasattr(argument, "_fields"):
        return type(argument)(*(_plain(field, lent) for field in argument))
    if not isinstance(argument, np.ndarray) or argument.flags.carray:
        return argument
    copy = np.array(argument, order="C")
    if argument.flags.writeable:
        lent.append((argument, copy))
    return copy


def _on_threads(run: Callable[..., Any], num_layers: int, arguments: Sequence[Any]) -> None:
    global _pool
    parts = min(num_threads(), num_layers) if num_layers > 1 else 1
    if parts < 2:
        run(0, num_layers, *arguments)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(max_workers=64, thread_name_prefix="equipoise")
    cuts = [num_layers * part // parts for part in range(parts + 1)]
    pending = [_pool.submit(run, cuts[i], cuts[i + 1], *arguments) for i in range(1, parts)]
    # Ctrl-C does not wait for the other threads: the arrays that they write to live as long as they need them.
    run(cuts[0], cuts[1], *arguments)
    for future in pending:
        future.result()
