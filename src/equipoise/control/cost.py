"""What a placement costs and what a change of placement costs, in estimated seconds.

**Layer time.** All ranks of a layer wait for the slowest, so a window of ``s`` steps takes

    ``s * fixed + per_token * max_p (g[l, p] / speed[p])``

seconds in layer ``l``, with ``g`` the tokens of rank ``p``. A window adds up its steps before the largest rank
is taken; the ranks that are slowest may differ from step to step, so shorter windows estimate more truly and
longer ones too low. With tile rounding each slot's tokens of a step are rounded up to whole tiles, as a
grouped matrix multiplication computes them.

**Move time.** A rank that must hold an expert which it did not hold fetches it, from its own node if a rank
there held it, else from another node. Layers are rearranged one after another, each as slow as the rank with
the most to receive. Senders are taken to keep up, and nothing is hidden behind serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..metrics import expert_loads
from ..placement import Placement
from ..problem import Held
from ..topology import Topology
from ..trace import LoadTrace
from .presets import ACCELERATORS, LINKS, MODELS, find, model_of_shape

FloatArray = npt.NDArray[np.float64]

# Assumptions, not measurements; measure your own and pass them.
COMPUTE_EFFICIENCY = 0.5
LINK_EFFICIENCY = 0.8


@dataclass(frozen=True)
class CostModel:
    """Figures behind the estimates. `cost_model` fills them from presets.

    Parameters
    ----------
    token_s : seconds that a rank needs for one token in one expert
    expert_bytes : bytes of one expert's weights
    intra_bytes_per_s, inter_bytes_per_s : what a rank receives from its own node and from other nodes
    fixed_s : seconds of a layer and step that do not depend on the load
    tile : tokens that a slot's load of a step is rounded up to
    rank_speed : ``[P]``, relative speed of each rank; all 1 unless given
    top_k : experts per token, where the model is known; it changes no time
    name : of what they describe, in words
    sources : where the figures come from, in words

    Raises
    ------
    ArgumentError
        if a figure is negative, not finite, or zero where it divides
    """

    token_s: float
    expert_bytes: int
    intra_bytes_per_s: float
    inter_bytes_per_s: float
    fixed_s: float = 0.0
    tile: int = 1
    rank_speed: tuple[float, ...] | None = None
    top_k: int | None = None
    name: str = ""
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("token_s", "expert_bytes", "fixed_s"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise ArgumentError(f"{name} must be finite and not negative, got {value!r}")
        for name in ("intra_bytes_per_s", "inter_bytes_per_s", "tile"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise ArgumentError(f"{name} must be finite and positive, got {value!r}")
        if self.rank_speed is not None:
            object.__setattr__(self, "rank_speed", tuple(float(speed) for speed in self.rank_speed))
            if not all(np.isfinite(speed) and speed > 0 for speed in self.rank_speed or (0.0,)):
                raise ArgumentError(f"rank_speed must be finite and positive, got {self.rank_speed}")

    def check(self, topology: Topology) -> None:
        """Raise `ArgumentError` if ``rank_speed`` does not name every rank of ``topology``."""
        if self.rank_speed is not None and len(self.rank_speed) != topology.num_ranks:
            raise ArgumentError(
                f"rank_speed has {len(self.rank_speed)} numbers for {topology.num_ranks} ranks: "
                "give one for each rank"
            )

    def layer_times(
        self, counts: FloatArray, rank_loads: FloatArray, placement: Placement, steps: FloatArray
    ) -> FloatArray:
        """Estimated seconds of every window and layer ``[T, L]``.

        Parameters
        ----------
        counts : ``[T, L, E]``, tokens per expert
        rank_loads : ``[T, L, P]``, the same tokens per rank under ``placement``
        steps : ``[T]``, steps of each window
        """
        work = rank_loads
        if self.tile > 1:
            per_step = expert_loads(counts, placement) / steps[:, None, None]
            # A share of a tile that comes from rounding in the division is no tile.
            tiles = np.ceil(per_step / self.tile - 1e-9) * self.tile * steps[:, None, None]
            work = tiles.reshape(*rank_loads.shape, placement.slots_per_rank).sum(axis=-1)
        if self.rank_speed is not None:
            work = work / np.array(self.rank_speed)
        return np.asarray(steps[:, None] * self.fixed_s + self.token_s * work.max(axis=-1))

    def step_times(self, rank_loads: FloatArray, steps: FloatArray) -> FloatArray:
        """Estimated seconds of one layer in one step ``[T, L]``, which `splitting_pays` weighs; tiles do not count.

        Parameters
        ----------
        rank_loads : ``[T, L, P]``, tokens of windows
        steps : ``[T]``, steps of each window
        """
        speed = 1.0 if self.rank_speed is None else np.array(self.rank_speed)
        return np.asarray(self.fixed_s + self.token_s * (rank_loads / speed).max(axis=-1) / steps[:, None])

    def move_time(self, new: Placement, old: Placement | Held, topology: Topology) -> float:
        """Estimated seconds to get from ``old`` to ``new``."""
        needed: npt.NDArray[np.bool_] = np.logical_and(new.holds, ~old.holds)
        nodes = np.array(topology.nodes)
        first = np.flatnonzero(np.r_[True, nodes[1:] != nodes[:-1]])  # ranks are contiguous per node
        on_node = np.logical_or.reduceat(old.holds, first, axis=1)
        near_count = (needed & on_node[:, nodes]).sum(axis=-1)
        far_count = needed.sum(axis=-1) - near_count
        seconds = self.expert_bytes * (
            near_count / self.intra_bytes_per_s + far_count / self.inter_bytes_per_s
        )
        return float(seconds.max(axis=1).sum())

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, for JSON."""
        figures = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in figures.items()}


