"""Saying what a first run waits for: kernels are compiled once and cached."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from ..topology import Topology

ONCE = "compiling kernels, once; later runs start at once"
ALWAYS = "compiling kernels, in every run: set NUMBA_CACHE_DIR to a folder that can be written"


@contextlib.contextmanager
def announce_compiling(policy: str, topology: Topology, num_experts: int) -> Iterator[None]:
    """Compile or load the kernels of a policy, then run the block.

    Whenever Numba begins to compile, and only then, standard error says so. A plan of one layer goes first, so
    that the planning time in a report is that of planning.
    """
    import numpy as np
    from numba.core import event

    from ..policies.planner import plan

    console = Console(stderr=True)
    status = console.status("")

    class Announcer(event.Listener):  # type: ignore[misc]
        announced = False

        def on_start(self, event: Any) -> None:
            if self.announced:
                return
            self.announced = True
            text = ONCE if event.data["dispatcher"].stats.cache_path else ALWAYS
            if console.is_terminal:
                status.update(text)
                status.start()
            else:
                console.print(text, soft_wrap=True)

        def on_end(self, event: Any) -> None:
            pass

    try:
        with event.install_listener("numba:compile", Announcer()):
            plan(np.ones((1, num_experts)), topology, policy)
            yield
    finally:
        status.stop()
