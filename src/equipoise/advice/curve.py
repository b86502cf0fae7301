"""What ranks and spare slots bring on later windows, and what they take of each GPU's memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..control import CostModel
from ..errors import ArgumentError
from ..metrics import imbalance
from ..placement import Placement, contiguous_placement
from ..plans.plan import plan
from ..plans.served import SWEEPS, served_loads
from ..policy.protocol import Policy
from ..policy.registry import DEFAULT
from ..topology import MAX_RANKS, Topology
from ..trace import LoadTrace
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
    """time in expert layers over that of perfect balance, mean over later windows; what splitting takes included"""
    token_s: float
    """seconds in expert layers for a token, all ranks together waiting for the slowest; the same included"""
    step_s: float
    """seconds of a layer in one step, mean over later windows; without what splitting takes"""
    bytes: int
    """that experts take of each GPU, over all layers"""
    share: float
    """the same as a part of the GPU's memory"""
    fits: bool
    split: str
    """how an expert's tokens are split among its replicas: "even", or "batch", by the load of each window"""
    policy: str | None
    """what planned it; None without a plan"""

    def price(self, worth: float) -> float:
        """Time of a GPU and its memory, in one number: what is chosen has the least."""
        return self.stretch + worth * self.share

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Scoring:
    """What placements are scored by: the later windows, and what time, memory and splitting cost.

    Raises `ArgumentError` for a cost model of tiles or of ranks with speeds, neither of which is planned for, and for
    loads that are no tokens.
    """

    part: Part
    cost: CostModel
    limits: Limits
    split_s: float = 0.0
    """seconds that splitting a batch by its load takes in a layer and step"""

    def __post_init__(self) -> None:
        check_unit(self.part.later)
        if self.cost.tile != 1 or self.cost.rank_speed is not None:
            raise ArgumentError(
                "advice is for tokens and ranks of one speed: leave tile and rank_speed out of cost"
            )

    def choice(self, placement: Placement, policy: str | None, split: str = "even") -> Choice:
        """A placement on the later windows, each split evenly or by its load, in the sweeps of `split_batch`.

        Where no expert has replicas there is nothing to split, and the split is even.
        """
        layers, slots = placement.num_layers, placement.slots_per_rank
        redundant = placement.num_slots - placement.num_experts
        split = split if redundant else "even"
        sweeps, taken = (SWEEPS, self.split_s) if split == "batch" else (0, 0.0)
        loads = served_loads(self.part.later.counts, placement, sweeps)
        steps = self.cost.step_times(loads, self.steps)
        seconds = self.steps * (steps.sum(axis=1) + layers * taken)
        tokens = self.tokens
        used = slots * layers * self.cost.expert_bytes
        return Choice(
            ranks=placement.num_ranks,
            slots_per_rank=slots,
            spare=slots + -placement.num_experts // placement.num_ranks,
            redundant=redundant,
            imbalance=float(imbalance(loads).mean()),
            stretch=float(self.over_balance(seconds, placement.num_ranks, 1.0).mean()),
            token_s=float(seconds.sum() / tokens) if tokens else 0.0,
            step_s=float(steps.mean()),
            bytes=used,
            share=used / self.limits.memory_bytes,
            fits=used <= self.limits.memory_bytes * (1 - self.limits.kept),
            split=split,
            policy=policy,
        )

    @cached_property
    def steps(self) -> FloatArray:
        """Steps of every later window ``[S]``."""
        assert self.part.later.steps is not None
        return np.asarray(self.part.later.steps[:, 1] - self.part.later.steps[:, 0], dtype=np.float64)

    @cached_property
    def tokens(self) -> float:
        """Tokens of the later windows: expert picks of a layer over top-k."""
        picks = float(self.part.later.counts.sum(dtype=np.float64)) / self.part.later.num_layers
        return picks / (self.part.later.top_k or self.cost.top_k or 1)

    def over_balance(self, seconds: FloatArray, ranks: int, idle: float) -> FloatArray:
        """Seconds of every later window ``[S]`` over those in perfect balance; ``idle`` where these are none."""
        later = self.part.later
        fixed = self.steps * self.cost.fixed_s * later.num_layers
        balanced = fixed + self.cost.token_s * later.counts.sum(axis=(1, 2), dtype=np.float64) / ranks
        return np.asarray(np.divide(seconds, balanced, out=np.full_like(seconds, idle), where=balanced > 0))


@dataclass(frozen=True, eq=False)
class Curve:
    """The choices for one number of ranks, from no spare slot to some."""

    topology: Topology
    """without spare slots"""
    nothing: Choice
    """the contiguous placement that engines start from, without a plan"""
    placements: tuple[Placement, ...]
    """by the default policy, for an even split"""
    choices: tuple[Choice, ...]
    """the placements, split evenly"""
    swept: tuple[Choice, ...]
    """the same placements, every window split by its load"""


def curve(scoring: Scoring, ranks: int, nodes: int, groups: int, seed: int) -> Curve:
    """Plan from the windows seen, score on the later ones, for every number of spare slots.

    Raises `ArgumentError` where ranks, nodes and groups do not fit together.
    """
    seen = scoring.part.seen
    topology = Topology(ranks, -(-seen.num_experts // ranks), nodes, groups)
    topology.check_experts(seen.num_experts)
    start = contiguous_placement(seen.num_layers, seen.num_experts, ranks, topology.num_slots)
    placements = tuple(planned(seen, wider(topology, spare), DEFAULT, seed) for spare in SPARE)
    return Curve(
        topology,
        scoring.choice(start, None),
        placements,
        tuple(scoring.choice(made, DEFAULT) for made in placements),
        tuple(scoring.choice(made, DEFAULT, "batch") for made in placements),
    )


def wider(topology: Topology, spare: int) -> Topology:
    """The topology with more slots on every rank."""
    return replace(topology, slots_per_rank=topology.slots_per_rank + spare)


def planned(seen: LoadTrace, topology: Topology, policy: str | Policy, seed: int) -> Placement:
    """The placement that a policy plans from the windows seen, the last ones where they are many."""
    return plan(seen[-MAX_WINDOWS:], topology, policy, seed=seed).placement


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


def check_unit(trace: LoadTrace) -> None:
    """Raise `ArgumentError` unless loads count tokens, whose time is what is weighed."""
    if trace.unit != "tokens":
        raise ArgumentError(
            "advice weighs the time of tokens, and these loads count batches: record tokens for it"
        )
