"""After a warm-up no plan waits for a compiler, whatever it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from equipoise import Topology, policies
from equipoise.errors import EquipoiseError
from equipoise.plans import warmup
from equipoise.plans.warmup import EVERY_KIND, PlanKind, kept_kernels, warm_all

# Plans of every sort in a process of its own; prints what had to be compiled.
GRID = """
import numpy as np
from numba.core import event
import equipoise as eq
from equipoise.problem import Held
from equipoise.runtime.transfer import transfer_plan

class Seen(event.Listener):
    names = []
    def on_start(self, event):
        self.names.append(event.data["dispatcher"].py_func.__name__)
    def on_end(self, event):
        pass

def grid():
    rng = np.random.default_rng(0)
    for topology, experts in [
        (eq.Topology(4, 5), 12), (eq.Topology(8, 2), 8), (eq.Topology(6, 1), 6), (eq.Topology(1, 12), 9),
        (eq.Topology(4, 5, 1, 4), 16), (eq.Topology(8, 4, 2, 4), 16), (eq.Topology(8, 3, 4, 8), 16),
        (eq.Topology(8, 5, 2, 28), 28), (eq.Topology(17, 2), 32),
    ]:
        args = (topology.num_slots, topology.num_groups, topology.num_nodes, topology.num_ranks)
        now = eq.contiguous_placement(2, experts, topology.num_ranks, topology.num_slots)
        mixed = eq.Placement(rng.permuted(now.phy2log, axis=1), topology.num_ranks, experts)
        holes = now.phy2log.copy()
        holes[0, -1] = -1
        robust = [eq.Robust(), eq.Robust(groups="global"), eq.Robust(start="fresh")]
        if topology.hierarchical:
            robust += [eq.Robust(groups="anchored"), eq.Robust(groups="nodes")]
        for windows in (1, 2, 20):
            loads = rng.lognormal(0.0, 1.0, (windows, 2, experts))
            for policy in ["greedy", "chunked", "ensemble", *robust]:
                made = eq.plan(loads, topology, policy, held_out=windows > 1)
                made.explain(), str(made.report), made.report.as_dict()
                eq.plan(loads, topology, policy, current=mixed, shares=True)
                eq.plan(loads, topology, policy, current=Held(holes, topology.num_ranks, experts))
                eq.rebalance_experts(loads, *args, policy=policy, current=now.phy2log)
                eq.rebalance_experts(loads[0].astype(int).tolist(), *args, policy=policy)
            for policy in robust:
                for current in (now, mixed):
                    for most in (0, 3, 0.5):
                        eq.plan(loads, topology, policy, current=current, max_moves=most)
                    eq.frontier(loads, topology, current, policy=policy, points=4)
            if not topology.hierarchical:
                for split in ("shares", "batch"):
                    made = eq.plan(loads, topology, eq.Robust(split=split), shares=True).placement
                parts = eq.split_batch(loads[0], made)
                eq.assign(np.zeros((2, 3, 2), np.int32), parts, made)
                eq.assign_by_number(np.zeros((2, 3, 2), int), made)
                eq.assign_near(np.zeros((2, 3, 2), np.int32), parts, made, topology)
            for odd in (np.asfortranarray(loads), loads.astype(np.float32), loads[::-1, :, ::-1]):
                for policy in ("greedy", "robust"):
                    eq.rebalance_experts(odd, *args, policy=policy)
                    eq.plan(odd, topology, policy, current=now, shares=True)
    routes = eq.Routes(rng.integers(0, 12, (2, 9, 3)), 12, rng.integers(0, 4, 9))
    for topology in (eq.Topology(4, 5), eq.Topology(4, 5, 2), eq.Topology(4, 5, node_of_rank=(0, 0, 0, 1)),
                     eq.Topology(4, 5, 2, rank_speed=(1, 1, 0.5, 1))):
        for windows in (1, 3):
            loads = rng.random((windows, 2, 12))
            for policy in (eq.Robust(), eq.Robust(affinity=1.2)):
                eq.plan(loads, topology, policy, routes=routes).report.as_dict()
                eq.plan(loads, topology, policy, routes=eq.count_pairs(routes)).report.as_dict()
    eq.plan(rng.random((2, 2, 12)), eq.Topology(4, 5), current=eq.contiguous_placement(2, 12, 8, 24))
    for ranks, nodes in ((2, 1), (6, 3)):
        now = eq.contiguous_placement(3, 9, ranks, 12)
        for old in (now, Held(np.where(rng.random((3, 12)) < 0.3, -1, now.phy2log), ranks, 9)):
            new = eq.Placement(rng.permuted(now.phy2log, axis=1), ranks, 9)
            transfer_plan(old, new, eq.Topology(ranks, 12 // ranks, nodes))

with event.install_listener("numba:compile", Seen()) as seen:
    grid()
print(*seen.names)
"""


@pytest.fixture(scope="module")
def warmed() -> int:
    """All kernels are in the cache, as the command leaves it; what had to be compiled for that."""
    return sum(warm_all())


@pytest.mark.usefixtures("warmed")
def test_no_plan_compiles_after_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GRID],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.usefixtures("warmed")
def test_every_kernel_is_kept_after_it() -> None:
    """Also those that the grid above does not reach."""
    kept, known, folders = kept_kernels()
    assert (kept, bool(folders)) == (known, True)
    assert 10 < known < 100


@pytest.mark.usefixtures("warmed")
@pytest.mark.parametrize("policy", ["greedy", "robust"])
def test_a_kind_is_warmed_in_a_thread_beside_planning(policy: str) -> None:
    found: list[int] = []
    kind = PlanKind(Topology(8, 5), 32, num_windows=3, policy=policy, current=True, shares=True)
    thread = threading.Thread(target=lambda: found.append(kind.warm()))
    thread.start()
    assert PlanKind(Topology(4, 3), 8, policy=policy).warm() == 0
    thread.join()
    assert found == [0]


COUNT = """
from numba.core import event
from equipoise.plans.warmup import EVERY_KIND as kinds

class Seen(event.Listener):
    modules = set()
    def on_start(self, event):
        self.modules.add(event.data["dispatcher"].py_func.__module__)
    def on_end(self, event):
        pass

with event.install_listener("numba:compile", Seen()) as seen:
    print(kinds[8].warm(), kinds[8].warm(), *seen.modules)
"""


def test_what_is_compiled_is_counted_as_kernels() -> None:
    """Those that Python calls, once: not what they are made of, nor Numba's own functions. Of these there are few."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "NUMBA_CACHE_DIR": os.devnull,
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    first, second, *modules = done.stdout.split()
    assert 3 <= int(first) < 10
    assert int(second) == 0
    assert "equipoise.planning.pipeline" in modules
    assert not {"numba.cpython.unicode", "numba.misc.quicksort", "numba.misc.mergesort"} & set(modules)


def test_every_policy_is_warmed() -> None:
    kinds = [kind.policy for kind in EVERY_KIND if isinstance(kind, PlanKind)]
    named = {policy if isinstance(policy, str) else policy.name for policy in kinds}
    assert {"greedy", "ensemble", "robust", "robust-batch"} == named
    assert set(policies) <= named | {"chunked"}


def test_a_killed_worker_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "_warm", os._exit)
    monkeypatch.setattr(warmup, "EVERY_KIND", [9])
    with pytest.raises(EquipoiseError, match="was killed"):
        list(warm_all())
