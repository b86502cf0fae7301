"""Same input and seed, same plan: in every process, on any number of threads, at any scale of the loads."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from equipoise import Ensemble, Topology, policies, rebalance_experts
from equipoise.synthetic import synthetic_trace
from problems import KINDS, loads_of, prefill

TOPOLOGIES = {"flat": Topology(8, 6), "by node": Topology(8, 6, 4, 8), "one slot a rank": Topology(48, 1)}
NAMES = ("greedy", "chunked", "ensemble", "robust")


def loads() -> np.ndarray:
    trace = synthetic_trace(num_layers=6, num_experts=32, num_windows=3, seed=5)
    return trace.counts.astype(np.float64)


def fingerprints() -> dict[str, str]:
    """A digest of the plan of every policy and topology."""
    found = {}
    for name in NAMES:
        for words, topology in TOPOLOGIES.items():
            phy2log = policies[name].place(loads(), topology, seed=3)
            found[f"{name}, {words}"] = hashlib.sha256(phy2log.tobytes()).hexdigest()
    return found


def test_processes_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_NUM_THREADS", "2")
    here = fingerprints()
    monkeypatch.setenv("EQUIPOISE_NUM_THREADS", "1")
    assert fingerprints() == here
    monkeypatch.setenv("EQUIPOISE_NUM_THREADS", "5")
    assert fingerprints() == here
    monkeypatch.setenv("EQUIPOISE_NUM_THREADS", "1")
    other = subprocess.run(
        [sys.executable, "-c", "import test_determinism as t; print(t.fingerprints())"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "99"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert other.stdout.strip() == str(here), other.stderr


def test_backends_and_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    tensor = torch.from_numpy(loads())
    try:
        for topology in TOPOLOGIES.values():
            expected = Ensemble().place(loads(), topology, seed=3)
            for count in (1, 2):
                torch.set_num_threads(count)
                assert np.array_equal(Ensemble().place_tensor(tensor, topology, seed=3).numpy(), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_scale_of_the_loads(name: str, kind: str) -> None:
    windows = loads_of(kind, (2, 4, 24), seed=8)
    for topology in (Topology(6, 6), Topology(6, 6, 3, 6)):
        expected = policies[name].place(windows, topology)
        for factor in (1e-9, 1e9, 2.0**-700, 2.0**500):
            assert np.array_equal(policies[name].place(windows * factor, topology), expected), factor


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_scale_of_real_loads_on_both_backends(traces: Path, factor: float) -> None:
    torch = pytest.importorskip("torch")
    real = prefill(traces)[None]
    topology = Topology(32, 9)
    expected = Ensemble().place(real, topology)
    assert np.array_equal(Ensemble().place(real * factor, topology), expected)
    assert np.array_equal(
        Ensemble().place_tensor(torch.from_numpy(real * factor), topology).numpy(), expected
    )


def test_seeds_matter_to_what_is_drawn() -> None:
    plans = [
        Ensemble(0, 0, 1, 0, max_swaps=0).place(loads(), TOPOLOGIES["flat"], seed=seed) for seed in (0, 1, 1)
    ]
    assert not np.array_equal(plans[0], plans[1])
    assert np.array_equal(plans[1], plans[2])
    assert not np.array_equal(plans[0][0], plans[0][1]) or not np.array_equal(plans[0][1], plans[0][2])


@pytest.mark.parametrize("name", NAMES)
def test_global_random_states_and_inputs_are_left_alone(name: str) -> None:
    torch = pytest.importorskip("torch")
    weight = loads()
    tensor = torch.from_numpy(weight.copy())
    current = np.tile(np.arange(48) % 32, (6, 1))
    copies = weight.copy(), current.copy()
    before = (random.getstate(), np.random.get_state(), torch.random.get_rng_state())  # noqa: NPY002
    rebalance_experts(weight, 48, 1, 1, 8, policy=name, seed=7, current=current)
    rebalance_experts(tensor, 48, 1, 1, 8, policy=name, seed=7)
    Ensemble().place_tensor(tensor, Topology(8, 6), seed=7)
    after = (random.getstate(), np.random.get_state(), torch.random.get_rng_state())  # noqa: NPY002
    assert before[0] == after[0]
    assert str(before[1]) == str(after[1])
    assert torch.equal(before[2], after[2])
    assert np.array_equal(weight, copies[0])
    assert np.array_equal(current, copies[1])
    assert np.array_equal(tensor.numpy(), copies[0])
    weight.flags.writeable = False
    rebalance_experts(weight, 48, 1, 1, 8, policy=name)


def test_loads_of_integer_types_above_float32() -> None:
    # 2^24 + 1 and 2^24 are the same in float32; the plan must know which expert is the hotter one.
    weight = np.full((1, 4), 1 << 24)
    weight[0, 3] += 1
    _, _, logcnt = rebalance_experts(weight, 5, 1, 1, 5, policy="greedy")
    assert logcnt.tolist() == [[1, 1, 1, 2]]
