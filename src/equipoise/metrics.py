"""What balance means, with the exact formula of every number that a report prints.

``g[l, p]`` is the load of rank ``p`` in layer ``l``. Layers without load are perfectly balanced: 1.0. Where ranks
have speeds ``s[p]``, ``max_p g`` becomes ``max_p (g / s)`` and ``mean_p g`` becomes ``sum_p g / sum_p s``.

============================ ==========================================  =========================
measure                      formula                                     who prints it
============================ ==========================================  =========================
imbalance of a layer         ``max_p g / mean_p g``                      TensorRT-LLM, minus 1
mean imbalance               ``mean_l (max_p g / mean_p g)``             Equipoise's tables
balancedness, mean of ratios ``mean_l (mean_p g / max_p g)``             SGLang
balancedness, ratio of sums  ``sum_l mean_p g / sum_l max_p g``          vLLM, the ADRS benchmark
worst layer                  ``max_l (max_p g / mean_p g)``              Equipoise's tables
activated experts            ``max_p`` of slots with tokens              METRO, Equipoise's tables
============================ ==========================================  =========================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ArgumentError
from .placement import Placement

FloatArray = npt.NDArray[np.float64]


def rank_loads(
    counts: npt.ArrayLike, placement: Placement, shares: npt.ArrayLike | None = None
) -> FloatArray:
    """Load of every rank when ``counts`` are served by ``placement``.

    Parameters
    ----------
    counts : ``[L, E]`` or ``[T, L, E]``, tokens per logical expert
    placement : of ``L`` layers and ``E`` experts
    shares : ``[L, R]``, the part of its expert's tokens that each slot takes; an even split unless given

    Returns
    -------
    ``[L, P]`` or ``[T, L, P]``, tokens per rank
    """
    loads = np.asarray(counts, dtype=np.float64)
    expected = (placement.num_layers, placement.num_experts)
    if loads.ndim not in (2, 3) or loads.shape[-2:] != expected:
        raise ArgumentError(
            f"counts must end in [layers, experts] = {list(expected)}, got shape {list(loads.shape)}"
        )
    if loads.ndim == 2:
        layers = np.arange(placement.num_layers)[:, None]
        slot_loads = loads[layers, placement.phy2log] * slot_shares(placement, shares)
        by_rank = slot_loads.reshape(placement.num_layers, placement.num_ranks, -1)
        return np.asarray(by_rank.sum(axis=2))
    # [T, L, E] x [L, E, P] without building [T, L, R].
    matrix = slot_matrix(placement, shares)
    return np.asarray(np.matmul(loads[..., None, :], matrix)[..., 0, :])


def activated_experts(slot_tokens: npt.ArrayLike, num_ranks: int) -> npt.NDArray[np.int64]:
    """Slots of each rank that a batch gives a token: in decode, the weights that the rank reads.

    Parameters
    ----------
    slot_tokens : ``[..., R]``, tokens of slots, or whether they have some
    num_ranks : ``P``

    Returns
    -------
    ``[..., P]``

    Examples
    --------
    >>> activated_experts([[5, 1, 0, 2]], num_ranks=2).tolist()
    [[2, 1]]
    """
    some = np.asarray(slot_tokens) > 0
    return np.asarray(some.reshape(*some.shape[:-1], num_ranks, -1).sum(axis=-1, dtype=np.int64))


def slot_shares(placement: Placement, shares: npt.ArrayLike | None = None) -> FloatArray:
    """The part of its expert's tokens that each slot takes ``[L, R]``: ``shares``, or those of an even split."""
    if shares is None:
        return np.asarray(1.0 / placement.logcnt[np.arange(placement.num_layers)[:, None], placement.phy2log])
    part = np.asarray(shares, dtype=np.float64)
    if part.shape != placement.phy2log.shape:
        raise ArgumentError(
            f"shares must be [layers, slots] = {list(placement.phy2log.shape)}, got {list(part.shape)}"
        )
    return part


