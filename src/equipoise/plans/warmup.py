"""Compiling kernels before plans wait for it: of one kind of plans, or of all, side by side over the cores."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.core import event

from ..dispatch.activated import split_activated
from ..dispatch.near import assign_near
from ..dispatch.slots import assign, assign_by_number, tokens_of_slots
from ..dispatch.split import split_batch
from ..errors import EquipoiseError
from ..placement import Placement, contiguous_placement
from ..planning.cache import COMPILING, ROOMS, WAITING, trouble
from ..planning.kernel import KERNELS, Kernel, num_threads
from ..planning.maps import inverse_maps
from ..planning.rounds import in_rounds
from ..planning.sweeps import forests
from ..policy.protocol import Ability, Policy, can
from ..policy.registry import DEFAULT, find_policy
from ..policy.robust import Robust
from ..routes import Routes
from ..topology import Topology
from .plan import plan


@dataclass(frozen=True)
class PlanKind:
    """Plans that are alike in what decides which kernels they use; sizes and loads do not."""

    topology: Topology
    num_experts: int
    num_windows: int = 1
    policy: str | Policy = DEFAULT
    current: bool = False
    """planned from what ranks hold, with and without a budget"""
    shares: bool = False
    """with token shares"""
    routes: bool = False
    """with token routes, on the nodes of the topology"""

    def warm(self) -> int:
        """Compile, or take from the cache, what such plans use: one layer is planned, from made-up loads.

        May run in a thread beside a serving loop, which it slows down while it compiles. Returns how many kernels
        had to be compiled.
        """
        _, policy = find_policy(self.policy)
        rng = np.random.default_rng(0)
        topology, experts = self.topology, self.num_experts
        loads = rng.lognormal(0.0, 1.0, (self.num_windows, 1, experts))
        with _counted() as compiled:
            if not self.current:
                routes = Routes(rng.integers(0, experts, (1, 8, 2)), experts) if self.routes else None
                made = plan(loads, topology, policy, shares=self.shares, routes=routes)
                made.report.as_dict()  # its numbers are worked out when they are read
                inverse_maps(made.placement.phy2log.copy(), experts)
                if can(policy, Ability.BATCH):
                    _dispatch(made.placement, loads[0], topology)
                return compiled.seen
            start = contiguous_placement(1, experts, topology.num_ranks, topology.num_slots)
            # Scrambled, so that there are steps to take and, with groups on nodes, layers to plan from nothing.
            start = type(start)(rng.permuted(start.phy2log, axis=1), topology.num_ranks, experts)
            plan(loads, topology, policy, current=start, shares=self.shares)
            if can(policy, Ability.BUDGET):
                plan(loads, topology, policy, current=start, max_moves=1)
            return compiled.seen


@dataclass(frozen=True)
class TransferKind:
    """Transfers from what ranks hold to a placement, all alike."""

    def warm(self) -> int:
        """Compile, or take from the cache, what they use. Returns how many kernels had to be compiled."""
        ranks = np.arange(2)
        with _counted() as compiled:
            in_rounds(ranks, ranks[::-1].copy(), np.eye(2, dtype=np.bool_), ranks)
            return compiled.seen


__all__ = ["COMPILING", "EVERY_KIND", "WAITING", "PlanKind", "TransferKind", "kept_kernels", "warm_all"]
WAY_OUT = "make room there, or set NUMBA_CACHE_DIR to another folder"
FLAT, GROUPED = Topology(4, 5), Topology(8, 4, 2, 4)
# What takes longest first. All kernels are among them: tests/plans/test_warmup.py.
EVERY_KIND: tuple[PlanKind | TransferKind, ...] = (
    PlanKind(FLAT, 12, num_windows=2),
    PlanKind(FLAT, 12, policy="ensemble"),
    PlanKind(FLAT, 12, num_windows=2, policy=Robust(split="batch")),
    PlanKind(FLAT, 12, num_windows=2, policy=Robust(split="batch"), current=True),
    PlanKind(FLAT, 12),
    PlanKind(Topology(16, 3), 32, num_windows=4),  # enough to tell whether they are but samples
    PlanKind(FLAT, 12, num_windows=2, current=True),
    PlanKind(FLAT, 12, num_windows=2, shares=True),
    PlanKind(FLAT, 12, policy=Robust(start="fresh"), current=True),
    PlanKind(Topology(4, 5, 2), 12, policy=Robust(affinity=1.1), routes=True),
    PlanKind(GROUPED, 16, policy="greedy"),
    PlanKind(GROUPED, 16, current=True),
    TransferKind(),
)


def _dispatch(placement: Placement, counts: npt.NDArray[np.float64], topology: Topology) -> None:
    """What a dispatcher does with a batch of counts ``[1, E]``, for one token."""
    topk = np.zeros((1, 1, 1), np.int64)
    assign(topk, split_batch(counts, placement), placement)
    assign_near(topk, None, placement, topology)
    split_activated(counts, placement)
    tokens_of_slots(np.zeros(counts.shape, np.int64), None, placement)
    assign_by_number(topk, placement)
    forests(placement.phy2log, placement.num_ranks, placement.num_experts)  # what devices sweep along


def warm_all() -> Iterator[int]:
    """Warm every kind of plans, in as many processes as planning uses threads.

    Numba compiles under a lock, so threads would take turns. Yields, as each kind is done, how many kernels were
    compiled for it.

    Raises
    ------
    EquipoiseError
        if kernels cannot be kept, or a process was killed
    """
    processes = min(num_threads(), len(EVERY_KIND))
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_work_quietly)
    try:
        for done in as_completed([pool.submit(_warm, kind) for kind in EVERY_KIND]):
            compiled, hindrance = done.result()
            if hindrance is not None:
                raise EquipoiseError(f"compiled kernels are not kept: {hindrance}; {WAY_OUT}")
            yield compiled
    except BrokenProcessPool:
        raise EquipoiseError(
            "a process that compiled kernels was killed; what the others compiled is kept: warm up again, with "
            "EQUIPOISE_NUM_THREADS=1 where memory is short"
        ) from None
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()  # idle, or on Ctrl-C not to be waited for
        pool.shutdown(wait=False, cancel_futures=True)


def kept_kernels() -> tuple[int, int, tuple[str, ...]]:
    """How many kernels are kept on the disk and how many there are, and the folders that they are saved to.

    Nothing is compiled. Kernels that others call are parts of these and do not count. One counts as kept if it was
    compiled for some types; its seal is checked when it is used.
    """
    for room in ROOMS:
        for source in sorted((Path(__file__).parents[1] / room).glob("[!_]*.py")):
            if not source.stem.startswith(("torch_", "triton_")):  # the same stages for tensors
                import_module(f"..{room}.{source.stem}", __package__)
    package = __name__.partition(".")[0] + "."
    ours = [kernel for kernel in KERNELS if kernel.py_func.__module__.startswith(package)]
    parts = {id(part) for kernel in ours for part in kernel.calls if part is not kernel}
    caches = [kernel.cache for kernel in ours if id(kernel) not in parts]
    folders = sorted({cache.cache_path for cache in caches if cache.cache_path is not None})
    return sum(cache.kept for cache in caches), len(caches), tuple(folders)


def _work_quietly() -> None:
    """Leave Ctrl-C and words to the process that waits for this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("equipoise").setLevel(logging.ERROR)


def _warm(kind: PlanKind | TransferKind) -> tuple[int, str | None]:
    return kind.warm(), trouble()


class _Counter(event.Listener):  # type: ignore[misc]
    def __init__(self) -> None:
        self.seen = 0

    def on_start(self, event: Any) -> None:
        if isinstance(event.data["dispatcher"], Kernel):  # Numba compiles some functions of its own, too
            self.seen += 1

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def _counted() -> Iterator[_Counter]:
    """The kernels that Numba compiles meanwhile, in whatever thread."""
    counter = _Counter()
    with event.install_listener(COMPILING, counter):
        yield counter
