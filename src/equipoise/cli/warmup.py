"""``equipoise warmup``: compile kernels ahead, so that first plans do not wait."""

from __future__ import annotations

import time

from . import terminal
from .app import app


@app.command()
def warmup() -> None:
    """Compile all kernels that plans use, side by side over the cores, and keep them for later runs.

    For container images and freshly installed machines; without it, the first plan of each kind compiles what it
    needs. EQUIPOISE_NUM_THREADS sets the number of processes.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ..plans.warmup import EVERY_KIND, warm_all

    console = terminal.console(stderr=True)
    started, compiled = time.monotonic(), 0
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("compiling kernels", total=len(EVERY_KIND))
        for number in warm_all():
            compiled += number
            bar.advance(task)
    took = time.monotonic() - started
    if compiled:
        print(f"Compiled {compiled} kernels in {took:.0f} s; later runs start at once.")
    else:
        print("All kernels have been compiled before; there is nothing to do.")
