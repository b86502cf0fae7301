"""A mixture of experts small enough for tests, expert parallel, whose outputs do not depend on who computes them."""

from __future__ import annotations

import numpy as np
import torch

LAYERS, EXPERTS, TOP_K, WIDTH = 3, 8, 2, 8


def expert(layer, number, generation=0):
    """The tensors of an expert; another generation is what training makes of it."""
    generator = torch.Generator().manual_seed(10_000 * generation + 100 * layer + number)
    return {
        "up": torch.randn(WIDTH, 6, generator=generator),
        "down": torch.randn(6, WIDTH, generator=generator),
    }


def gate(layer, shift):
    """Routers whose favourites change with the domain of the text."""
    generator = torch.Generator().manual_seed(layer)
    bias = torch.arange(EXPERTS).roll(3 * shift + layer) / 4
    return torch.randn(WIDTH, EXPERTS, generator=generator), bias


def tokens(step, count):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(step))


def empty(slots):
    return [{"up": torch.zeros(slots, WIDTH, 6), "down": torch.zeros(slots, 6, WIDTH)} for _ in range(LAYERS)]


def fill(tensors, slots_of, generation=0):
    for layer, row in enumerate(tensors):
        for number, slots in slots_of(layer).items():
            for name, tensor in expert(layer, number, generation).items():
                row[name][slots] = tensor


def holds(tensors, slots_of, generation=0):
    """Whether each slot holds, bit for bit, what the map says."""
    return all(
        torch.equal(row[name][slot], tensor)
        for layer, row in enumerate(tensors)
        for number, slots in slots_of(layer).items()
        for name, tensor in expert(layer, number, generation).items()
        for slot in slots
    )


def _run(x, shift, out_of):
    for layer in range(LAYERS):
        weight, bias = gate(layer, shift)
        value, chosen = (x @ weight + bias).softmax(-1).topk(TOP_K, -1)
        x = torch.tanh(x + (out_of(layer, x, chosen) * value[..., None]).sum(1))
    return x


def _apply(row, one):
    return torch.relu(one @ row["up"]) @ row["down"]


def alone(x, shift, generation=0):
    """The output of the whole model on one rank."""

    def out_of(layer, x, chosen):
        return torch.stack(
            [
                torch.stack([_apply(expert(layer, number, generation), one) for number in row])
                for one, row in zip(x, chosen.tolist(), strict=True)
            ]
        )

    return _run(x, shift, out_of)


def served(x, shift, live, tensors, group):
    """The same, each rank computing its slots; tokens are counted by one rank each."""
    rank, ranks = group.rank(), group.size()
    per_rank = live.weights.slots_per_rank

    def out_of(layer, x, chosen):
        position = torch.arange(len(x))
        live.counter.add(layer, chosen, position % ranks == rank)
        slots = live.maps.log2phy[layer, chosen, position[:, None] % live.maps.logcnt[layer, chosen]]
        out = torch.zeros(len(x), TOP_K, WIDTH)
        for token, choice in np.argwhere((slots // per_rank == rank).numpy()).tolist():
            slot = int(slots[token, choice]) % per_rank
            row = {name: tensor[slot] for name, tensor in tensors[layer].items()}
            out[token, choice] = _apply(row, x[token])
        group.allreduce([out]).wait()  # each row is not zero on one rank alone: exact
        return out

    return _run(x, shift, out_of)
