"""Local search on vectors: every step is what it says, and where it ends nothing is left that it looks for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import Placement, rank_loads
from equipoise.planning import objective
from equipoise.planning.windows import to_vectors
from equipoise.search.layers import Limits, apply_steps, search_from
from equipoise.search.state import Layers, State, Trail, hold, mean_largest, new_state, refresh_rank
from equipoise.search.steps import MOST_PARTNERS, best_swap
from equipoise.search.walk import place_items, search_layer
from problems import KINDS, loads_of

cost = objective.cost.py_func  # of arrays too


@dataclass(frozen=True)
class Start:
    vectors: np.ndarray  # [L, W, E]
    phy2log: np.ndarray  # [L, R]
    num_ranks: int
    home: np.ndarray  # [L, E]
    num_nodes: int

    @property
    def placement(self) -> Placement:
        return Placement(self.phy2log, self.num_ranks, self.vectors.shape[2])

    @property
    def layers(self) -> Layers:
        return Layers(self.vectors, self.home, self.num_ranks, self.num_ranks // self.num_nodes)

    def state(self, layer: int) -> State:
        """A layer in the search, as it starts."""
        state = new_state(self.layers, layer, self.phy2log.shape[1])
        hold(state, self.phy2log[layer])
        return state


@st.composite
def starts(draw: st.DrawFn, *, twins: bool = True, anchored: bool | None = None) -> Start:
    """Any placement of a few experts, or one without avoidable twins and homes.

    With ``anchored``, each expert has a replica on a node that is its home.
    """
    anchored = draw(st.booleans()) if anchored is None else anchored
    nodes = draw(st.sampled_from([2, 3])) if anchored else 1
    ranks = nodes * draw(st.integers(1, 3 if anchored else 6))
    slots = draw(st.integers(1, 5))
    experts = draw(
        st.integers(nodes, max(nodes, ranks * slots)) if anchored else st.integers(1, ranks * slots)
    )
    experts -= experts % nodes
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    shape = (draw(st.integers(1, 3)), 2, experts)
    vectors = to_vectors(loads_of(draw(st.sampled_from(KINDS)), shape, int(rng.integers(1 << 20))), ranks)
    home = np.full((2, experts), -1)
    phy2log = np.empty((2, ranks * slots), np.int64)
    for layer in range(2):
        spare = rng.integers(0, experts, ranks * slots - experts)
        if not twins:
            spare = np.arange(spare.size) % experts
        node = np.arange(experts) % nodes
        row = [list(rng.permutation(np.flatnonzero(node == n))) for n in range(nodes)]
        for expert in spare:
            open_nodes = [n for n in range(nodes) if len(row[n]) < ranks * slots // nodes]
            row[int(rng.choice(open_nodes))].append(expert)
        phy2log[layer] = np.concatenate([rng.permutation(part) for part in row])
        if not twins:  # a run of one expert's replicas goes to as many ranks
            by_turn = np.sort(phy2log[layer]).reshape(slots, ranks)
            phy2log[layer] = rng.permutation(by_turn.T).ravel()
        if anchored:
            home[layer] = node
    return Start(vectors, phy2log, ranks, home, nodes)


def walk(start: Start, most: int = 1 << 30, min_gain: float = 0.0) -> list[tuple[np.ndarray, ...]]:
    """Of each layer: fetches, imbalance and twins parted as told, and the placements [steps + 1, R] of them."""
    options, steps = search_from(start.layers, start.phy2log, Limits(400, most, min_gain))
    found = []
    for layer, told in enumerate(options):
        rows = [
            apply_steps(start.phy2log[layer : layer + 1], steps[layer : layer + 1], [k])[0]
            for k in range(len(told.fetches))
        ]
        assert not told.regrouped.any()
        found.append((told.fetches, told.imbalance, told.parted, np.array(rows)))
    return found


def loads_after(start: Start, layer: int, row: np.ndarray) -> np.ndarray:
    """Rank loads ``[W, P]``, the plain way."""
    placement = Placement(row[None], start.num_ranks, start.vectors.shape[2])
    return rank_loads(start.vectors[layer][:, None, :], placement)[:, 0]


@given(starts())
@settings(max_examples=150)
def test_every_prefix_is_what_it_says(start: Start) -> None:
    for layer, (fetched, value, parted, rows) in enumerate(walk(start)):
        was = Placement(start.phy2log[layer][None], start.num_ranks, start.vectors.shape[2])
        assert fetched[0] == 0
        for k, row in enumerate(rows):
            now = Placement(row[None], start.num_ranks, start.vectors.shape[2])
            assert fetched[k] == now.moves_from(was)[0]
            assert np.isclose(value[k], loads_after(start, layer, row).max(axis=1).mean())
            assert parted[k] == was.twins[0] - now.twins[0]


@given(starts())
@settings(max_examples=150)
def test_every_step_after_parting_twins_lowers_the_objective(start: Start) -> None:
    for layer, (_, _, parted, rows) in enumerate(walk(start)):
        costs = [cost(loads_after(start, layer, row)).sum() for row in rows]
        for k in range(1, len(rows)):
            assert costs[k] < costs[k - 1] or parted[k] > parted[k - 1]


@given(starts())
@settings(max_examples=150)
def test_no_swap_is_left_and_no_twin_that_a_swap_could_part(start: Start) -> None:
    """Among swaps with a rank that costs more than one that carries the mean in every window."""
    num_ranks, experts = start.num_ranks, start.vectors.shape[2]
    for layer, (_, _, _, rows) in enumerate(walk(start)):
        row = rows[-1]
        loads = loads_after(start, layer, row)
        now = cost(loads).sum()
        costly = cost(loads).sum(axis=0) > cost(loads.mean(axis=1)).sum() * (1 + 1e-9)
        by_rank = np.repeat(np.arange(num_ranks), row.size // num_ranks)
        anchored = start.home[layer, 0] >= 0
        twins = Placement(row[None], num_ranks, experts).twins[0]
        counts = np.array([np.bincount(row[by_rank == r], minlength=experts) for r in range(num_ranks)])
        if not anchored:
            assert not ((counts.max(axis=0) > 1) & (counts.min(axis=0) == 0)).any()
        for s, t in combinations(range(row.size), 2):
            if by_rank[s] == by_rank[t] or row[s] == row[t] or not costly[by_rank[[s, t]]].any():
                continue
            other = row.copy()
            other[s], other[t] = row[t], row[s]
            if Placement(other[None], num_ranks, experts).twins[0] > twins or not at_home(
                start, layer, other
            ):
                continue
            after = cost(loads_after(start, layer, other)).sum()
            assert after >= now * (1 - 1e-9) - 1e-8


def at_home(start: Start, layer: int, row: np.ndarray) -> bool:
    """Whether every expert that has a home keeps a replica there."""
    if start.home[layer, 0] < 0:
        return True
    nodes = row.reshape(start.num_nodes, -1)
    return all(expert in nodes[node] for expert, node in enumerate(start.home[layer]))


@given(starts(anchored=True))
@settings(max_examples=150)
def test_every_prefix_keeps_anchored_experts_at_home(start: Start) -> None:
    for layer, (_, _, _, rows) in enumerate(walk(start)):
        assert all(at_home(start, layer, row) for row in rows)


@given(starts(twins=False, anchored=False), st.integers(0, 12))
def test_it_stops_at_the_fetches_allowed_on_the_same_path(start: Start, most: int) -> None:
    for (short, _, _, rows), (long, _, _, all_rows) in zip(walk(start, most), walk(start), strict=True):
        assert np.array_equal(rows, all_rows[: len(rows)])
        assert (short[:-1] < most).all()
        if len(short) < len(long):
            assert short[-1] >= most


@given(starts())
@settings(max_examples=60)
def test_loads_kept_by_the_search_are_those_of_the_placement(start: Start) -> None:
    experts = start.vectors.shape[2]
    for layer in range(2):
        state = start.state(layer)
        assert np.allclose(state.rank_loads, loads_after(start, layer, state.phy2log))
        trail = Trail(
            np.empty((300, 3), np.int64), np.zeros(301, np.int64), np.zeros(301), np.zeros(301, np.int64)
        )
        state.fetches[:] = 0
        done = search_layer(state, trail, 0, 0, 1, 0.0)
        assert np.allclose(state.rank_loads, loads_after(start, layer, state.phy2log), rtol=1e-9, atol=1e-9)
        assert np.array_equal(state.logcnt, np.bincount(state.phy2log, minlength=experts))
        assert state.logcnt.min() >= 1
        assert not trail.fetched[: done + 1].any()
        if done:
            assert np.isclose(trail.value[done], mean_largest(state.rank_loads))


@given(starts(twins=False, anchored=False))
@settings(max_examples=100)
def test_greedy_placement_of_vectors(start: Start) -> None:
    experts, num_slots = start.vectors.shape[2], start.phy2log.shape[1]
    state = start.state(0)
    counts = state.logcnt.copy()
    items = np.concatenate([np.arange(experts), np.repeat(np.arange(experts), counts - 1)])
    state.phy2log[:] = -1
    place_items(state, items, np.arange(num_slots))
    assert np.array_equal(np.bincount(state.phy2log, minlength=experts), counts)
    assert np.allclose(state.rank_loads, loads_after(start, 0, state.phy2log))
    assert at_home(start, 0, state.phy2log)


def test_one_exchange_where_no_swap_helps() -> None:
    # Rank 0 holds the hot expert alone, expert 1 has a spare replica that expert 0 needs more.
    vectors = np.array([[[4.0, 1.0, 1.0]]]) * (4 / 6)
    start = Start(vectors, np.array([[0, 1, 1, 2]]), 4, np.full((1, 3), -1), 1)
    ((fetched, value, _, rows),) = walk(start)
    assert fetched.tolist() == [0, 1]
    assert np.bincount(rows[-1]).tolist() == [2, 1, 1]
    assert value.tolist() == pytest.approx([4 * 4 / 6, 2 * 4 / 6])


def test_an_exchange_makes_no_twin_avoidable() -> None:
    # Expert 0 is on both ranks, on the first one twice: its replica on the second one must not be taken.
    vectors = to_vectors(np.array([[[1.0, 50.0, 1.0]]]), 2)
    start = Start(vectors, np.array([[0, 0, 1, 0, 2, 2]]), 2, np.full((1, 3), -1), 1)
    ((_, _, _, rows),) = walk(start)
    assert Placement(rows[-1][None], 2, 3).twins[0] <= 1
    for half in rows[-1].reshape(2, 3).tolist():
        assert 0 in half or rows[-1].tolist().count(0) == 1


def test_rounding_is_no_gain() -> None:
    # 8th powers near 10^17: the swaps of what is left gain less than the last bit of them.
    rng = np.random.default_rng(0)
    loads = np.r_[1e9, rng.random(299)]
    vectors = to_vectors(loads[None, None], 150)
    start = Start(vectors, np.arange(300)[None], 150, np.full((1, 300), -1), 1)
    ((_, _, _, rows),) = walk(start)
    costs = [cost(loads_after(start, 0, row)).sum() for row in rows]
    assert (np.diff(costs) < 0).all()


@pytest.mark.parametrize("seed", range(8))
def test_of_many_ranks_the_most_promising_are_looked_at(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ranks, slots, windows = int(rng.integers(MOST_PARTNERS + 1, 120)), 3, int(rng.integers(1, 4))
    vectors = to_vectors(rng.lognormal(0.0, 1.0, (windows, 1, ranks * slots)), ranks)  # one replica each
    phy2log = rng.permutation(ranks * slots)
    state = new_state(Layers(vectors, np.full((1, ranks * slots), -1), ranks, ranks), 0, ranks * slots)
    hold(state, phy2log)
    for rank in range(ranks):
        refresh_rank(state, rank)
    p = int(state.rank_costs.argmax())
    slot_loads = vectors[0][:, phy2log]
    loads = slot_loads.reshape(windows, ranks, slots).sum(axis=2)
    before = cost(loads).sum(axis=0)
    change = slot_loads[:, p * slots : (p + 1) * slots, None] - slot_loads[:, None, :]
    mine = cost(loads[:, p, None, None] - change).sum(axis=0)
    theirs = cost(np.repeat(loads, slots, axis=1)[:, None, :] + change).sum(axis=0)
    gains = before[p] + np.repeat(before, slots) - mine - theirs  # [S, R]
    gains = gains.reshape(slots, ranks, slots)
    promise = before + before[p] - 2.0 * cost((loads + loads[:, p, None]) / 2.0).sum(axis=0)
    others = np.arange(ranks) != p
    assert (gains.max(axis=(0, 2)) <= promise + 1e-9 * before[p])[others].all()
    promise[p] = -np.inf
    looked_at = np.sort(np.argsort(-promise)[:MOST_PARTNERS])
    score, s, t = best_swap(state, p, 0)
    assert np.isclose(score, gains[:, looked_at].max(), rtol=1e-9)
    assert np.isclose(score, gains[s - p * slots, t // slots, t % slots], rtol=1e-9)
    _, _, priced = best_swap(state, p, 1)
    assert (priced // slots in looked_at) or windows > 1
