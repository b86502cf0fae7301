"""What vLLM demands of a policy, of ``policy=greedy`` behind the adapter; through the entry point, in one process."""

from __future__ import annotations

import os

os.environ.update(
    EQUIPOISE_VLLM="1", EQUIPOISE_POLICY="greedy", EQUIPOISE_HISTORY="1", EQUIPOISE_MAX_MOVES="none"
)

import numpy as np
import pytest
import torch
from vllm.plugins import load_general_plugins

load_general_plugins()

from vllm.distributed.eplb.policy import EPLB_POLICIES, DefaultEplbPolicy

import equipoise as eq

# The example of DeepSeek's repository, which vLLM's own tests take as well.
EXAMPLE = torch.tensor(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
)
EXPECTED = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def plan(weight, slots, groups, nodes, ranks, old=None):
    assert EPLB_POLICIES["default"].__name__ == "EquipoisePolicy"
    return EPLB_POLICIES["default"].rebalance_experts(weight, slots, groups, nodes, ranks, old)


def loads_of(weight, made, ranks):
    return eq.rank_loads(weight.numpy(), eq.Placement(made.numpy(), ranks, weight.shape[1]))


def test_golden_example():
    """The published answer, but for the order of what lies on a rank: rank for rank the same experts."""
    made = plan(EXAMPLE, 16, 4, 2, 8)
    own = DefaultEplbPolicy.rebalance_experts(EXAMPLE, 16, 4, 2, 8)
    assert own.tolist() == EXPECTED
    assert loads_of(EXAMPLE, made, 8).max(axis=-1).sum() <= loads_of(EXAMPLE, own, 8).max(axis=-1).sum()
    for layer in range(2):
        for node in range(2):
            mine, theirs = (set(one[layer, node * 8 : node * 8 + 8].tolist()) for one in (made, own))
            assert len({expert // 3 for expert in mine}) == len({expert // 3 for expert in theirs}) == 2


def test_single_gpu():
    made = plan(torch.tensor([[10, 20, 30, 40]]), 4, 1, 1, 1)
    assert sorted(made[0].tolist()) == [0, 1, 2, 3]


def test_equal_weights():
    weight = torch.full((1, 8), 50)
    made = plan(weight, 8, 2, 2, 4)
    assert sorted(made[0].tolist()) == list(range(8))
    assert np.ptp(loads_of(weight, made, 4)) == 0


def test_extreme_imbalance():
    """One expert has nearly everything: it gets the most replicas."""
    made = plan(torch.tensor([[1000, 1, 1, 1, 1, 1, 1, 1]]), 12, 2, 2, 4)
    counts = np.bincount(made[0].numpy(), minlength=8)
    assert counts[0] == counts.max() > counts[1:].max()


def test_several_layers_do_not_mix():
    weight = torch.tensor([[10, 20, 30, 40, 50, 60], [60, 50, 40, 30, 20, 10]])
    made = plan(weight, 8, 2, 2, 4)
    for layer in range(2):
        alone = plan(weight[layer : layer + 1], 8, 2, 2, 4)
        assert made[layer].tolist() == alone[0].tolist()


@pytest.mark.parametrize(("groups", "nodes"), [(4, 2), (2, 2), (4, 4)])
def test_groups_stay_on_nodes(groups, nodes):
    """Where nodes divide groups, all replicas of a group are on one node."""
    weight = torch.from_numpy(np.random.default_rng(0).integers(1, 1000, (3, 16)))
    made = plan(weight, 24, groups, nodes, 8).numpy()
    node = np.arange(24) // (24 // nodes)
    for row in made:
        for group in range(groups):
            assert len(set(node[row // (16 // groups) == group])) == 1


@pytest.mark.parametrize(("groups", "nodes"), [(3, 2), (1, 2), (5, 4)])
def test_global_where_groups_do_not_divide(groups, nodes):
    weight = torch.from_numpy(np.random.default_rng(1).integers(1, 1000, (2, 12)))
    made = plan(weight, 16, groups, nodes, 8)
    own = DefaultEplbPolicy.rebalance_experts(weight, 16, groups, nodes, 8)
    assert loads_of(weight, made, 8).max() <= loads_of(weight, own, 8).max() * 1.001


def test_what_vllm_asserts_of_an_answer():
    old = torch.arange(16).repeat(2, 1) % 12
    made = plan(EXAMPLE, 16, 4, 2, 8, old)
    assert (made.device.type, made.dtype, made.shape) == ("cpu", torch.int64, (2, 16))
    assert made.is_contiguous()
    made[0, 0] = made[0, 0]
