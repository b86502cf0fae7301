"""How kernels are compiled, and how their layers are spread over threads.

Kernels release the GIL and are cached on disk. Threads come from a pool of our own: Numba's threading layers are
not safe under concurrent callers, and planning runs beside a serving loop.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numba
import numpy as np
from numba.core import config
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import CPUDispatcher

from .cache import KernelCache

Function = TypeVar("Function", bound=Callable[..., Any])
KERNELS: list[KernelCache] = []
"""the caches of all kernels of the modules that have been imported"""


class Kernel(CPUDispatcher):  # type: ignore[misc]
    """Numba's dispatcher with the cache of `planning.cache`, compiling a kernel for types and not for values.

    Numba compiles a callee anew for every constant that is passed to it; ours gain nothing from that.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._cache = KernelCache(self.py_func)
        KERNELS.append(self._cache)

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """See Numba: called for each call of this kernel in another one."""
        return super().get_call_template(tuple(numba.types.unliteral(one) for one in args), kws)

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
    return Kernel(function, targetoptions=options)  # type: ignore[return-value]


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
    lent: list[tuple[np.ndarray, np.ndarray]] = []
    _on_threads(run, num_layers, [_plain(argument, lent) for argument in arguments])
    for array, copy in lent:
        array[...] = copy


def _plain(argument: Any, lent: list[tuple[np.ndarray, np.ndarray]]) -> Any:
    """An argument with copies of arrays that are not plain, noted in ``lent`` where ``run`` may write to them."""
    if isinstance(argument, tuple) and hasattr(argument, "_fields"):
        return type(argument)(*(_plain(field, lent) for field in argument))
    if not isinstance(argument, np.ndarray) or (argument.flags.carray and argument.flags.writeable):
        return argument
    copy = np.array(argument, order="C")
    if argument.flags.writeable:
        lent.append((argument, copy))
    return copy


def _on_threads(run: Callable[..., Any], num_layers: int, arguments: list[Any]) -> None:
    global _pool
    parts = min(num_threads(), num_layers)
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
