"""What a policy is asked, checked once; and what ranks hold when it is less than a placement."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise import ArgumentError, Held, Placement, Problem, Topology, contiguous_placement, plan, policies
from problems import avoidable_twins

TOPOLOGY = Topology(4, 3)
LOADS = np.arange(48.0).reshape(2, 3, 8)


@st.composite
def held_by_others(draw: st.DrawFn) -> Held:
    """Any content of any number of ranks for 3 layers of 8 experts: empty slots, lost experts, twins."""
    ranks, slots = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    return Held(rng.integers(-1, 8, (3, ranks * slots)), ranks, 8)


def test_held_slots_by_hand() -> None:
    held = Held([[0, -1, 1, 1], [0, 1, 1, 2]], num_ranks=2, num_experts=3)
    assert held.holds.tolist() == [
        [[True, False, False], [False, True, False]],
        [[True, True, False], [False, True, True]],
    ]
    assert held.lost.tolist() == [[False, False, True], [False, False, False]]
    assert not held.complete
    assert held.layers([1]).complete
    assert (held.num_layers, held.num_slots) == (2, 4)


def test_held_slots_on_other_ranks_by_hand() -> None:
    held = Held([[0, 1, 2, 3]], num_ranks=2, num_experts=4)
    assert held.on(Topology(2, 2)) is held
    assert held.on(Topology(3, 2)).phy2log.tolist() == [[0, 1, 2, 3, -1, -1]]
    assert held.on(Topology(1, 3)).phy2log.tolist() == [[0, 1, -1]]
    assert held.on(Topology(2, 1)).phy2log.tolist() == [[0, 2]]
    assert held.on(Topology(2, 3)).phy2log.tolist() == [[0, 1, -1, 2, 3, -1]]


@given(held_by_others())
def test_what_is_held_is_what_slots_say(held: Held) -> None:
    for layer in range(held.num_layers):
        for rank, slots in enumerate(held.phy2log[layer].reshape(held.num_ranks, -1).tolist()):
            assert set(np.flatnonzero(held.holds[layer, rank])) == set(slots) - {-1}
        assert set(np.flatnonzero(held.lost[layer])) == set(range(8)) - set(held.phy2log[layer].tolist())
    assert held.complete == ((held.phy2log >= 0).all() and not held.lost.any())


@given(held_by_others())
def test_a_placement_is_held_complete(held: Held) -> None:
    if held.complete:
        placement = Placement(held.phy2log, held.num_ranks, 8)
        assert np.array_equal(Held.of(placement).holds, placement.holds)
    else:
        with pytest.raises(ArgumentError):
            Placement(held.phy2log, held.num_ranks, 8)


@pytest.mark.parametrize("policy", ["greedy", "robust"])
@given(held_by_others())
def test_any_content_of_ranks_can_be_planned_from(policy: str, held: Held) -> None:
    made = plan(LOADS, TOPOLOGY, policy, current=held)
    now = held.on(TOPOLOGY)
    fetched = [
        sum(len(set(new) - set(old)) for new, old in zip(rank_slots(a), rank_slots(b), strict=True))
        for a, b in zip(made.placement.phy2log, now.phy2log, strict=True)
    ]
    assert made.report.moves.tolist() == fetched
    if policy == "robust":
        assert not avoidable_twins(made.placement.phy2log, TOPOLOGY)


def rank_slots(row: np.ndarray) -> list[list[int]]:
    return row.reshape(TOPOLOGY.num_ranks, -1).tolist()


def test_robust_keeps_what_ranks_hold_where_a_rank_joins() -> None:
    before = plan(LOADS, Topology(3, 4)).placement
    topology = Topology(4, 4)
    named = plan(LOADS, topology, current=before).report.moves.sum()
    unnamed = plan(LOADS, topology).placement.moves_from(Held.of(before).on(topology)).sum()
    assert named < unnamed


@pytest.mark.parametrize(
    ("phy2log", "words"),
    [
        ([[0, 8]], "slot 1 holds expert 8"),
        ([[-2, 0]], "slot 0 holds expert -2"),
        ([[0.0, 1.0]], "integer array"),
        ([0, 1], "integer array"),
        ([[0, 1, 2]], "not divisible"),
    ],
)
def test_held_slots_that_cannot_be(phy2log: object, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Held(phy2log, 2, 8)  # type: ignore[arg-type]


def test_a_problem_is_checked_and_cut_into_parts() -> None:
    current = contiguous_placement(3, 8, 4, 12)
    pairs = np.arange(3 * 64.0).reshape(3, 8, 8)
    problem = Problem.of(LOADS, TOPOLOGY, current=current, max_moves=0.5, seed=7, pair_counts=pairs)
    assert problem.max_moves == 18
    assert (problem.num_layers, problem.num_experts) == (3, 8)
    part = problem.layers([2, 0])
    assert np.array_equal(part.loads, LOADS[:, [2, 0]])
    assert part.held is not None
    assert np.array_equal(part.held.phy2log, current.phy2log[[2, 0]])
    assert part.pair_counts is not None
    assert np.array_equal(part.pair_counts, pairs[[2, 0]])
    assert part.max_moves is None
    first = problem.first_windows(1)
    assert np.array_equal(first.loads, LOADS[:1])
    assert first.max_moves == 18
    assert Problem.of(LOADS[0], TOPOLOGY).loads.shape == (1, 3, 8)


def test_a_problem_owns_its_loads() -> None:
    loads = LOADS.copy()
    problem = Problem.of(loads, TOPOLOGY)
    loads[:] = 0
    assert np.array_equal(problem.loads, LOADS)


@pytest.mark.parametrize(
    ("pair_counts", "words"),
    [(np.ones((3, 8, 7)), r"\[3, 8, 8\]"), (-np.ones((3, 8, 8)), "not negative"), (np.ones(3), "shape")],
)
def test_pair_counts_that_do_not_fit(pair_counts: np.ndarray, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Problem.of(LOADS, TOPOLOGY, pair_counts=pair_counts)


@pytest.mark.parametrize("name", ["greedy", "chunked", "ensemble", "robust"])
def test_fields_that_are_not_used_change_no_plan(name: str) -> None:
    plain = Problem.of(LOADS, Topology(4, 3, 2, 2))
    more = Problem.of(
        LOADS,
        Topology(4, 3, 2, 2, node_of_rank=(0, 0, 1, 1), rank_speed=(1, 1 if name == "robust" else 0.5, 1, 1)),
        pair_counts=np.ones((3, 8, 8)),
    )
    assert np.array_equal(policies[name].place(plain), policies[name].place(more))


def test_uneven_nodes() -> None:
    topology = Topology(5, 3, num_groups=2, node_of_rank=(0, 0, 0, 1, 1))
    assert (topology.num_nodes, topology.even, topology.hierarchical) == (2, False, False)
    assert topology.nodes == (0, 0, 0, 1, 1)
    for name in ("greedy", "chunked", "ensemble", "robust"):
        made = plan(LOADS, topology, name)
        assert 0.0 <= made.report.cross_node_share <= 1.0
        again = plan(LOADS, topology, name, current=made.placement)
        assert again.placement.num_ranks == 5
    even = Topology(4, 3, node_of_rank=(0, 0, 1, 1))
    assert even == Topology(4, 3, num_nodes=2)
    assert even.nodes == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"node_of_rank": (0, 0, 1)}, "each of 4 ranks"),
        ({"node_of_rank": (0, 0, 1, 0)}, "ascend"),
        ({"node_of_rank": (0, 0, 2, 2)}, "ascend"),
        ({"node_of_rank": (1, 1, 1, 1)}, "ascend"),
        ({"node_of_rank": (0, 0, 1, 1.5)}, "each of 4 ranks"),
        ({"node_of_rank": (0, 0, 0, 1), "num_nodes": 4}, "leave num_nodes at 1"),
        ({"node_of_rank": 5}, "each of 4 ranks"),
        ({"rank_speed": 5}, "each of 4 ranks"),
        ({"rank_speed": "abcd"}, "each of 4 ranks"),
        ({"rank_speed": (1.0, 1.0, None, 1.0)}, "each of 4 ranks"),
        ({"rank_speed": (1.0, 1.0, 10**400, 1.0)}, "each of 4 ranks"),
        ({"rank_speed": np.ones((4, 2))}, "each of 4 ranks"),
        ({"rank_speed": (1.0, 1.0)}, "each of 4 ranks"),
        ({"rank_speed": (1.0, 1.0, 0.0, 1.0)}, "positive"),
        ({"rank_speed": (1.0, 1.0, float("nan"), 1.0)}, "positive"),
    ],
)
def test_nodes_and_speeds_that_cannot_be(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Topology(4, 3, **settings)  # type: ignore[arg-type]
