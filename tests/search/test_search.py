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
from equipoise.planning.replicate import cap_replicas, replicate_layer
from equipoise.planning.scale import to_integers
from equipoise.planning.windows import to_vectors
from equipoise.search.layers import Demand, Limits, search_from
from equipoise.search.partners import SLOTS, find_place, nth_largest, sort_slots
from equipoise.search.state import (
    BURDEN,
    Layers,
    State,
    Trail,
    hold,
    may_swap,
    mean_largest,
    new_state,
    refresh_rank,
    soft_largest,
)
from equipoise.search.steps import swap
from equipoise.search.swaps import FEW_WINDOWS, FREE, MOST_PARTNERS, best_swap
from equipoise.search.trails import NEAR, RECOUNTED
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
    given_speed: np.ndarray | None = None  # [P], of mean 1

    @property
    def speed(self) -> np.ndarray:
        return np.ones(self.num_ranks) if self.given_speed is None else self.given_speed

    @property
    def placement(self) -> Placement:
        return Placement(self.phy2log, self.num_ranks, self.vectors.shape[2])

    @property
    def layers(self) -> Layers:
        speed = np.tile(self.speed, (len(self.vectors), 1))
        return Layers(self.vectors, self.home, self.num_ranks, self.num_ranks // self.num_nodes, speed)

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
    speed = draw(st.sampled_from([None, 1.25, 4.0]))
    if speed is not None:
        speed = rng.uniform(1.0, speed, ranks)
        speed /= speed.mean()
    return Start(vectors, phy2log, ranks, home, nodes, speed)


@dataclass(frozen=True)
class Walked:
    """One trail of a layer: what is told of its prefixes, and the placements ``[steps + 1, R]`` that they lead to."""

    layer: int
    fetched: np.ndarray
    value: np.ndarray
    largest: np.ndarray
    parted: np.ndarray
    rows: np.ndarray


def walk(
    start: Start, most: int = 1 << 30, min_gain: float = 0.0, which: tuple[int, ...] = (NEAR, RECOUNTED)
) -> list[Walked]:
    """The trails of each layer that were made."""
    peaks = to_integers(start.vectors.max(axis=1))
    trails = search_from(start.layers, Demand(peaks, peaks), start.phy2log, Limits(400, most, min_gain))
    soft, hard = trails.options(by_largest=False), trails.options(by_largest=True)
    found = []
    for layer, (near, recounted) in enumerate(trails.taken):
        rows = []
        for pick in range(near + recounted + 1):
            picks = [0] * len(start.phy2log)
            picks[layer] = pick
            rows.append(trails.follow(picks)[layer])
        told = soft[layer]
        assert not told.regrouped.any()
        fields = (told.fetches, told.imbalance, hard[layer].imbalance, told.parted, np.array(rows))
        assert {len(field) for field in fields} == {near + recounted + 1}
        parts = {NEAR: np.r_[: near + 1], RECOUNTED: np.r_[0, near + 1 : near + recounted + 1]}
        for trail in which:
            if trail == NEAR or recounted:
                found.append(Walked(layer, *(field[parts[trail]] for field in fields)))
    return found


def loads_after(start: Start, layer: int, row: np.ndarray) -> np.ndarray:
    """Rank loads ``[W, P]``, the plain way."""
    placement = Placement(row[None], start.num_ranks, start.vectors.shape[2])
    return rank_loads(start.vectors[layer][:, None, :], placement)[:, 0]


def times_after(start: Start, layer: int, row: np.ndarray) -> np.ndarray:
    """Times of ranks ``[W, P]``, loads divided by speeds."""
    return loads_after(start, layer, row) / start.speed


def costs_after(start: Start, layer: int, row: np.ndarray) -> np.ndarray:
    """The objective's parts ``[W, P]``: a rank of speed ``s`` is ``s`` ranks that share its load."""
    return cost(times_after(start, layer, row)) * start.speed


def value_of(times: np.ndarray, speed: np.ndarray) -> float:
    """`soft_largest` of times of ranks ``[W, P]``, the plain way."""
    mean = (times * speed).sum(axis=1) / speed.sum()
    above = np.maximum(times - mean[:, None], 0.0)
    return float((mean + (above**4).sum(axis=1) ** 0.25).mean())


@given(starts())
@settings(max_examples=150)
def test_every_prefix_is_what_it_says(start: Start) -> None:
    for trail in walk(start):
        was = Placement(start.phy2log[trail.layer][None], start.num_ranks, start.vectors.shape[2])
        assert trail.fetched[0] == 0
        for k, row in enumerate(trail.rows):
            now = Placement(row[None], start.num_ranks, start.vectors.shape[2])
            assert trail.fetched[k] == now.moves_from(was)[0]
            assert trail.parted[k] == was.twins[0] - now.twins[0]
            times = times_after(start, trail.layer, row)
            assert np.isinf(trail.value[k]) == np.isinf(trail.largest[k])
            if np.isfinite(trail.value[k]):
                assert np.isclose(trail.value[k], value_of(times, start.speed))
                assert np.isclose(trail.largest[k], times.max(axis=1).mean())


def parting(start: Start, trail: Walked) -> int:
    """How many steps at the beginning part twins: swaps that do, all that there are being made first."""
    count = 0
    for row, after, parted, more in zip(
        trail.rows, trail.rows[1:], trail.parted, trail.parted[1:], strict=False
    ):
        if more <= parted or np.any(np.sort(row) != np.sort(after)):
            break
        count += 1
    return count


@given(starts())
@settings(max_examples=150)
def test_left_out_is_what_has_higher_loads_than_with_twins_apart(start: Start) -> None:
    for trail in walk(start):
        largest = [times_after(start, trail.layer, row).max(axis=1).mean() for row in trail.rows]
        parted = parting(start, trail)
        for k, told in enumerate(trail.largest):
            if k > parted and not np.isclose(largest[k], largest[parted], rtol=1e-9):
                assert np.isinf(told) == (largest[k] > largest[parted])
            if k <= parted:
                assert np.isfinite(told)


@given(starts())
@settings(max_examples=150)
def test_every_step_after_parting_twins_lowers_the_objective(start: Start) -> None:
    for trail in walk(start, which=(NEAR,)):
        costs = [costs_after(start, trail.layer, row).sum() for row in trail.rows]
        for k in range(1, len(costs)):
            assert costs[k] < costs[k - 1] or trail.parted[k] > trail.parted[k - 1]


def can_take(row: np.ndarray, counts: np.ndarray, wanted: np.ndarray, num_ranks: int) -> set[int]:
    """The experts with too few replicas that can take the slot of one with too many."""
    found = set()
    for rank in row.reshape(num_ranks, -1).tolist():
        for old in rank:
            # One more than there are ranks: the rank must keep another one.
            gives = counts[old] > wanted[old] and (counts[old] <= num_ranks or rank.count(old) > 1)
            if gives:
                found |= {e for e in range(counts.size) if counts[e] < wanted[e] and e not in rank}
    return found


@given(starts(anchored=False))
@settings(max_examples=150)
def test_the_second_trail_begins_with_all_exchanges_towards_the_counts_of_a_fresh_plan(start: Start) -> None:
    """It is made where more than a tenth of the spare replicas are wrong. One that found no slot once is left out."""
    experts, num_slots = start.vectors.shape[2], start.phy2log.shape[1]
    peaks = to_integers(start.vectors.max(axis=1))
    made = {trail.layer: trail for trail in walk(start, which=(RECOUNTED,))}
    for layer in range(2):
        wanted, items = np.empty(experts, np.int64), np.empty(num_slots, np.int64)
        replicate_layer(peaks[layer], num_slots, wanted, items)
        cap_replicas(peaks[layer], start.num_ranks, wanted, items)
        held = np.bincount(start.phy2log[layer], minlength=experts)
        if np.abs(wanted - held).sum() // 2 <= 0.1 * (num_slots - experts):
            assert layer not in made
        elif layer in made:
            trail = made[layer]
            counts = np.array([np.bincount(row, minlength=experts) for row in trail.rows])
            wrong = np.abs(counts - wanted).sum(axis=1)
            at = parting(start, trail)
            could = can_take(trail.rows[at], counts[at], wanted, start.num_ranks)
            while at + 1 < len(wrong) and wrong[at + 1] < wrong[at]:
                at += 1
                could &= can_take(trail.rows[at], counts[at], wanted, start.num_ranks)
            assert not could


@given(starts())
@settings(max_examples=150)
def test_no_swap_is_left_and_no_twin_that_a_swap_could_part(start: Start) -> None:
    """Among swaps with a rank that costs more for its speed than one that takes the fair time in every window."""
    num_ranks, experts = start.num_ranks, start.vectors.shape[2]
    for trail in walk(start):
        layer, row = trail.layer, trail.rows[-1]
        costs = costs_after(start, layer, row)
        now, fair = costs.sum(), loads_after(start, layer, row).sum(axis=1) / start.speed.sum()
        costly = costs.sum(axis=0) > start.speed * cost(fair).sum() * (1 + 1e-9)
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
            after = costs_after(start, layer, other).sum()
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
    for trail in walk(start):
        assert all(at_home(start, trail.layer, row) for row in trail.rows)


@given(starts(twins=False, anchored=False), st.integers(0, 12))
def test_it_stops_at_the_fetches_allowed_on_the_same_path(start: Start, most: int) -> None:
    alone = (NEAR,)
    for short, long in zip(walk(start, most, which=alone), walk(start, which=alone), strict=True):
        assert np.array_equal(short.rows, long.rows[: len(short.rows)])
        assert (short.fetched[:-1] < most).all()
        if len(short.rows) < len(long.rows):
            assert short.fetched[-1] >= most


@given(starts(), st.integers(0, 1))
@settings(max_examples=60)
def test_loads_kept_by_the_search_are_those_of_the_placement(start: Start, price: int) -> None:
    experts = start.vectors.shape[2]
    for layer in range(2):
        state = start.state(layer)
        assert np.allclose(state.rank_loads, loads_after(start, layer, state.phy2log))
        trail = Trail(
            np.empty((300, 3), np.int64),
            np.zeros(301, np.int64),
            np.zeros(301),
            np.zeros(301),
            np.zeros(301, np.int64),
        )
        state.fetches[:] = 0
        done = search_layer(state, trail, 0, price, 1, 0.0)
        assert np.allclose(state.rank_loads, loads_after(start, layer, state.phy2log), rtol=1e-9, atol=1e-9)
        assert np.array_equal(state.logcnt, np.bincount(state.phy2log, minlength=experts))
        assert state.logcnt.min() >= 1
        assert not trail.fetched[: done + 1].any()
        if done and price:  # with free fetches steps are not written down
            assert np.isclose(trail.value[done], soft_largest(state))
            assert np.isclose(trail.largest[done], mean_largest(state))


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
    trail = walk(start)[0]
    assert trail.fetched.tolist() == [0, 1]
    assert np.bincount(trail.rows[-1]).tolist() == [2, 1, 1]
    assert trail.largest.tolist() == pytest.approx([4 * 4 / 6, 2 * 4 / 6])


def test_an_exchange_makes_no_twin_avoidable() -> None:
    # Expert 0 is on both ranks, on the first one twice: its replica on the second one must not be taken.
    vectors = to_vectors(np.array([[[1.0, 50.0, 1.0]]]), 2)
    start = Start(vectors, np.array([[0, 0, 1, 0, 2, 2]]), 2, np.full((1, 3), -1), 1)
    rows = walk(start)[0].rows
    assert Placement(rows[-1][None], 2, 3).twins[0] <= 1
    for half in rows[-1].reshape(2, 3).tolist():
        assert 0 in half or rows[-1].tolist().count(0) == 1


def test_rounding_is_no_gain() -> None:
    # 8th powers near 10^17: the swaps of what is left gain less than the last bit of them.
    rng = np.random.default_rng(0)
    loads = np.r_[1e9, rng.random(299)]
    vectors = to_vectors(loads[None, None], 150)
    start = Start(vectors, np.arange(300)[None], 150, np.full((1, 300), -1), 1)
    rows = walk(start)[0].rows
    costs = [cost(loads_after(start, 0, row)).sum() for row in rows]
    assert (np.diff(costs) < 0).all()


def gains_of_swaps(state: State, p: int) -> np.ndarray:
    """What the swap of each slot of rank ``p`` with each slot gains, one by one: ``[S, R]``, -inf if barred."""
    slots, num_slots = state.slots_per_rank, state.phy2log.size
    burden = state.speeds[BURDEN]
    gains = np.full((slots, num_slots), -np.inf)
    for s in range(p * slots, (p + 1) * slots):
        for t in range(num_slots):
            q = t // slots
            if q == p or not may_swap(state, s, t):
                continue
            moved = state.slot_loads[:, s] - state.slot_loads[:, t]
            before = burden[p] * cost(state.rank_loads[:, p]) + burden[q] * cost(state.rank_loads[:, q])
            after = burden[p] * cost(state.rank_loads[:, p] - moved) + burden[q] * cost(
                state.rank_loads[:, q] + moved
            )
            gains[s - p * slots, t] = before.sum() - after.sum()
    return gains


def worth_of_swaps(state: State, p: int) -> np.ndarray:
    """What these gains are multiplied by for their fetches ``[S, R]``."""
    slots, a = state.slots_per_rank, state.phy2log[p * state.slots_per_rank :][: state.slots_per_rank]
    fetches, b, q = state.fetches.astype(int), state.phy2log, np.arange(state.phy2log.size) // slots
    mine = fetches[p, b][None] - fetches[p, a][:, None]
    extra = mine + fetches[q][:, a].T - fetches[q, b][None]
    return np.where(extra > 0, 1.0 / np.maximum(extra, 1), FREE)


def ready(state: State) -> None:
    """As a search makes a state ready."""
    for rank in range(state.rank_costs.size):
        refresh_rank(state, rank)
    sort_slots(state)


def check_best_swap(state: State, p: int, price: int, gains: np.ndarray) -> None:
    """The swap found is the best of ``gains [S, R]``, and there is none only where none gains."""
    slots = state.slots_per_rank
    scores = gains * (worth_of_swaps(state, p) if price else 1.0)
    score, s, t = best_swap(state, p, price)
    rounding = 1e-10 * state.rank_costs.max() * FREE + 2e-9 * FREE
    assert np.isclose(score, max(scores.max(), 0.0), rtol=1e-9, atol=rounding)
    if s >= 0:
        assert np.isclose(scores[s - p * slots, t], score, rtol=1e-9, atol=rounding)


@given(starts(), st.integers(0, 1), st.integers(0, 1 << 20))
@settings(max_examples=150)
def test_the_best_swap_is_the_best_of_all(start: Start, price: int, seed: int) -> None:
    state, rng = start.state(0), np.random.default_rng(seed)
    ready(state)
    for _ in range(3):
        for p in range(start.num_ranks):
            check_best_swap(state, p, price, gains_of_swaps(state, p))
        s, t = rng.integers(0, state.phy2log.size, 2)
        if s // state.slots_per_rank == t // state.slots_per_rank or not may_swap(state, s, t):
            continue
        swap(state, s, t)
        for rank in (s // state.slots_per_rank, t // state.slots_per_rank):
            refresh_rank(state, rank)
            find_place(state, rank)


@given(starts(), st.integers(0, 1 << 20))
@settings(max_examples=100)
def test_slots_stay_in_the_order_of_their_offsets(start: Start, seed: int) -> None:
    state, rng = start.state(0), np.random.default_rng(seed)
    ready(state)
    for rank in rng.integers(0, start.num_ranks, 5):
        state.rank_loads[:, rank] *= rng.choice([0.0, 0.9, 1.1, 1e6])
        refresh_rank(state, rank)
        find_place(state, rank)
    kept = state.partners.by_offset.copy()
    sort_slots(state)
    assert np.array_equal(kept, state.partners.by_offset)
    assert sorted(int(key) & SLOTS for key in kept) == list(range(state.phy2log.size))
    by_offset = state.partners.offset[kept & SLOTS].clip(-(2.0**16), 2.0**16)  # beyond, order is no matter
    assert (np.diff(by_offset) >= -(2.0**-24)).all()


@given(st.floats(0, 100), st.floats(0, 100), st.floats(-1, 1))
def test_two_ranks_that_part_cost_at_least_their_bend(load: float, other: float, part: float) -> None:
    level = 0.5 * (load + other)
    part *= level
    least = 2 * cost(level) + 0.5 * objective.bend.py_func(level, level, 1.0) * part * part
    assert cost(level - part) + cost(level + part) >= least * (1 - 1e-12)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("windows", [1, 3, FEW_WINDOWS + 1])
def test_of_many_ranks_and_windows_the_most_promising_are_looked_at(windows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ranks, slots = int(rng.integers(MOST_PARTNERS + 1, 120)), 3
    vectors = to_vectors(rng.lognormal(0.0, 1.0, (windows, 1, ranks * slots)), ranks)  # one replica each
    speed = rng.uniform(0.5, 1.5, ranks) if seed % 2 else np.ones(ranks)
    speed /= speed.mean()
    free = np.full((1, ranks * slots), -1)
    state = new_state(Layers(vectors, free, ranks, ranks, speed[None]), 0, ranks * slots)
    hold(state, rng.permutation(ranks * slots))
    ready(state)
    p = int(state.rank_costs.argmax())
    gains = gains_of_swaps(state, p)
    check_best_swap(state, p, 1, gains)
    if windows > FEW_WINDOWS:
        both = speed + speed[p]
        level = cost((state.rank_loads + state.rank_loads[:, p, None]) / both).sum(axis=0)
        promise = state.rank_costs - both * level
        of_ranks = gains.reshape(slots, ranks, slots).max(axis=(0, 2))
        assert (of_ranks <= promise + state.rank_costs[p] * (1 + 1e-9)).all()
        promise[p] = -np.inf
        left_out = np.argsort(-promise)[MOST_PARTNERS:]
        gains.reshape(slots, ranks, slots)[:, left_out] = -np.inf
    check_best_swap(state, p, 0, gains)


@given(st.lists(st.floats(-4, 4) | st.sampled_from([-np.inf, 0.0, 1.0]), min_size=1, max_size=80), st.data())
def test_the_nth_largest_is_found(values: list[float], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(values)))
    assert nth_largest(np.array(values), n) == sorted(values, reverse=True)[n - 1]
