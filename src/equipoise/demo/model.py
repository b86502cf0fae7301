"""A byte-level mixture-of-experts language model in plain torch, small enough to ship.

Its expert blocks have the shape that transformers gives those of Qwen3-MoE: a router, and experts as two 3-D
tensors, ``gate_up_proj [E, 2f, d]`` and ``down_proj [E, d, f]`` (SwiGLU).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "data" / "byte_moe.safetensors"


@dataclass(frozen=True)
class Shape:
    """Sizes of the model."""

    layers: int = 8
    experts: int = 64
    top_k: int = 4
    width: int = 64
    """of the residual stream, ``d``"""
    inner: int = 32
    """width of one expert, ``f``"""
    heads: int = 4
    context: int = 128
    """bytes that a sequence may have"""


class Experts(nn.Module):
    """The experts of a layer, each a SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        e, d, f = shape.experts, shape.width, shape.inner
        self.gate_up_proj = nn.Parameter(torch.randn(e, 2 * f, d) / d**0.5)
        self.down_proj = nn.Parameter(torch.randn(e, d, f) / f**0.5)

    def forward(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Outputs ``[T, d]`` of tokens ``[T, d]`` whose experts are ``chosen [T, k]`` with ``weights [T, k]``."""
        flat = chosen.reshape(-1)
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=len(self.gate_up_proj)).tolist()
        parts = tokens[order // chosen.shape[1]].split(counts)
        results = [self.one(expert, part) for expert, part in enumerate(parts) if len(part)]
        picks = torch.empty(len(flat), tokens.shape[1], dtype=tokens.dtype)
        picks = picks.index_copy(0, order, torch.cat(results))
        return (picks.view(*chosen.shape, -1) * weights[..., None]).sum(dim=1)

    def one(self, expert: int, tokens: Tensor) -> Tensor:
        """What one expert makes of tokens ``[n, d]``."""
        gate, up = F.linear(tokens, self.gate_up_proj[expert]).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down_proj[expert])


class SparseBlock(nn.Module):
    """Router and experts of a layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.top_k = shape.top_k
        self.gate = nn.Linear(shape.width, shape.experts, bias=False)
        self.experts = Experts(shape)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, d]`` in and out."""
        tokens = hidden.reshape(-1, hidden.shape[-1])
        weights, chosen = self.gate(tokens).softmax(dim=-1).topk(self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        results: Tensor = self.experts(tokens, chosen, weights)
        return results.view_as(hidden)


class Block(nn.Module):
    """Causal attention, then experts."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.width
        self.heads = shape.heads
        self.before_attention, self.before_experts = nn.RMSNorm(d), nn.RMSNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.mlp = SparseBlock(shape)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, d]`` in and out."""
        batch, length, d = hidden.shape
        qkv = self.qkv(self.before_attention(hidden)).view(batch, length, 3, self.heads, d // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        hidden = hidden + self.out(seen.transpose(1, 2).reshape(batch, length, d))
        results: Tensor = self.mlp(self.before_experts(hidden))
        return hidden + results


class ByteMoE(nn.Module):
    """The model: bytes ``[B, T]`` in, logits ``[B, T, 256]`` of the next byte out."""

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        self.shape = shape or Shape()
        d = self.shape.width
        self.embedding, self.position = nn.Embedding(256, d), nn.Embedding(self.shape.context, d)
        self.blocks = nn.ModuleList(Block(self.shape) for _ in range(self.shape.layers))
        self.norm, self.head = nn.RMSNorm(d), nn.Linear(d, 256, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Logits ``[B, T, 256]`` for bytes ``[B, T]``, ``T`` at most the context."""
        hidden = self.embedding(text) + self.position(torch.arange(text.shape[1]))
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(self.norm(hidden))
        return logits


def load_model(path: Path = WEIGHTS) -> ByteMoE:
    """The trained model, its bfloat16 weights widened to float32, on which CPUs compute."""
    from safetensors.torch import load_file

    model = ByteMoE()
    state: dict[str, Any] = load_file(path)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval().requires_grad_(False)
