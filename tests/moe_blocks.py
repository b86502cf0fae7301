"""Models with expert blocks for tests: one written token by token, and those of transformers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

LAYERS, EXPERTS, TOP_K = 2, 8, 3


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


def make_model(width=64, inner=32, dtype=torch.float32, layers=LAYERS):
    torch.manual_seed(3)
    blocks = [Block(width, inner) for _ in range(layers)]
    return nn.Sequential(*blocks).to(dtype).requires_grad_(False)


def real_model(name):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 16,
        "moe_intermediate_size": 16,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": EXPERTS,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "attn_implementation": "eager",
        "experts_implementation": "eager",
    }
    config = getattr(transformers, f"{name}Config")(**sizes)
    torch.manual_seed(5)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval().requires_grad_(False)
