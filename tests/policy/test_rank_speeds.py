"""Ranks that are not equally fast: who plans for them, how well, and who says that it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise import Ability, ArgumentError, Placement, Robust, Topology, imbalance, rank_loads
from equipoise.metrics import balance
from equipoise.planning.bounds import lower_bound
from equipoise.planning.groups import groups_are_on_nodes, groups_to_nodes
from equipoise.planning.relabel import relabel
from equipoise.planning.scale import to_integers
from equipoise.replay import replay
from problems import KINDS, loads_of, problems
from real_loads import place

THIRDS = tuple(0.8 if rank % 3 == 2 else 1.0 for rank in range(16))


def plain_imbalance(loads: np.ndarray, speed: np.ndarray) -> float:
    """Of the loads ``[P]`` of one layer: the longest time over that of perfect balance."""
    fair = sum(loads) / sum(speed)
    return max(load / s for load, s in zip(loads, speed, strict=True)) / fair if fair > 0 else 1.0


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0.1, 10.0)), min_size=1, max_size=9))
def test_imbalance_is_that_of_times(ranks: list[tuple[float, float]]) -> None:
    loads, speed = (np.array(part) for part in zip(*ranks, strict=True))
    expected = plain_imbalance(loads, speed)
    assert imbalance(loads, speed) == pytest.approx(expected, rel=1e-9)
    assert imbalance(loads, 7.0 * speed) == pytest.approx(expected, rel=1e-9)
    found = balance(loads[None], rank_speed=speed)
    assert found.mean_imbalance == pytest.approx(expected, rel=1e-9)
    assert found.ratio_of_sums == pytest.approx(1 / expected, rel=1e-9)


@given(problems(hierarchical=False), st.integers(0, 1 << 20))
@settings(max_examples=40)
def test_speeds_that_are_all_alike_change_no_plan(problem, seed: int) -> None:
    speed = float(np.random.default_rng(seed).uniform(0.1, 10.0))
    alike = replace(problem.topology, rank_speed=(speed,) * problem.topology.num_ranks)
    assert alike == problem.topology
    for policy in (Robust(), eq.Greedy()):
        assert np.array_equal(
            place(policy, problem.loads, alike), place(policy, problem.loads, problem.topology)
        )


@st.composite
def uneven(draw: st.DrawFn, *, hierarchical: bool):
    problem = draw(problems(hierarchical=hierarchical))
    ranks = problem.topology.num_ranks
    speed = draw(st.lists(st.floats(0.2, 5.0), min_size=ranks, max_size=ranks))
    return replace(problem, topology=replace(problem.topology, rank_speed=tuple(speed)))


@pytest.mark.parametrize("hierarchical", [False, True])
@given(st.data())
@settings(max_examples=60)
def test_plans_for_speeds_are_legal_and_not_below_the_bound(hierarchical: bool, data: st.DataObject) -> None:
    problem = data.draw(uneven(hierarchical=hierarchical))
    topology, total = problem.topology, problem.loads.sum(axis=0)
    phy2log = place(Robust(), problem.loads, topology)
    placement = Placement(phy2log, topology.num_ranks, total.shape[1])
    if topology.hierarchical:
        assert groups_are_on_nodes(phy2log, total.shape[1], topology).all()
    elif total.shape[1] < topology.num_slots:
        apart = placement.holds.sum(axis=1)  # no twin shares a rank while another rank has none of its expert
        assert (apart == np.minimum(placement.logcnt, topology.num_ranks)).all()
    found = imbalance(rank_loads(total, placement), topology.rank_speed)
    assert (found >= lower_bound(total, topology) * (1 - 1e-8)).all()


@given(st.data())
@settings(max_examples=60)
def test_no_random_placement_is_below_the_bound(data: st.DataObject) -> None:
    problem = data.draw(uneven(hierarchical=False))
    topology, total = problem.topology, problem.loads.sum(axis=0)
    rng = np.random.default_rng(problem.seed)
    spare = rng.integers(0, total.shape[1], (len(total), topology.num_slots - total.shape[1]))
    rows = np.hstack([np.tile(np.arange(total.shape[1]), (len(total), 1)), spare])
    placement = Placement(rng.permuted(rows, axis=1), topology.num_ranks, total.shape[1])
    found = imbalance(rank_loads(total, placement), topology.rank_speed)
    assert (found >= lower_bound(total, topology) * (1 - 1e-8)).all()


@pytest.mark.parametrize("groups", [4, 8, 16])  # one a node; enumerated; too many to enumerate
@given(seed=st.integers(0, 1 << 20), kind=st.sampled_from(KINDS))
@settings(max_examples=25)
def test_the_heavier_groups_are_on_the_faster_node(groups: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    topology = Topology(8, 4, 4, groups, rank_speed=tuple(rng.uniform(0.5, 1.0, 8)))
    integers = to_integers(loads_of(kind, (3, 16), seed))
    by_node = groups_to_nodes(integers, topology, exact=True)
    by_group = integers.reshape(3, groups, -1).sum(axis=2)
    node_loads = np.take_along_axis(by_group, by_node, axis=1).reshape(3, 4, -1).sum(axis=2)
    fastest_first = np.argsort(-np.reshape(topology.speeds, (4, 2)).sum(axis=1), kind="stable")
    assert (np.diff(node_loads[:, fastest_first], axis=1) <= 0).all()
    assert (np.sort(by_node, axis=1) == np.arange(groups)).all()


@pytest.mark.parametrize("windows", [1, 4])
@pytest.mark.parametrize(
    "topology",
    [
        Topology(16, 5, rank_speed=THIRDS),
        Topology(16, 3, rank_speed=(*(1.0,) * 15, 0.8)),
        Topology(16, 5, 4, 8, rank_speed=THIRDS),
        Topology(8, 9, rank_speed=(0.5, 1, 1, 1, 1, 1, 1, 1)),
    ],
    ids=lambda topology: f"{topology.num_ranks}x{topology.slots_per_rank}x{topology.num_nodes}",
)
def test_at_least_half_of_the_gap_is_closed(topology: Topology, windows: int) -> None:
    """Between plans that know no speeds and the bound that does. Recorded loads: benchmarks/bench_speeds.py."""
    experts = 32 if topology.slots_per_rank == 3 else 64
    trace = eq.synthetic_trace(num_layers=6, num_experts=experts, num_windows=windows, seed=3)
    blind = replace(topology, rank_speed=None)
    total = trace.total()
    before, after = (
        imbalance(
            rank_loads(total, Placement(place(Robust(), trace.counts, each), topology.num_ranks, experts)),
            topology.rank_speed,
        ).mean()
        for each in (blind, topology)
    )
    bound = lower_bound(total.astype(float), topology).mean()
    assert before - after >= 0.5 * (before - bound) > 0


def test_what_is_held_is_searched_for_speeds() -> None:
    trace = eq.synthetic_trace(num_layers=3, num_experts=64, num_windows=4, seed=5)
    topology = Topology(16, 5, rank_speed=THIRDS)
    blind = eq.plan(trace, Topology(16, 5)).placement
    freely = eq.plan(trace, topology, current=blind)
    sparing = eq.plan(trace, topology, current=blind, max_moves=0.05)
    before = freely.report.before.mean_imbalance
    assert before > 1.15
    assert freely.report.after.mean_imbalance < sparing.report.after.mean_imbalance < before - 0.05
    assert sparing.report.moves.sum() <= 0.05 * blind.phy2log.size
    line = eq.frontier(trace, topology, blind, points=5)
    assert line.imbalance[-1] < line.imbalance[0]
    assert line.imbalance[0] == pytest.approx(
        imbalance(rank_loads(trace.counts, blind), topology.rank_speed).mean()
    )


@given(st.integers(0, 1 << 20), st.sampled_from([1, 2]))
@settings(max_examples=40)
def test_only_ranks_of_one_speed_trade_names(seed: int, nodes: int) -> None:
    rng = np.random.default_rng(seed)
    speed = tuple(rng.choice([0.5, 1.0], 6))
    topology = Topology(6, 2, nodes, rank_speed=speed)
    new, old = (rng.permuted(np.tile(np.arange(12), (2, 1)), axis=1) for _ in range(2))
    named = relabel(new, old, topology, 12)
    for before, after in zip(new.reshape(2, 6, 2), named.reshape(2, 6, 2), strict=True):
        of_speed = [
            sorted((s, *sorted(rank)) for s, rank in zip(speed, part.tolist(), strict=True))
            for part in (before, after)
        ]
        assert of_speed[0] == of_speed[1]
    kept = [Placement(rows, 6, 12).moves_from(Placement(old, 6, 12)).sum() for rows in (new, named)]
    assert kept[1] <= kept[0]


@pytest.mark.parametrize("policy", ["greedy", "chunked", "ensemble", Robust(split="shares")])
def test_who_knows_no_speeds_says_so_in_one_line(policy) -> None:
    topology = Topology(4, 3, rank_speed=(1, 1, 1, 0.5))
    with pytest.raises(ArgumentError, match="ranks of one speed") as caught:
        eq.plan(np.ones((1, 8)), topology, policy)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match="ranks of one speed"):
        eq.Balancer(topology, 1, 8, policy=policy)
    assert eq.plan(np.ones((1, 8)), replace(topology, rank_speed=None), policy).placement.num_slots == 12


def test_robust_declares_it_and_shares_do_not_know_speeds() -> None:
    assert Ability.SPEEDS in Robust().abilities
    assert Ability.SPEEDS not in Robust(split="shares").abilities
    with pytest.raises(ArgumentError, match="leave out rank_speed or shares"):
        eq.plan(np.ones((1, 8)), Topology(4, 3, rank_speed=(1, 1, 1, 0.5)), shares=True)


def test_replay_scores_all_by_times_and_tells_those_who_know() -> None:
    trace = eq.synthetic_trace(num_layers=2, num_experts=32, num_windows=8, seed=1)
    topology = Topology(8, 5, rank_speed=(1, 1, 1, 1, 1, 1, 1, 0.5))
    found = {
        one.label: one for one in replay(trace, topology, ["greedy", "robust"], interval=4, history=4).series
    }
    blind = replay(trace, replace(topology, rank_speed=None), ["greedy"], interval=4, history=4).series
    loads = next(one for one in blind if one.label == "greedy").last_rank_loads
    assert np.array_equal(found["greedy"].last_rank_loads, loads)
    assert found["robust"].summary.mean_imbalance < 1.3 < found["greedy"].summary.mean_imbalance
    assert found["oracle"].summary.mean_imbalance < 1.1
