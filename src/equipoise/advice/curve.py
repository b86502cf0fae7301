"""What ranks and spare slots bring on later windows, and what they take of each GPU's memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..control import CostModel
from ..errors import ArgumentError
from ..metrics import imbalance, rank_loads
from ..placement import Placement, contiguous_placement
from ..plans.plan import plan
from ..policy.registry import DEFAULT
from ..topology import MAX_RANKS, Topology
from .windows import Part

FloatArray = npt.NDArray[np.float64]

SPARE = (0, 1, 2, 3, 4)
"""Slots of a rank beyond those that hold each expert once."""
MAX_WINDOWS = 16
"""Windows that plans are made from, the last ones: `Robust` merges more than these."""


@dataclass(frozen=True)
class Limits:
    """What a GPU has, and what its memory is worth.

    Parameters
    ----------
    memory_bytes : of one GPU
    kept : the part of it that is kept for everything but experts: attention, caches, activations
    worth : how much longer expert layers may take for all of a GPU's memory; 1: a hundredth of the memory is worth
        a hundredth of the time
    """

    memory_bytes: float
    kept: float = 0.4
    worth: float = 1.0

    def __post_init__(self) -> None:
        fits = (
            ("memory_bytes", self.memory_bytes, "above 0", 0 < self.memory_bytes < math.inf),
            ("kept", self.kept, "from 0 to below 1", 0 <= self.kept < 1),
            ("worth", self.worth, "0 or more", 0 <= self.worth < math.inf),
        )
        for name, value, words, right in fits:
            if not right:
                raise ArgumentError(f"{name} must be {words}, got {value!r}")


@dataclass(frozen=True)
class Choice:
    """Ranks with a number of slots each, held-out."""

    ranks: int
    """EP ranks ``P``"""
    slots_per_rank: int
    spare: int
    """slots of a rank beyond those that hold each expert once"""
    redundant: int
    """slots of a layer beyond one for each expert, as engines count them"""
    imbalance: float
    """mean over later windows and layers, planned from the windows before"""
    stretch: float
    """time in expert layers over that of perfect balance, mean over later windows"""
    token_s: float
    """seconds in expert layers for a token, all ranks together waiting for the slowest"""
    bytes: int
    """that experts take of each GPU, over all layers"""
    share: float
    """the same as a part of the GPU's memory"""
    fits: bool

    def price(self, worth: float) -> float:
        """Time of a GPU and its memory, in one number: what is chosen has the least."""
        return self.stretch + worth * self.share

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Curve:
    """The choices for one number of ranks, from no spare slot to some."""

    topology: Topology
    """without spare slots"""
    nothing: Choice
    """the contiguous placement that engines start from, without a plan"""
    choices: tuple[Choice, ...]


def curve(
    part: Part, ranks: int, nodes: int, groups: int, cost: CostModel, limits: Limits, seed: int
) -> Curve:
    """Plan from the windows seen, score on the later ones, for every number of spare slots.

    Raises `ArgumentError` where ranks, nodes and groups do not fit together.
    """
    least = -(-part.seen.num_experts // ranks)
    topology = Topology(ranks, least, nodes, groups)
    topology.check_experts(part.seen.num_experts)
    shape = part.seen.num_layers, part.seen.num_experts
    start = contiguous_placement(*shape, ranks, topology.num_slots)
    choices = []
    for spare in SPARE:
        wider = Topology(ranks, least + spare, nodes, groups)
        made = plan(part.seen[-MAX_WINDOWS:], wider, DEFAULT, seed=seed).placement
        choices.append(scored(made, part, wider, cost, limits))
    return Curve(topology, scored(start, part, topology, cost, limits), tuple(choices))


def scored(placement: Placement, part: Part, topology: Topology, cost: CostModel, limits: Limits) -> Choice:
    """A placement on the later windows."""
    counts = part.later.counts.astype(np.float64)
    loads = rank_loads(counts, placement)
    seconds = layer_seconds(part, placement, loads, cost)
    even = _even_seconds(part, loads, cost)
    used = topology.slots_per_rank * part.seen.num_layers * cost.expert_bytes
    tokens = tokens_of(part, cost)
    least = -(-part.seen.num_experts // topology.num_ranks)
    stretch = np.divide(seconds, even, out=np.ones_like(even), where=even > 0)
    return Choice(
        ranks=topology.num_ranks,
        slots_per_rank=topology.slots_per_rank,
        spare=topology.slots_per_rank - least,
        redundant=topology.num_slots - part.seen.num_experts,
        imbalance=float(imbalance(loads).mean()),
        stretch=float(stretch.mean()),
        token_s=float(seconds.sum() / tokens) if tokens else 0.0,
        bytes=used,
        share=used / limits.memory_bytes,
        fits=used <= limits.memory_bytes * (1 - limits.kept),
    )


def layer_seconds(part: Part, placement: Placement, loads: FloatArray, cost: CostModel) -> FloatArray:
    """Estimated seconds in expert layers of every later window ``[S]``, from rank loads ``[S, L, P]``."""
    counts = part.later.counts.astype(np.float64)
    return np.asarray(cost.layer_times(counts, loads, placement, _steps(part)).sum(axis=1))


def tokens_of(part: Part, cost: CostModel) -> float:
    """Tokens of the later windows: expert picks of a layer over top-k."""
    picks = float(part.later.counts.sum(dtype=np.float64)) / part.later.num_layers
    return picks / (part.later.top_k or cost.top_k or 1)


def _even_seconds(part: Part, loads: FloatArray, cost: CostModel) -> FloatArray:
    """Seconds of every later window in perfect balance ``[S]``."""
    fixed = _steps(part) * cost.fixed_s * part.later.num_layers
    return np.asarray(fixed + cost.token_s * loads.mean(axis=2).sum(axis=1))


def _steps(part: Part) -> FloatArray:
    assert part.later.steps is not None
    return np.asarray(part.later.steps[:, 1] - part.later.steps[:, 0], dtype=np.float64)


def best_of(choices: Sequence[Choice], worth: float) -> Choice:
    """The choice that fits and has the least price, of equals the first; where none fits, the smallest."""
    fitting = [choice for choice in choices if choice.fits]
    if not fitting:
        return min(choices, key=lambda choice: choice.bytes)
    return min(fitting, key=lambda choice: choice.price(worth))


def check_ranks(gpus: Sequence[int]) -> None:
    """Raise `ArgumentError` unless these are numbers of GPUs, each once."""
    wrong = [number for number in gpus if isinstance(number, bool) or not 1 <= number <= MAX_RANKS]
    if not gpus or wrong or len(set(gpus)) < len(gpus):
        raise ArgumentError(f"gpus must be numbers from 1 to {MAX_RANKS}, each once, got {list(gpus)}")
