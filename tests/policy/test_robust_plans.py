"""`robust`: what holds for every plan of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from robust_plans import check_plan, fetched, placement_of, random_placement

from equipoise import (
    Robust,
    Topology,
    imbalance,
    rank_loads,
)
from equipoise.planning.bounds import lower_bound
from problems import CORNERS, KINDS, Problem, avoidable_twins, loads_of, problems
from real_loads import place


def check_fresh(problem: Problem) -> np.ndarray:
    phy2log = check_plan(problem)
    topology = problem.topology
    assert avoidable_twins(phy2log, topology) == []
    nodes = topology.num_nodes if topology.hierarchical else 1
    for part in phy2log.reshape(
        len(phy2log) * nodes, -1
    ):  # more replicas than ranks only if all have as many
        counts = np.unique(part, return_counts=True)[1]
        assert counts.max() <= topology.num_ranks // nodes or counts.min() >= topology.num_ranks // nodes
    return phy2log


@given(problems(max_windows=4))
@settings(max_examples=250)
def test_every_plan(problem: Problem) -> None:
    phy2log = check_fresh(problem)
    if len(problem.loads) == 1:
        found = imbalance(rank_loads(problem.loads[0], placement_of(phy2log, problem)))
        assert (found >= lower_bound(problem.loads[0], problem.topology) * (1 - 1e-8)).all()


@given(problems(hierarchical=True, max_windows=3))
@settings(max_examples=120)
def test_every_hierarchical_plan(problem: Problem) -> None:
    check_fresh(problem)


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("corner", CORNERS)
def test_corners(corner: str, windows: int) -> None:
    topology, num_experts = CORNERS[corner]
    for kind in KINDS:
        problem = Problem(loads_of(kind, (windows, 2, num_experts), 5), topology)
        phy2log = check_plan(problem)
        assert avoidable_twins(phy2log, topology) == []
        again = check_plan(problem, current=placement_of(phy2log, problem))
        assert fetched(again, placement_of(phy2log, problem)) == 0


@given(problems(max_windows=3), st.sampled_from([2.0**-40, 2.0**40, 3.0, 1e-7]))
@settings(max_examples=80)
def test_scale_changes_nothing(problem: Problem, factor: float) -> None:
    policy = Robust()
    scaled = replace(problem, loads=problem.loads * factor)
    first, second = (p.loads / p.loads.max(axis=2, keepdims=True).clip(1e-300) for p in (problem, scaled))
    if np.array_equal(first, second):  # factors that are not powers of two may round differently
        assert np.array_equal(check_plan(problem, policy), check_plan(scaled, policy))


@given(problems(max_windows=3))
@settings(max_examples=60)
def test_seeds_change_nothing_and_repeats_are_equal(problem: Problem) -> None:
    first = check_plan(problem)
    assert np.array_equal(first, check_plan(problem, seed=17))
    current = random_placement(problem, 3, groups_kept=False)
    warm = check_plan(problem, current=current)
    assert np.array_equal(warm, check_plan(problem, current=current, seed=17))


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = loads_of("log-normal", (4, 7, 24), 4)
    for topology in (Topology(8, 4), Topology(8, 4, 2, 4)):
        problem = Problem(loads, topology)
        current = random_placement(problem, 1, groups_kept=True)
        plans = []
        for threads in ("1", "3"):
            monkeypatch.setenv("EQUIPOISE_NUM_THREADS", threads)
            plans.append((check_plan(problem), check_plan(problem, current=current, max_moves=0.2)))
        assert all(np.array_equal(a, b) for a, b in zip(*plans, strict=True))


@given(problems(max_windows=3), st.integers(0, 1000), st.booleans())
@settings(max_examples=150)
def test_every_plan_from_a_current_placement(problem: Problem, seed: int, groups_kept: bool) -> None:
    current = random_placement(problem, seed, groups_kept)
    phy2log = check_plan(problem, current=current)
    assert avoidable_twins(phy2log, problem.topology) == []


@st.composite
def few_hot(draw: st.DrawFn) -> Problem:
    """Nearly all load on one to three experts, so that most replicas weigh nothing and any rank is as good."""
    nodes = draw(st.sampled_from([1, 2, 3]))
    ranks, slots = nodes * draw(st.integers(1, 24 // nodes)), draw(st.integers(2, 12))
    groups = nodes * draw(st.integers(1, 2)) if nodes > 1 else 1
    experts = groups * draw(st.integers(1, ranks * slots // groups))
    loads = np.zeros((draw(st.sampled_from([1, 2, 7])), 1, experts))
    if draw(st.booleans()):
        loads[:] = np.random.default_rng(experts).integers(0, 2, loads.shape) / 1000
    for expert in range(min(experts, draw(st.integers(1, 3)))):
        loads[:, 0, experts // 3 + expert if experts > 4 else expert] = draw(st.sampled_from([1.0, 7.0]))
    return Problem(loads, Topology(ranks, slots, nodes, groups))


@given(few_hot(), st.integers(0, 1000))
@settings(max_examples=150)
def test_few_hot_experts_leave_no_avoidable_twins(problem: Problem, seed: int) -> None:
    topology = problem.topology
    flat = Topology(topology.num_ranks, topology.slots_per_rank)
    current = random_placement(problem, seed, groups_kept=False)
    for groups in ("auto", "global", "anchored") if topology.hierarchical else ("auto",):
        for policy in (Robust(groups=groups), Robust(groups=groups, max_steps=1)):  # type: ignore[arg-type]
            for start in (None, current):
                phy2log = place(policy, problem.loads, topology, current=start)
                assert set(phy2log[0].tolist()) == set(range(problem.loads.shape[2]))
                assert avoidable_twins(phy2log, topology if groups == "auto" else flat) == []


@pytest.mark.parametrize("windows", [1, 4])
@pytest.mark.parametrize(
    "topology", [Topology(16, 3), Topology(24, 2), Topology(8, 9), Topology(8, 3, 2, 4)], ids=str
)
def test_a_plan_does_not_depend_on_the_row_of_its_layer(topology: Topology, windows: int) -> None:
    loads = loads_of("log-normal", (windows, 6, 20), 9)
    phy2log = check_plan(Problem(loads, topology))
    turned = check_plan(Problem(loads[:, ::-1], topology))
    assert np.array_equal(phy2log, turned[::-1])
