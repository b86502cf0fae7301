"""Same input and seed, same plan: in every process, on every number of threads, at every scale of the loads."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq

TESTS = Path(__file__).resolve().parents[1]
NAMES = ("greedy", "chunked", "ensemble", "robust")
TOPOLOGY = eq.Topology(8, 5)
BY_NODE = eq.Topology(8, 5, 2, 4)


def loads() -> np.ndarray:
    """Synthetic counts ``[W, L, E]``."""
    return eq.synthetic_trace(num_layers=7, num_experts=32, num_windows=3, seed=5).counts.astype(np.float64)


def current() -> eq.Placement:
    return eq.contiguous_placement(7, 32, 8, 40)


def plan(name: str, windows: np.ndarray, now: eq.Placement | None, by_node: bool = False) -> np.ndarray:
    topology = BY_NODE if by_node else TOPOLOGY
    return eq.plan(windows, topology, name, current=now, seed=3).placement.phy2log


def digest() -> str:
    """Of the plans of all policies, from nothing and from a current placement, with and without groups on nodes."""
    found = hashlib.sha256()
    for name in NAMES:
        for now in (None, current()):
            for by_node in (False, True):
                found.update(plan(name, loads(), now, by_node).tobytes())
    return found.hexdigest()


def elsewhere(threads: int) -> str:
    """`digest` in a process of its own."""
    found = subprocess.run(
        [sys.executable, "-c", "from policy.test_determinism import digest; print(digest())"],
        env={
            **os.environ,
            "EQUIPOISE_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(Path(eq.__file__).parents[1])]),
            "PYTHONHASHSEED": str(threads),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


def test_processes_and_threads_change_nothing() -> None:
    here = digest()
    assert elsewhere(threads=1) == here
    assert elsewhere(threads=2) == here


@pytest.mark.parametrize("factor", [1e-9, 1e9])
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_scale_changes_nothing(name: str, fresh: bool, factor: float) -> None:
    now = None if fresh else current()
    assert np.array_equal(plan(name, loads() * factor, now), plan(name, loads(), now))


@pytest.mark.parametrize("name", NAMES)
def test_arrays_and_tensors_get_the_same_plan(name: str) -> None:
    torch = pytest.importorskip("torch")
    for shape in ((40, 1, 1, 8), (40, 4, 2, 8)):
        for factor in (1.0, 1e-9, 1e9):
            weight = loads() * factor
            array = eq.rebalance_experts(weight, *shape, policy=name, seed=3)
            tensor = eq.rebalance_experts(torch.from_numpy(weight), *shape, policy=name, seed=3)
            for mine, theirs in zip(array, tensor, strict=True):
                assert np.array_equal(mine, theirs.numpy())


@pytest.mark.parametrize("factor", [1.0, 1e-9, 1e9])
def test_the_form_for_devices_gives_the_same(factor: float) -> None:
    """Tensors on the processor go to the kernels; this is the code that a GPU runs, on the processor."""
    torch = pytest.importorskip("torch")
    weight = loads() * factor
    for topology in (TOPOLOGY, BY_NODE):
        tensor = eq.Ensemble().place_tensor(torch.from_numpy(weight), topology, seed=3)
        assert np.array_equal(tensor.numpy(), eq.Ensemble().place(eq.Problem.of(weight, topology, seed=3)))


def states() -> list[bytes]:
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    found = [repr(random.getstate()).encode(), numpy["state"]["key"].tobytes() + bytes([numpy["has_gauss"]])]
    found.append(str(numpy["state"]["pos"]).encode())
    if "torch" in sys.modules:
        found.append(sys.modules["torch"].get_rng_state().numpy().tobytes())
    return found


@pytest.mark.parametrize("name", NAMES)
def test_global_random_states_are_neither_changed_nor_read(name: str) -> None:
    torch = pytest.importorskip("torch")
    plans = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        before = states()
        for now in (None, current()):
            plans.append(plan(name, loads(), now))
        weight = torch.from_numpy(loads())
        eq.rebalance_experts(weight, 40, 1, 1, 8, policy=name)
        if name == "ensemble":
            eq.Ensemble().place_tensor(weight, TOPOLOGY)
        assert states() == before
    assert np.array_equal(plans[0], plans[2])
    assert np.array_equal(plans[1], plans[3])


@pytest.mark.parametrize("writeable", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_modified(name: str, writeable: bool) -> None:
    windows, now = loads(), current()
    windows.flags.writeable = writeable
    placed = now.phy2log.copy()
    before = windows.copy()
    plan(name, windows, None)
    plan(name, windows, now)
    eq.policies[name].place(eq.Problem.of(windows, TOPOLOGY, current=now))
    eq.rebalance_experts(windows, 40, 4, 2, 8, policy=name, current=now.phy2log)
    assert np.array_equal(windows, before)
    assert windows.flags.writeable is writeable
    assert np.array_equal(now.phy2log, placed)


def test_tensors_are_not_modified() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.from_numpy(loads())
    before = weight.clone()
    for name in NAMES:
        eq.rebalance_experts(weight, 40, 4, 2, 8, policy=name)
    eq.Ensemble().place_tensor(weight, TOPOLOGY)
    assert torch.equal(weight, before)