def cost_model(
    model: str,
    *,
    dtype: str | None = None,
    accelerator: str = "h100",
    intra: str = "nvlink4",
    inter: str = "ib-400g",
    token_s: float | None = None,
    fixed_s: float = 0.0,
    tile: int = 1,
    rank_speed: Sequence[float] | None = None,
    compute_efficiency: float = COMPUTE_EFFICIENCY,
    link_efficiency: float = LINK_EFFICIENCY,
) -> CostModel:
    """A cost model from presets.

    Parameters
    ----------
    model, dtype, accelerator, intra, inter : names of presets (`MODELS`, `WEIGHT_BYTES`, `ACCELERATORS`, `LINKS`)
    token_s : a measured time per token, in place of operations over peak throughput
    compute_efficiency, link_efficiency : the part of the peaks that is reached; assumptions

    Raises
    ------
    ArgumentError
        for an unknown name (the message lists the known ones) or an efficiency outside (0, 1]

    Examples
    --------
    >>> cost_model("deepseek-v3").expert_bytes
    44050944
    """
    for name, value in (("compute_efficiency", compute_efficiency), ("link_efficiency", link_efficiency)):
        if not 0 < value <= 1:
            raise ArgumentError(f"{name} must be above 0 and at most 1, got {value!r}")
    preset = find(MODELS, model, "model")
    chip = find(ACCELERATORS, accelerator, "accelerator")
    near, far = find(LINKS, intra, "link"), find(LINKS, inter, "link")
    weights = (dtype or preset.dtype).lower()
    sources = [
        f"{preset.name}: {preset.source}",
        f"links within nodes {near.name} ({near.source}) and between nodes {far.name} ({far.source}), "
        f"each at {link_efficiency:.0%} of its peak (assumed)",
    ]
    expert_bytes = preset.expert_bytes(weights)
    on = ""
    if token_s is None:
        on = f" on {chip.name}"
        token_s = preset.token_flops / (chip.peak(weights) * compute_efficiency)
        sources.append(f"{chip.name} at {compute_efficiency:.0%} of its peak (assumed): {chip.source}")
    else:
        sources.append("time per token as given")
    return CostModel(
        token_s=token_s,
        expert_bytes=expert_bytes,
        intra_bytes_per_s=near.bytes_per_s * link_efficiency,
        inter_bytes_per_s=far.bytes_per_s * link_efficiency,
        fixed_s=fixed_s,
        tile=tile,
        rank_speed=None if rank_speed is None else tuple(rank_speed),
        top_k=preset.top_k,
        name=f"{preset.name} in {weights}{on}, {near.name} and {far.name}",
        sources=tuple(sources),
    )


def cost_for(trace: LoadTrace, model: str | None = None, **figures: Any) -> CostModel | None:
    """The cost model of the named model, else of the one whose expert layers have the trace's shape.

    Parameters
    ----------
    figures : the other arguments of `cost_model`

    Returns
    -------
    None if no model is named and no preset has that shape, or the trace counts batches and not tokens

    Raises
    ------
    ArgumentError
        if a model is named for a trace that counts batches
    """
    if trace.unit == "batches":
        if model is not None:
            raise ArgumentError(
                "a cost model is of tokens, and these loads count batches: leave the model out"
            )
        return None
    if model is None:
        found = model_of_shape(trace.num_layers, trace.num_experts)
        if found is None:
            return None
        model = found.name
    return cost_model(model, **figures)
