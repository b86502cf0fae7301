"""The balancer: what it proposes, why, and that nothing but what it was told decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise import ArgumentError, Balancer, Held, Placement, PolicyError, Topology
from equipoise.control import CostModel
from problems import KINDS, loads_of

SKEWED = [[80, 40, 20, 20]]
FREE = CostModel(token_s=1.0, expert_bytes=0, intra_bytes_per_s=1.0, inter_bytes_per_s=1.0)
DEAR = CostModel(token_s=1e-9, expert_bytes=1 << 30, intra_bytes_per_s=1.0, inter_bytes_per_s=1.0)


def served(topology, num_layers=1, num_experts=4):
    return eq.contiguous_placement(num_layers, num_experts, topology.num_ranks, topology.num_slots)


def test_nothing_is_proposed_before_a_load_was_seen():
    balancer = Balancer(Topology(2, 3), 1, 4)
    balancer.observe(np.zeros((1, 4)))
    proposal = balancer.propose(served(balancer.topology))
    assert (proposal.keep, proposal.plan, balancer.windows) == (True, None, 0)
    assert proposal.reason == "keep: no load has been observed"


def test_a_plan_is_that_of_the_policy_on_the_last_windows():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 100, (7, 3, 16))
    topology = Topology(4, 5)
    balancer = Balancer(topology, 3, 16, history=4, max_moves=None)
    for window in counts:
        balancer.observe(window)
    current = served(topology, 3, 16)
    proposal = balancer.propose(current)
    expected = eq.plan(counts[-4:], topology, current=current).placement
    assert np.array_equal(proposal.plan.phy2log, expected.phy2log)
    assert proposal.moves == expected.moves_from(current).sum() > 0
    assert proposal.imbalance_planned < proposal.imbalance_now
    assert proposal.reason.startswith(f"move {proposal.moves} of 60 slots: imbalance ")
    assert balancer.windows == 4


def test_windows_without_load_do_not_push_out_what_was_seen():
    with_idle, without = (Balancer(Topology(2, 3), 1, 4, history=2) for _ in range(2))
    for balancer, idle in ((with_idle, 9), (without, 0)):
        balancer.observe(SKEWED)
        for _ in range(idle):
            balancer.observe(np.zeros((1, 4), np.int64))
    assert np.array_equal(with_idle.propose().plan.phy2log, without.propose().plan.phy2log)
    assert with_idle.windows == 1


@pytest.mark.parametrize(
    "counts",
    [
        [[1, 2, 3]],
        [1, 2, 3, 4],
        [[1, 2, 3, -1]],
        [[1, 2, 3, np.nan]],
        [[1, 2, 3, np.inf]],
        [[1, 2], [3]],
        "1",
    ],
)
def test_what_is_no_window_is_refused_and_forgotten(counts):
    balancer, other = (Balancer(Topology(2, 3), 1, 4) for _ in range(2))
    balancer.observe(SKEWED)
    other.observe(SKEWED)
    with pytest.raises(ArgumentError):
        balancer.observe(counts)
    with pytest.raises(ArgumentError, match="steps"):
        balancer.observe(SKEWED, steps=0)
    assert balancer.windows == 1
    assert np.array_equal(balancer.propose().plan.phy2log, other.propose().plan.phy2log)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"history": 0}, "history"),
        ({"history": True}, "history"),
        ({"horizon": 0}, "horizon"),
        ({"max_moves": -1}, "max_moves"),
        ({"max_moves": 1.5}, "max_moves"),
        ({"seed": -1}, "seed"),
        ({"policy": "nobody"}, "nobody"),
        ({"forecast": "rain"}, "rain"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_experts": 7}, "7 experts"),
        ({"cost": CostModel(1.0, 1, 1.0, 1.0, rank_speed=(1.0,))}, "rank_speed"),
    ],
)
def test_settings_are_checked_at_once(arguments, word):
    with pytest.raises(ArgumentError, match=word):
        Balancer(Topology(2, 3), **{"num_layers": 1, "num_experts": 4, **arguments})


def test_the_budget_is_kept_and_a_policy_without_one_is_not_asked_to():
    topology = Topology(4, 5)
    rng = np.random.default_rng(3)
    for policy, most in (("robust", 3), ("greedy", 60)):
        balancer = Balancer(topology, 3, 16, policy=policy, max_moves=3)
        balancer.commit(served(topology, 3, 16))
        balancer.observe(rng.integers(1, 1000, (3, 16)))
        assert 0 < balancer.propose().moves <= most


class Fixed:
    """A policy that returns what it is given."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def place(self, problem):
        return self.answers.pop(0)


