"""Planning in the command: kernels are compiled once and cached, and a first run says that it waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..placement import Placement
from ..problem import Held, Problem
from ..topology import Topology
from ..trace import LoadTrace
from . import terminal

if TYPE_CHECKING:
    from ..plans.plan import Plan
    from ..policy.protocol import Policy
    from ..routes import PairCounts, Routes

ONCE = "compiling kernels, once; later runs start at once"
WAIT = "waiting for another process that compiles kernels"
ALWAYS = "compiling kernels, in every run: set NUMBA_CACHE_DIR to a folder that can be written"


def plan_announced(
    trace: LoadTrace,
    topology: Topology,
    policy: str | Policy,
    *,
    current: Placement | Held | None = None,
    max_moves: int | float | None = None,
    seed: int = 0,
    shares: bool = False,
    held_out: bool = False,
    routes: Routes | PairCounts | None = None,
    batches: LoadTrace | None = None,
) -> Plan:
    """`equipoise.plan`, saying on standard error when kernels have to be compiled first.

    The first layer is planned alone before all are, so that the planning time in the report is that of planning
    and not of compiling or loading kernels.
    """
    from ..plans.plan import plan

    problem = Problem.of(trace.counts[:1], topology, current=current, max_moves=max_moves, seed=seed)
    held = None if problem.held is None else problem.held.layers(slice(1))
    with announce_compiling():
        plan(
            LoadTrace(trace.counts[:, :1]),
            topology,
            policy,
            current=held,
            max_moves=max_moves,
            seed=seed,
            routes=None if routes is None else routes.rows([0]),
        )
        return plan(
            trace,
            topology,
            policy,
            current=current,
            max_moves=max_moves,
            seed=seed,
            shares=shares,
            held_out=held_out,
            routes=routes,
            batches=batches,
        )


@contextlib.contextmanager
def announce_compiling() -> Iterator[None]:
    """Say on standard error that kernels are being compiled, as soon as that begins and only then."""
    from numba.core import event

    from ..plans.warmup import COMPILING, WAITING

    console = terminal.console(stderr=True)
    status = console.status("")

    class Announcer(event.Listener):  # type: ignore[misc]
        announced = False

        def on_start(self, event: Any) -> None:
            if self.announced:
                return
            self.announced = True
            if event.kind == WAITING:
                text = WAIT
            else:
                text = ONCE if event.data["dispatcher"].stats.cache_path else ALWAYS
            if console.is_terminal:
                status.update(text)
                status.start()
            else:
                console.print(text, soft_wrap=True)

        def on_end(self, event: Any) -> None:
            pass

    announcer = Announcer()
    try:
        with event.install_listener(COMPILING, announcer), event.install_listener(WAITING, announcer):
            yield
    finally:
        status.stop()
