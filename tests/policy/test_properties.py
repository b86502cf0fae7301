"""What holds for every plan, over several hundred problems, on both backends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings

from equipoise import Chunked, Ensemble, Greedy, Placement, Topology, imbalance, rank_loads, synthetic_trace
from equipoise.planning.replicate import replicate
from problems import CORNERS, KINDS, Problem, avoidable_twins, check_legal, loads_of, prefill, problems
from real_loads import place

Planner = Callable[[Problem], np.ndarray]


def ensemble_torch(problem: Problem) -> np.ndarray:
    torch = pytest.importorskip("torch")
    loads = torch.from_numpy(problem.loads)
    return Ensemble().place_tensor(loads, problem.topology, seed=problem.seed).numpy()


def of(policy: Greedy | Chunked | Ensemble) -> Planner:
    return lambda problem: place(policy, problem.loads, problem.topology, seed=problem.seed)


PLANNERS: dict[str, Planner] = {
    "greedy": of(Greedy()),
    "chunked": of(Chunked()),
    "ensemble": of(Ensemble()),
    "ensemble-torch": ensemble_torch,
}


def check_plan(name: str, problem: Problem) -> None:
    before = problem.loads.copy()
    phy2log = PLANNERS[name](problem)
    assert np.array_equal(before, problem.loads), "the loads were modified"
    check_legal(phy2log, problem)
    if name != "greedy":
        assert avoidable_twins(phy2log, problem.topology) == []
    check_counts(phy2log, problem)


def check_counts(phy2log: np.ndarray, problem: Problem) -> None:
    """Replica counts minimise the largest load per replica; node by node in the hierarchical form."""
    topology, num_experts = problem.topology, problem.loads.shape[2]
    nodes = topology.num_nodes if topology.hierarchical else 1
    for row, loads in zip(phy2log, problem.loads.sum(axis=0), strict=True):
        for slots in row.reshape(nodes, -1):
            counts = np.bincount(slots, minlength=num_experts)
            here = counts > 0
            best = (loads[here] / replicate(loads[here][None], slots.size)[0]).max()
            assert np.isclose((loads[here] / counts[here]).max(), best, rtol=1e-8)


@pytest.mark.parametrize("name", PLANNERS)
@given(problem=problems())
@settings(max_examples=400)
def test_every_plan(name: str, problem: Problem) -> None:
    check_plan(name, problem)


@pytest.mark.parametrize("name", PLANNERS)
@given(problem=problems(hierarchical=True))
@settings(max_examples=150)
def test_every_hierarchical_plan(name: str, problem: Problem) -> None:
    assert problem.topology.hierarchical
    check_plan(name, problem)


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("name", PLANNERS)
def test_corners(name: str, corner: str) -> None:
    topology, num_experts = CORNERS[corner]
    for kind in KINDS:
        check_plan(name, Problem(loads_of(kind, (1, 2, num_experts), 5), topology))


def imbalances(phy2log: np.ndarray, loads: np.ndarray, topology: Topology) -> np.ndarray:
    return imbalance(rank_loads(loads, Placement(phy2log, topology.num_ranks, loads.shape[1])))


def check_against_greedy(problem: Problem) -> None:
    """No layer is worse than `greedy`'s, unless that one saved itself the parting of twins."""
    topology, loads = problem.topology, problem.loads.sum(axis=0)
    greedy = place(Greedy(), problem.loads, topology)
    plan = place(Ensemble(), problem.loads, topology, seed=problem.seed)
    # Weights are rounded to parts in 2^30.
    worse = imbalances(plan, loads, topology) > imbalances(greedy, loads, topology) * (1 + 1e-7)
    assert set(np.flatnonzero(worse)) <= {layer for layer, _ in avoidable_twins(greedy, topology)}


def test_the_winner_mostly_is_a_noisy_candidate() -> None:
    """In more than half of the layers nothing else gets as far, before swaps."""
    loads, topology = synthetic_trace(20, 256, 1).counts.astype(np.float64), Topology(32, 9)
    with_noise, without = (
        imbalances(place(Ensemble(noisy=noisy, max_swaps=0), loads, topology), loads[0], topology)
        for noisy in (46, 0)
    )
    assert (with_noise < without).mean() > 0.5


@given(problems())
@settings(max_examples=200)
def test_ensemble_is_never_above_greedy_without_avoidable_twins(problem: Problem) -> None:
    check_against_greedy(problem)


@given(problems(hierarchical=True))
@settings(max_examples=200)
def test_ensemble_with_groups_on_nodes_is_never_above_greedy(problem: Problem) -> None:
    check_against_greedy(problem)


@pytest.mark.parametrize(
    ("topology", "num_experts"),
    [
        (Topology(16, 5, 4, 16), 64),
        (Topology(4, 7, 2, 4), 24),
        (Topology(16, 2, 4, 8), 24),
        (Topology(6, 3), 8),
    ],
    ids=str,
)
def test_ensemble_is_never_above_greedy_where_few_replicas_fit_badly(
    topology: Topology, num_experts: int
) -> None:
    # Of a hundred such layers one or two were: other groups share a node, or the winner has twins to part.
    loads = np.random.default_rng(0).lognormal(0.0, 1.2, (1, 300, num_experts))
    check_against_greedy(Problem(loads, topology))


def test_on_real_loads(traces: object) -> None:
    loads = prefill(traces)  # type: ignore[arg-type]
    topology = Topology(32, 9)
    greedy = imbalances(place(Greedy(), loads[None], topology), loads, topology)
    plan = place(Ensemble(), loads[None], topology)
    found = imbalances(plan, loads, topology)
    assert found.mean() <= 1.0023
    assert (found <= greedy).all()
    assert avoidable_twins(plan, topology) == []


def test_refinement_and_candidates_pay(traces: object) -> None:
    loads = prefill(traces)[:8]  # type: ignore[arg-type]
    topology = Topology(32, 9)

    def mean(policy: Ensemble) -> float:
        return float(imbalances(place(policy, loads[None], topology), loads, topology).mean())

    lpt = mean(Ensemble(1, 0, 0, 0, max_swaps=0))
    candidates = mean(Ensemble(max_swaps=0))
    assert mean(Ensemble()) < candidates < lpt
    assert mean(Ensemble(1, 0, 0, 0)) < lpt
