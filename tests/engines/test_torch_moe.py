"""A model that is expert parallel gives the bits of the model on one rank, wherever its experts are."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows imports torch

import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_ranks import Ranks
from torch import nn

from equipoise import ArgumentError, Placement, PlacementError, contiguous_placement
from equipoise.engines.torch_moe import even, torch_moe

LAYERS, EXPERTS, TOP_K = 2, 8, 3
SIZES = ((64, 32), (20, 12), (36, 10))  # width of the model and of an expert
TYPES = (torch.float32, torch.bfloat16)


class Experts(nn.Module):
    """Token by token and in no clever way."""

    def __init__(self, width, inner):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, 2 * inner, width) / width**0.5)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, width, inner) / inner**0.5)

    def forward(self, hidden, chosen, weights):
        result = torch.zeros_like(hidden)
        for token, row in enumerate(hidden):
            for expert, weight in zip(chosen[token], weights[token], strict=True):
                gate, up = F.linear(row, self.gate_up_proj[expert]).chunk(2)
                result[token] += weight * F.linear(F.silu(gate) * up, self.down_proj[expert])
        return result


class Block(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.gate, self.experts = nn.Linear(width, EXPERTS, bias=False), Experts(width, inner)

    def forward(self, hidden):
        weights, chosen = self.gate(hidden).float().softmax(-1).topk(TOP_K, -1)
        return hidden + self.experts(hidden, chosen, weights.to(hidden.dtype))


def make_model(width=64, inner=32, dtype=torch.float32):
    torch.manual_seed(3)
    blocks = [Block(width, inner) for _ in range(LAYERS)]
    return nn.Sequential(*blocks).to(dtype).requires_grad_(False)


def make_tokens(rank, count, width, dtype):
    # Some tokens alike: experts with many and with single tokens.
    generator = torch.Generator().manual_seed(100 * count + rank)
    return torch.randn(count, width, generator=generator).round(decimals=1).to(dtype)


def on_rank(rank, phy2log, num_ranks, counts, size, dtype, group=None):
    """This rank's output, as bytes."""
    model = make_model(*size, dtype)
    torch_moe(model, Placement(phy2log, num_ranks, EXPERTS), group)
    output = model(make_tokens(rank, counts[rank], size[0], dtype))
    return output.view(torch.uint8).numpy().tobytes()


def on_one_rank(rank, counts, size, dtype):
    row = np.tile(np.arange(EXPERTS), (LAYERS, 1))
    return on_rank(rank, row, 1, counts, size, dtype)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    started = {count: Ranks(count, folder, on_rank) for count in (2, 4)}
    yield started
    for each in started.values():
        each.close()


@st.composite
def cases(draw, num_ranks):
    """A legal placement, twins and several replicas included, and how many tokens each rank has."""
    spare = draw(st.integers(0, 3)) * num_ranks
    rows = []
    for _ in range(LAYERS):
        extra = draw(st.lists(st.integers(0, EXPERTS - 1), min_size=spare, max_size=spare))
        rows.append(draw(st.permutations([*range(EXPERTS), *extra])))
    counts = draw(
        st.lists(st.integers(0, 128) | st.integers(0, 3), min_size=num_ranks, max_size=num_ranks)
    )
    return np.array(rows), counts


@pytest.mark.parametrize("num_ranks", [2, 4])
@settings(max_examples=60)
@given(data=st.data())
def test_any_placement_gives_the_bits_of_one_rank(ranks, num_ranks, data):
    phy2log, counts = data.draw(cases(num_ranks))
    size, dtype = data.draw(st.sampled_from(SIZES)), data.draw(st.sampled_from(TYPES))
    found = ranks[num_ranks].ask(phy2log, num_ranks, counts, size, dtype)
    assert found == [on_one_rank(rank, counts, size, dtype) for rank in range(num_ranks)]


@pytest.mark.parametrize("tokens", range(1, 129))
def test_one_to_128_tokens(ranks, tokens):
    rng = np.random.default_rng(tokens)
    phy2log = np.stack([rng.permutation(np.r_[:EXPERTS, rng.integers(0, EXPERTS, 4)]) for _ in range(LAYERS)])
    found = ranks[4].ask(phy2log, 4, [tokens] * 4, SIZES[0], torch.float32)
    assert found == [on_one_rank(rank, [tokens] * 4, SIZES[0], torch.float32) for rank in range(4)]


@settings(max_examples=40)
@given(data=st.data())
def test_any_placement_on_one_rank(data):
    phy2log, counts = data.draw(cases(1))
    size = data.draw(st.sampled_from(SIZES))
    assert on_rank(0, phy2log, 1, counts, size, torch.float32) == on_one_rank(0, counts, size, torch.float32)
