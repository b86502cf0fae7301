"""Every stage exists twice, as a compiled kernel and for torch tensors; both give the same answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import Ensemble
from equipoise.planning import groups as groups_module
from equipoise.planning import orders, pack, random, refine, replicate, scale
from problems import CORNERS, KINDS, Problem, loads_of, problems
from real_loads import place

torch = pytest.importorskip("torch")

from equipoise.planning import torch_backend, torch_stages  # noqa: E402

NOBODY = np.int64(1) << 50


@st.composite
def layers(draw: st.DrawFn) -> np.ndarray:
    """Integer loads ``[L, E]`` as the stages get them."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 12)))
    return scale.to_integers(loads_of(draw(st.sampled_from(KINDS)), shape, draw(st.integers(0, 1 << 20))))


@st.composite
def packings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Replicated layers with ranks to pack them on: weights and experts ``[L, R]`` in item order, and more."""
    loads = draw(layers())
    ranks = draw(st.integers(1, 6))
    least = -(-loads.shape[1] // ranks)
    slots = ranks * draw(st.integers(least, least + draw(st.sampled_from([0, 1, 3, 20]))))
    logcnt, item_expert = torch_stages.replicate(torch.from_numpy(loads), slots)
    weight = torch_stages.item_weights(torch.from_numpy(loads), logcnt, item_expert)
    return weight.numpy(), item_expert.numpy(), loads, ranks, draw(st.integers(0, 1 << 40))


def lpt_orders(weight: np.ndarray) -> np.ndarray:
    order = np.empty_like(weight)
    for layer in range(len(weight)):
        orders.lpt_order(weight[layer], order[layer])
    return order


@given(st.sampled_from(KINDS), st.integers(0, 1 << 20))
def test_to_integers(kind: str, seed: int) -> None:
    loads = loads_of(kind, (3, 50), seed)
    assert np.array_equal(scale.to_integers(loads), torch_stages.to_integers(torch.from_numpy(loads)).numpy())


@given(st.integers(1, 9), st.integers(0, 1 << 20))
def test_sum_of_windows(windows: int, seed: int) -> None:
    loads = np.random.default_rng(seed).lognormal(0, 3, (windows, 2, 5))
    total = scale.sum_windows(loads)
    assert np.array_equal(total, torch_backend.sum_windows(torch.from_numpy(loads)).numpy())
    other_strides = np.asfortranarray(loads)
    assert np.array_equal(total, scale.sum_windows(other_strides)), "the sum depends on the memory layout"


@given(layers(), st.integers(0, 40))
def test_replicate_and_item_weights(loads: np.ndarray, extra: int) -> None:
    num_slots = loads.shape[1] + extra
    counts, experts = torch_stages.replicate(torch.from_numpy(loads), num_slots)
    weights = torch_stages.item_weights(torch.from_numpy(loads), counts, experts)
    logcnt, item_expert = np.empty(loads.shape[1], np.int64), np.empty(num_slots, np.int64)
    weight = np.empty(num_slots, np.int64)
    for layer, row in enumerate(loads):
        replicate.replicate_layer(row, num_slots, logcnt, item_expert)
        replicate.item_weights(row, logcnt, item_expert, weight)
        assert logcnt.tolist() == counts[layer].tolist()
        assert item_expert.tolist() == experts[layer].tolist()
        assert weight.tolist() == weights[layer].tolist()


@given(st.integers(0, (1 << 62) - 1), st.lists(st.integers(0, 1 << 40), min_size=1, max_size=5))
def test_generator(seed: int, numbers: list[int]) -> None:
    state = torch_stages.mix(torch.zeros((), dtype=torch.int64), torch.tensor(seed))
    mixed = torch_stages.mix(state, torch.tensor(numbers))
    start = np.uint64(random.mix(np.uint64(0), seed))
    expected = [random.mix(start, number) for number in numbers]
    assert [number % (1 << 64) for number in mixed.tolist()] == expected


@given(packings(), st.sampled_from([0.0, 0.2, 0.9]))
@settings(max_examples=60)
def test_candidate_orders(packing: tuple[np.ndarray, ...], noise: float) -> None:
    weight, _, _, _, seed = packing
    kinds = [0, 1, 2, 2, 3, 3, 3]
    lpt = lpt_orders(weight)
    batched = torch_stages.candidate_orders(
        torch.from_numpy(weight), torch_stages.lpt_order(torch.from_numpy(weight)), kinds, noise, int(seed)
    )
    order = np.empty(weight.shape[1], np.int64)
    for layer in range(len(weight)):
        for candidate, kind in enumerate(kinds):
            state = np.uint64(orders.candidate_state(seed, layer, candidate))
            orders.candidate_order(kind, state, weight[layer], lpt[layer], noise, order)
            assert order.tolist() == batched[layer, candidate].tolist()


@given(packings())
@settings(max_examples=60)
def test_pack_greedy(packing: tuple[np.ndarray, ...]) -> None:
    weight, _, _, num_ranks, seed = packing
    rng = np.random.default_rng(seed)
    order = np.array([[rng.permutation(row.size) for _ in range(3)] for row in weight])
    in_order = np.take_along_axis(weight[:, None], order, axis=2).reshape(-1, weight.shape[1])
    ranks, largest = torch_stages.pack_greedy(torch.from_numpy(in_order), int(num_ranks))
    ranks, largest = ranks.reshape(order.shape), largest.view(order.shape[:2])
    rank_of = np.empty(weight.shape[1], np.int64)
    room = np.empty(num_ranks, np.int64)
    for layer, candidate in np.ndindex(order.shape[:2]):
        row = order[layer, candidate]
        load = pack.pack_greedy(row, weight[layer], num_ranks, NOBODY, rank_of, room)
        assert load == largest[layer, candidate]
        assert rank_of[row].tolist() == ranks[layer, candidate].tolist()


@given(packings(), st.integers(0, 30), st.booleans())
@settings(max_examples=200)
def test_collect_separate_refine(packing: tuple[np.ndarray, ...], max_swaps: int, parted: bool) -> None:
    weight, item_expert, loads, num_ranks, seed = packing
    num_layers, num_items = weight.shape
    num_experts = loads.shape[1]
    rng = np.random.default_rng(seed)
    rank_of = np.array([rng.permutation(np.arange(num_items) % num_ranks) for _ in range(num_layers)])
    lpt = lpt_orders(weight)

    order = torch.from_numpy(lpt)
    found = torch_stages.collect(order, torch.from_numpy(rank_of), int(num_ranks))
    by_weight = torch.from_numpy(weight).gather(1, order), torch.from_numpy(item_expert).gather(1, order)
    if parted:
        torch_stages.separate(*by_weight, found, num_experts)
    torch_stages.refine(*by_weight, found, num_experts, max_swaps)

    members = np.empty((num_ranks, num_items // num_ranks), np.int64)
    rank_loads, fill = np.empty(num_ranks, np.int64), np.empty(num_ranks, np.int64)
    for layer in range(num_layers):
        refine.collect(lpt[layer], rank_of[layer], weight[layer], members, rank_loads, fill)
        if parted:
            refine.separate_layer(weight[layer], item_expert[layer], members, rank_loads)
        refine.refine_layer(weight[layer], item_expert[layer], max_swaps, members, rank_loads)
        assert lpt[layer][found[layer].numpy()].tolist() == members.tolist()
        assert rank_loads.tolist() == weight[layer][members].sum(axis=1).tolist(), "loads went out of step"


@given(problems(hierarchical=True), st.booleans())
def test_groups_to_nodes(problem: Problem, exact: bool) -> None:
    integers = scale.to_integers(problem.loads[0])
    expected = groups_module.groups_to_nodes(integers, problem.topology, exact=exact)
    found = torch_backend.groups_to_nodes(torch.from_numpy(integers), problem.topology, exact=exact)
    assert expected.tolist() == found.tolist()


@pytest.mark.parametrize(("groups", "nodes"), [(16, 4), (32, 2), (24, 8)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exact", [False, True])
def test_groups_to_nodes_where_there_are_too_many_pairings(
    groups: int, nodes: int, kind: str, exact: bool
) -> None:
    assert groups_module.pairings(groups, nodes) is None
    problem = Problem(loads_of(kind, (1, 2, groups * 2), seed=groups), CORNERS["one rank"][0])
    topology = type(problem.topology)(nodes, 2 * groups // nodes, nodes, groups)
    integers = scale.to_integers(problem.loads[0])
    expected = groups_module.groups_to_nodes(integers, topology, exact=exact)
    assert (
        expected.tolist()
        == torch_backend.groups_to_nodes(torch.from_numpy(integers), topology, exact=exact).tolist()
    )


def same_plan(problem: Problem, policy: Ensemble) -> None:
    expected = place(policy, problem.loads, problem.topology, seed=problem.seed)
    found = policy.place_tensor(torch.from_numpy(problem.loads), problem.topology, seed=problem.seed)
    assert found.dtype == torch.int64
    assert expected.tolist() == found.tolist()


@given(problems())
@settings(max_examples=150)
def test_ensemble(problem: Problem) -> None:
    same_plan(problem, Ensemble())


@given(problems(), st.integers(0, 1), st.integers(0, 2), st.integers(1, 3), st.sampled_from([0.0, 0.5]))
@settings(max_examples=60)
def test_ensemble_with_other_settings(
    problem: Problem, interleaved: int, random: int, noisy: int, noise: float
) -> None:
    same_plan(problem, Ensemble(0, interleaved, random, noisy, noise, max_swaps=3))


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("kind", KINDS)
def test_ensemble_in_the_corners(corner: str, kind: str) -> None:
    topology, num_experts = CORNERS[corner]
    same_plan(Problem(loads_of(kind, (1, 2, num_experts), 3), topology), Ensemble())


@given(problems())
def test_invert(problem: Problem) -> None:
    from equipoise import Placement

    phy2log = place(Ensemble(), problem.loads, problem.topology)
    num_experts = problem.loads.shape[2]
    placement = Placement(phy2log, problem.topology.num_ranks, num_experts)
    log2phy, logcnt = torch_backend.invert(torch.from_numpy(phy2log), num_experts)
    assert np.array_equal(log2phy.numpy(), placement.log2phy)
    assert np.array_equal(logcnt.numpy(), placement.logcnt)