def test_a_gate_weighs_gain_against_moves_and_says_so():
    worse, better = np.array([[0, 0, 1, 1, 2, 3]]), np.array([[0, 1, 1, 0, 2, 3]])
    for cost, keeps in ((FREE, False), (DEAR, True)):
        balancer = Balancer(Topology(2, 3), 1, 4, policy=Fixed(better), cost=cost, horizon=10)
        balancer.commit(Placement(worse, 2, 4))
        balancer.observe(SKEWED)
        proposal = balancer.propose()
        # Rank loads 80 + 20 and 20 + 20 + 20 before, 40 + 40 and 40 + 20 + 20 after.
        assert proposal.gain_s == pytest.approx(10 * 20 * cost.token_s)
        assert proposal.cost_s == cost.expert_bytes * 1.0
        assert proposal.keep is keeps
        assert proposal.plan is not None
        assert proposal.reason.startswith("keep: to move" if keeps else "move 1 of 6 slots: imbalance 1.25")


def test_the_gate_learns_from_the_windows_that_follow_a_plan_taken_or_not():
    worse, better = np.array([[0, 0, 1, 1, 2, 3]]), np.array([[0, 1, 1, 0, 2, 3]])
    for cost in (FREE, DEAR):
        balancer = Balancer(Topology(2, 3), 1, 4, policy=Fixed(better, better), cost=cost)
        balancer.commit(Placement(worse, 2, 4))
        balancer.observe(SKEWED)
        assert balancer.propose().trust == 1.0
        # Busiest rank 60 + 20 before, 30 + 40 after: the plan saves 10 tokens where it promised 20.
        balancer.observe([[60, 40, 10, 0]])
        assert balancer.propose(Placement(worse, 2, 4)).trust == pytest.approx(0.5)


def test_what_is_not_legal_is_replaced_whatever_it_costs():
    balancer = Balancer(Topology(2, 3), 1, 4, cost=DEAR, max_moves=0)
    balancer.observe(SKEWED)
    holes = balancer.propose(Held([[0, 1, 2, -1, -1, -1]], 2, 4))
    assert not holes.keep
    assert holes.reason == f"move {holes.moves} of 6 slots: 3 slots are empty, 1 experts of a layer are lost"
    smaller = balancer.propose(Held([[0, 1, 2, 3]], 1, 4))
    assert not smaller.keep
    assert smaller.plan.num_ranks == 2


def test_ranks_that_are_lost_or_join():
    rng = np.random.default_rng(5)
    balancer = Balancer(Topology(4, 5, 2), 2, 12)
    balancer.commit(served(balancer.topology, 2, 12))
    for _ in range(3):
        balancer.observe(rng.integers(1, 100, (2, 12)))
    balancer.change_topology(Topology(3, 5, node_of_rank=(0, 0, 1)))
    proposal = balancer.propose()
    assert proposal.placement.num_ranks == 3
    with pytest.raises(ArgumentError, match="change_topology"):
        balancer.commit(served(Topology(4, 5), 2, 12))
    balancer.commit(proposal.placement)
    assert balancer.propose().moves <= 0.05 * 30
    balancer.change_topology(Topology(5, 5))
    grown = balancer.propose()
    held = Held.of(balancer.placement).on(balancer.topology)
    assert grown.moves == grown.placement.moves_from(held).sum()
    with pytest.raises(ArgumentError):
        balancer.change_topology(Topology(2, 5))  # ten slots for twelve experts
    assert balancer.topology.num_ranks == 5