def slot_matrix(placement: Placement, shares: npt.ArrayLike | None = None) -> FloatArray:
    """The part of each expert's tokens that each rank takes: ``[L, E, P]``; sums to 1 over ranks."""
    layers = np.arange(placement.num_layers)[:, None]
    ranks = (np.arange(placement.num_slots) // placement.slots_per_rank)[None, :]
    part = slot_shares(placement, shares)
    matrix = np.zeros((placement.num_layers, placement.num_experts, placement.num_ranks))
    np.add.at(matrix, (layers, placement.phy2log, ranks), part)
    return matrix


def longest_and_fair(
    loads: npt.ArrayLike, rank_speed: npt.ArrayLike | None = None
) -> tuple[FloatArray, FloatArray]:
    """The longest time of a rank, ``max_p (g / s)``, and the fair one that all take if times are equal.

    The fair time is ``sum_p g / sum_p s``. With equal speeds these are the largest and the mean rank load.

    Parameters
    ----------
    loads : ``[..., P]``
    rank_speed : ``[P]``; all 1 unless given

    Returns
    -------
    both ``[...]``
    """
    array = np.asarray(loads, dtype=np.float64)
    if rank_speed is None:
        return np.asarray(array.max(axis=-1)), np.asarray(array.mean(axis=-1))
    speed = np.asarray(rank_speed, dtype=np.float64)
    return np.asarray((array / speed).max(axis=-1)), np.asarray(array.sum(axis=-1) / speed.sum())


def imbalance(loads: npt.ArrayLike, rank_speed: npt.ArrayLike | None = None) -> FloatArray:
    """``max / mean`` over the last axis (ranks, or replicas); 1.0 where there is no load.

    Parameters
    ----------
    loads : ``[..., P]``
    rank_speed : ``[P]``, speeds of ranks where they differ; see `longest_and_fair`

    Returns
    -------
    ``[...]``, at least 1
    """
    largest, mean = longest_and_fair(loads, rank_speed)
    ratio = np.divide(largest, mean, out=np.ones_like(largest), where=mean > 0)
    return np.asarray(
        np.maximum(ratio, 1.0)
    )  # the mean of equal loads may round to a little more than they are


def scaled(counts: npt.ArrayLike) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Loads brought near 1 by a power of two for each layer, which is exact at any magnitude.

    Loads that have decayed to 1e-320 have few digits left, and lose them when an expert's are split.

    Parameters
    ----------
    counts : ``[..., L, E]``

    Returns
    -------
    loads ``[..., L, E]``, their largest in a layer from 0.5 to 1, and exponents ``[..., L]``: the loads are
    ``counts / 2 ** exponents``
    """
    loads = np.asarray(counts, dtype=np.float64)
    exponents = np.frexp(loads.max(axis=-1))[1].astype(np.int64)
    half = -exponents // 2  # twice, since 2^1074 alone is infinite
    loads = np.ldexp(np.ldexp(loads, half[..., None]), (-exponents - half)[..., None])
    return loads, exponents


def expert_loads(counts: npt.ArrayLike, placement: Placement) -> FloatArray:
    """Load of every slot ``[..., L, R]`` under an even split: the expert level of the measures.

    It depends on the replica counts alone, not on the packing.
    """
    loads = np.asarray(counts, dtype=np.float64)
    layers = np.arange(placement.num_layers)[:, None]
    per_replica = loads / placement.logcnt
    return np.asarray(per_replica[..., layers, placement.phy2log])


@dataclass(frozen=True)
class Balance:
    """The aggregates of one table of loads, each under its own name (formulas above).

    Over several windows every (window, layer) counts once; `ratio_of_sums` is taken per window and averaged.
    """

    mean_imbalance: float
    """``mean_l (max_p g / mean_p g)``; 1.0 is perfect"""
    worst_layer: float
    """``max_l (max_p g / mean_p g)``; over windows, the mean of each window's worst layer"""
    mean_of_ratios: float
    """balancedness as SGLang prints it: ``mean_l (mean_p g / max_p g)``"""
    ratio_of_sums: float
    """balancedness as vLLM and the ADRS benchmark print it: ``sum_l mean_p g / sum_l max_p g``"""

    def as_dict(self) -> dict[str, float]:
        """The numbers by name, for JSON."""
        return {name: float(getattr(self, name)) for name in self.__dataclass_fields__}


def balance(
    loads: npt.ArrayLike, exponents: npt.ArrayLike = 0, rank_speed: npt.ArrayLike | None = None
) -> Balance:
    """All aggregates of rank loads (or slot loads) ``[L, P]`` or ``[T, L, P]``.

    Parameters
    ----------
    exponents : ``[L]`` or ``[T, L]`` as `scaled` returns them, where loads have been scaled; what sums over layers
        counts each at its own scale
    rank_speed : ``[P]``, speeds of ranks where they differ; times then take the place of loads
    """
    array: npt.NDArray[Any] = np.asarray(loads, dtype=np.float64)
    if array.ndim not in (2, 3):
        raise ArgumentError(f"loads must be [layers, ranks] or [windows, layers, ranks], got {array.shape}")
    ratio = imbalance(array, rank_speed)
    longest, fair = longest_and_fair(array, rank_speed)
    powers = np.broadcast_to(np.asarray(exponents, dtype=np.int64), ratio.shape)
    weight = np.ldexp(1.0, powers - powers.max(axis=-1, keepdims=True))
    mean_sum = (fair * weight).sum(axis=-1)
    max_sum = (longest * weight).sum(axis=-1)
    sums = np.divide(mean_sum, max_sum, out=np.ones_like(max_sum), where=max_sum > 0)
    return Balance(
        mean_imbalance=float(ratio.mean()),
        worst_layer=float(ratio.max(axis=-1).mean()),
        mean_of_ratios=float((1.0 / ratio).mean()),
        ratio_of_sums=float(np.mean(sums)),
    )
