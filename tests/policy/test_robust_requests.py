"""`robust`: odd windows, requests and settings."""

from __future__ import annotations

import numpy as np
import pytest
from robust_plans import ROBUST, check_plan, fetched, placement_of, random_placement

from equipoise import (
    ArgumentError,
    Greedy,
    Robust,
    Topology,
    imbalance,
    plan,
    rank_loads,
    rebalance_experts,
)
from problems import Problem, avoidable_twins, loads_of
from real_loads import place, score


@pytest.mark.parametrize("windows", [1, 3])
def test_without_load(windows: int) -> None:
    loads = loads_of("log-normal", (windows, 3, 8), 1)
    loads[:, 1] = 0.0
    loads[-1] = 0.0
    for topology in (Topology(4, 3), Topology(4, 3, 2, 4)):
        problem = Problem(loads, topology)
        phy2log = check_plan(problem)
        assert avoidable_twins(phy2log, topology) == []
        assert (
            fetched(
                check_plan(problem, current=placement_of(phy2log, problem)), placement_of(phy2log, problem)
            )
            == 0
        )
        # A layer without load has nothing to gain: it stays as it is.
        current = random_placement(problem, 5, groups_kept=True)
        current = placement_of(place(ROBUST, np.ones((1, 3, 8)), topology, current=current), problem)
        moved = placement_of(place(ROBUST, loads, topology, current=current), problem).moves_from(current)
        assert moved[1] == 0


def test_one_hot_expert_on_many_ranks() -> None:
    # Large loads round to more than small gains: the search must end, and find its own plan good.
    loads = np.full((2, 1, 600), 1e-6)
    loads[..., 0] = 1e6
    loads[1] += np.random.default_rng(0).random(600)
    problem = Problem(loads, Topology(256, 3))
    current = placement_of(check_plan(problem), problem)
    assert fetched(check_plan(problem, current=current), current) == 0


def test_many_experts_on_many_ranks() -> None:
    problem = Problem(loads_of("log-normal", (1, 61, 512), 1), Topology(256, 3))
    phy2log = check_plan(problem)
    found = imbalance(rank_loads(problem.loads[0], placement_of(phy2log, problem)))
    greedy = score(problem.loads, place(Greedy(), problem.loads, problem.topology), 256)
    assert found.mean() < greedy.mean()
    assert avoidable_twins(phy2log, problem.topology) == []


def test_more_windows_than_it_looks_at() -> None:
    loads = loads_of("log-normal", (40, 2, 24), 1)
    few = Robust(max_windows=5)
    assert np.array_equal(
        place(few, loads, Topology(8, 4)), place(few, loads.reshape(5, 8, 2, 24).sum(axis=1), Topology(8, 4))
    )


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"groups": "rack"}, "groups"),
        ({"start": "warm"}, "start"),
        ({"min_gain": -1.0}, "min_gain"),
        ({"min_gain": float("nan")}, "min_gain"),
        ({"max_windows": 0}, "max_windows"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        Robust(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("groups", ["nodes", "anchored"])
def test_groups_need_nodes_that_divide_them(groups: str) -> None:
    with pytest.raises(ArgumentError, match="num_nodes=1"):
        place(Robust(groups=groups), np.ones((1, 1, 8)), Topology(4, 2))  # type: ignore[arg-type]


def test_it_is_the_default() -> None:
    loads = loads_of("log-normal", (3, 2, 24), 1)
    topology = Topology(8, 4)
    expected = place(Robust(), loads, topology)
    found = plan(loads, topology)
    assert found.report.policy == "robust"
    assert np.array_equal(found.placement.phy2log, expected)
    assert np.array_equal(rebalance_experts(loads, 32, 1, 1, 8)[0], expected)