@pytest.mark.parametrize("answer", [[[0, 0, 1, 1, 2, 2]], [[0, 1, 2]], "nonsense", None])
def test_an_illegal_plan_is_an_error_that_changes_nothing(answer):
    balancer = Balancer(Topology(2, 3), 1, 4, policy=Fixed(answer, [[0, 1, 2, 3, 0, 1]]))
    start = served(balancer.topology)
    balancer.commit(start)
    balancer.observe(SKEWED)
    with pytest.raises(PolicyError, match="fixed"):
        balancer.propose()
    assert balancer.placement is start
    assert balancer.propose().plan is not None


def test_phases_are_needed_where_they_are_used():
    balancer = Balancer(Topology(2, 3), 1, 4, forecast="phase-mix")
    with pytest.raises(ArgumentError, match="phase"):
        balancer.observe(SKEWED)
    balancer.observe(SKEWED, phase="decode")
    assert balancer.propose().plan is not None


@st.composite
def lives(draw):
    """A balancer's settings, and what it goes through."""
    experts = draw(st.integers(1, 12))
    ranks = draw(st.integers(1, 4))
    slots = -(-experts // ranks) + draw(st.integers(0, 2))
    settings = {
        "policy": draw(st.sampled_from(["robust", "greedy"])),
        "history": draw(st.integers(1, 4)),
        "max_moves": draw(st.sampled_from([None, 0, 2, 0.1])),
        "cost": draw(st.sampled_from([None, FREE, DEAR, CostModel(1.0, 30, 1.0, 0.5)])),
        "horizon": draw(st.sampled_from([None, 5])),
        "forecast": draw(st.sampled_from(["windows", "sum", "ewma", "last", "phase-mix"])),
    }
    steps = st.one_of(
        st.tuples(st.just("observe"), st.sampled_from(KINDS), st.integers(0, 99)),
        st.tuples(st.just("propose"), st.booleans(), st.just(0)),
        st.tuples(st.just("resize"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.just("reload"), st.just(0), st.just(0)),
    )
    layers = draw(st.integers(1, 2))
    return Topology(ranks, slots), layers, experts, settings, draw(st.lists(steps, max_size=12))


def live(case, path, reload):
    """Go through a life; all proposals, each checked."""
    topology, layers, experts, options, steps = case
    balancer = Balancer(topology, layers, experts, **options)
    found = []
    for what, how, number in steps:
        if what == "observe":
            balancer.observe(loads_of(how, (1, layers, experts), number)[0], phase="ab"[number % 2])
        elif what == "resize":
            topology = Topology(topology.num_ranks + how, topology.slots_per_rank + number)
            balancer.change_topology(topology)
        elif what == "reload" and reload:
            balancer.save(path)
            balancer = Balancer.restore(path)
        elif what == "propose":
            before = balancer.placement
            proposal = balancer.propose()
            assert balancer.placement is before
            found.append(proposal)
            check(proposal, before, balancer)
            if how and proposal.placement is not None:
                balancer.commit(proposal.placement)
    return found


def check(proposal, before, balancer):
    if proposal.plan is None:
        assert proposal.keep
        return
    assert proposal.plan.num_slots == balancer.topology.num_slots
    assert proposal.keep or proposal.placement is proposal.plan
    fits = before is not None and before.phy2log.shape == proposal.plan.phy2log.shape
    if fits and before.num_ranks == proposal.plan.num_ranks:
        assert proposal.moves == proposal.plan.moves_from(before).sum()
        if balancer.name == "robust" and balancer.max_moves is not None:
            most = balancer.max_moves
            assert proposal.moves <= (most if isinstance(most, int) else most * before.phy2log.size)
    else:
        assert not proposal.keep  # what does not fit is replaced


@settings(max_examples=150, deadline=None)
@given(lives())
def test_any_life_is_legal_and_repeats_itself_also_through_files(tmp_path_factory, case):
    path = tmp_path_factory.mktemp("lives") / "state.safetensors"
    first, again = live(case, path, reload=False), live(case, path, reload=True)
    assert [p.reason for p in first] == [p.reason for p in again]
    for one, other in zip(first, again, strict=True):
        assert one.keep == other.keep
        assert (one.gain_s, one.cost_s, one.trust) == (other.gain_s, other.cost_s, other.trust)
        if one.plan is not None:
            assert np.array_equal(one.plan.phy2log, other.plan.phy2log)
