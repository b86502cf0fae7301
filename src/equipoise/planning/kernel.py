"""How kernels are compiled, and how their layers are spread over threads.

Kernels release the GIL and are cached on disk. Threads come from a pool of our own: Numba's threading layers are
not safe under concurrent callers, and planning runs beside a serving loop.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


KERNEL_ROOMS = ("planning", "search")


def _digest_of_stages() -> str:
    package = Path(__file__).parents[1]
    sources = [source for room in KERNEL_ROOMS for source in sorted((package / room).glob("*.py"))]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


_STAGES = _digest_of_stages()


def kernel(function: Function) -> Function:
    """Compile with Numba on first call; in memory where no folder for the cache can be written."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    # Numba compares a cached kernel with the file of the kernel itself, not with the files of the kernels that it
    # calls. The name is part of the cache's file name, so after an upgrade nothing old is found.
    function.__qualname__ += f"_{_STAGES}"
    try:
        compiled: Any = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # a read-only install without a home directory has no place for the cache
        compiled = numba.njit(**options)(function)
    return compiled  # type: ignore[no-any-return]


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
    result does not depend on the number of threads.
    """
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
