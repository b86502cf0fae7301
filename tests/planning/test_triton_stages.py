"""The ensemble as kernels for Triton, in Triton's interpreter, against the compiled kernels: bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import Ensemble, Placement, Topology
from equipoise.planning import orders, pack, refine, replicate, scale
from problems import CORNERS, KINDS, Problem, loads_of, problems
from real_loads import place

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed: its kernels are not tested")

from equipoise.planning import torch_backend, triton_backend  # noqa: E402

NOBODY = np.int64(1) << 50
RECIPE = Ensemble(random=1, noisy=2, max_swaps=4)


@st.composite
def layers(draw: st.DrawFn, num_layers: int = 2) -> tuple[np.ndarray, int, int, int]:
    """Loads ``[L, E]``, slots, ranks and a seed."""
    experts, ranks = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    slots = ranks * (-(-experts // ranks) + draw(st.sampled_from([0, 1, 3])))
    loads = loads_of(draw(st.sampled_from(KINDS)), (num_layers, experts), draw(st.integers(0, 1 << 20)))
    return loads, slots, ranks, draw(st.integers(0, 1 << 40))


def sizes_of(loads: np.ndarray, slots: int, ranks: int, candidates: int) -> tuple[Any, ...]:
    """What `triton_backend` tells its kernels: the rows of the planner and of `greedy`, sizes and blocks."""
    num_layers, num_experts = loads.shape
    experts = torch.arange(num_experts).repeat(2 * num_layers, 1)
    sizes = (num_experts, slots, ranks, 1, num_layers, candidates)
    blocks = tuple(map(triton_backend._power, (num_experts, num_experts, slots, ranks, candidates)))
    return experts, sizes, blocks


def reference_items(row: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """LPT order, expert and weight of the items of one layer of integers."""
    logcnt, owner, weight, lpt = np.empty(row.size, np.int64), *(np.empty(slots, np.int64) for _ in range(3))
    replicate.replicate_layer(row, slots, logcnt, owner)
    replicate.item_weights(row, logcnt, owner, weight)
    orders.lpt_order(weight, lpt)
    return lpt, owner, weight


@given(layers())
@settings(max_examples=10)
def test_items_and_their_weights(layer: tuple[Any, ...]) -> None:
    loads, slots, ranks, _ = layer
    experts, sizes, blocks = sizes_of(loads, slots, ranks, 1)
    found = triton_backend._weigh(torch.from_numpy(loads), experts, sizes, blocks)
    for row, integers in enumerate(np.tile(scale.to_integers(loads), (2, 1))):
        for one, other in zip(found, reference_items(integers, slots), strict=True):
            assert one[row].tolist() == other.tolist()


@given(layers(), st.sampled_from([0.0, 0.2, 0.9]))
@settings(max_examples=6)
def test_candidates_and_their_packing(layer: tuple[Any, ...], noise: float) -> None:
    loads, slots, ranks, seed = layer
    kinds = [0, 1, 2, 2, 3, 3]
    _, sizes, blocks = sizes_of(loads, slots, ranks, len(kinds))
    reference = [reference_items(row, slots) for row in np.tile(scale.to_integers(loads), (2, 1))]
    items = tuple(torch.from_numpy(np.stack(part)) for part in zip(*reference, strict=True))
    found = triton_backend._pack(items, (1, 2, 4, noise), seed, sizes, blocks)
    order, rank_of, room = np.empty(slots, np.int64), np.empty(slots, np.int64), np.empty(ranks, np.int64)
    for layer_, candidate in np.ndindex(len(loads), len(kinds) + 1):
        lpt, _, weight = reference[layer_]
        state = np.uint64(orders.candidate_state(seed, layer_, candidate))
        orders.candidate_order([*kinds, 0][candidate], state, weight, lpt, noise, order)
        largest = pack.pack_greedy(order, weight, ranks, NOBODY, rank_of, room)
        assert found[0][layer_, candidate].tolist() == order.tolist()
        assert found[1][layer_, candidate].tolist() == rank_of[order].tolist()
        assert found[2][layer_, candidate] == largest


@given(layers(num_layers=1), st.integers(0, 12))
@settings(max_examples=20)
def test_mending_of_any_packing(layer: tuple[Any, ...], max_swaps: int) -> None:
    """Random packings have twins to part and loads to level."""
    loads, slots, ranks, seed = layer
    _, sizes, blocks = sizes_of(loads, slots, ranks, 1)
    lpt, owner, weight = reference_items(scale.to_integers(loads)[0], slots)
    rank_of = np.random.default_rng(seed).permutation(np.arange(slots) % ranks)
    items = tuple(torch.from_numpy(np.tile(part, (2, 1))) for part in (lpt, owner, weight))
    packed = (
        np.tile(np.arange(slots), (1, 2, 1)),
        np.tile(rank_of.astype(np.int16), (1, 2, 1)),
        np.zeros((1, 2)),
    )
    tensors = tuple(torch.from_numpy(part) for part in packed)
    phy2sub, largest, twins = triton_backend._mend(
        items, (*tensors[:2], tensors[2].to(torch.int64)), max_swaps, sizes, blocks
    )
    members, fill = np.empty((ranks, slots // ranks), np.int64), np.empty(ranks, np.int64)
    rank_loads = np.empty(ranks, np.int64)
    refine.collect(lpt, rank_of, weight, members, rank_loads, fill)
    as_packed = owner if slots == ranks else owner[members.ravel()]
    assert phy2sub[1].tolist() == as_packed.tolist()
    assert largest[1] == rank_loads.max()
    assert bool(twins[1]) == refine.has_avoidable_twins(owner, members, ranks)
    refine.separate_layer(weight, owner, members, rank_loads)
    refine.refine_layer(weight, owner, max_swaps, members, rank_loads)
    assert phy2sub[0].tolist() == owner[members.ravel()].tolist()
    assert largest[0] == rank_loads.max()
    assert not twins[0]


def same_plan(problem: Problem, policy: Ensemble = RECIPE) -> None:
    """The plan, and its maps."""
    expected = place(policy, problem.loads, problem.topology, seed=problem.seed)
    loads = torch_backend.sum_windows(torch.from_numpy(problem.loads))
    settings_ = (policy.kinds.tolist(), policy.noise, policy.max_swaps, problem.seed)
    found = triton_backend.plan_ensemble(loads, problem.topology, *settings_)
    assert found.dtype == torch.int64
    assert found.tolist() == expected.tolist()
    placement = Placement(expected, problem.topology.num_ranks, problem.loads.shape[2])
    log2phy, logcnt = triton_backend.invert(found, placement.num_experts)
    assert log2phy.tolist() == placement.log2phy.tolist()
    assert logcnt.tolist() == placement.logcnt.tolist()


@given(problems())
@settings(max_examples=6)
def test_ensemble(problem: Problem) -> None:
    same_plan(problem)


@pytest.mark.parametrize("corner", CORNERS)
def test_ensemble_in_the_corners(corner: str) -> None:
    topology, num_experts = CORNERS[corner]
    loads = [loads_of(kind, (1, 1, num_experts), 3) for kind in ("small integers", "few carry all")]
    same_plan(Problem(np.concatenate(loads, axis=1), topology, seed=1))


@pytest.mark.parametrize(
    "policy", [Ensemble(0, 0, 0, 1), Ensemble(0, 1, 1, 0), Ensemble(1, 0, 0, 0, max_swaps=0)]
)
def test_ensemble_with_other_settings(policy: Ensemble) -> None:
    same_plan(Problem(loads_of("log-normal", (1, 1, 10), 3), Topology(4, 4), seed=(1 << 62) - 1), policy)


def test_the_whole_ensemble_of_a_layer() -> None:
    same_plan(Problem(loads_of("log-normal", (1, 1, 12), 0), Topology(4, 4)), Ensemble())


def test_more_slots_than_a_program_holds_are_planned_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "MOST_SLOTS", 15)
    monkeypatch.setattr(triton_backend, "_weigh", None)
    same_plan(Problem(loads_of("log-normal", (1, 1, 10), 3), Topology(4, 4)))
