"""Rank loads as they are served: by the split that a placement was made for, or by all of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dispatch.split import SWEEPS as SWEEPS
from ..metrics import imbalance, rank_loads
from ..placement import Placement
from ..planning.sweeps import sweep_batch

FloatArray = npt.NDArray[np.float64]
TO_THE_END = 20_000  # sweeps: until the optimum is proved


@dataclass(frozen=True)
class Splits:
    """Mean imbalance over windows and layers of one placement, by how every window's tokens are split."""

    even: float
    """evenly among an expert's replicas, as engines do"""
    swept: float
    """by the window's own load, in as many sweeps as `equipoise.split_batch` makes"""
    optimum: float
    """by the window's own load, as well as can be"""
    sweeps: int = SWEEPS

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name, for JSON."""
        return asdict(self)


def served_loads(counts: npt.ArrayLike, placement: Placement, sweeps: int | None = None) -> FloatArray:
    """Load of every rank where a placement is served with the split that it was made for.

    Parameters
    ----------
    counts : ``[T, L, E]``, tokens per logical expert; each window counts as one batch
    sweeps : split every window in so many sweeps, whatever the placement was made for

    Returns
    -------
    ``[T, L, P]``
    """
    if sweeps is None and placement.split == "even":
        return rank_loads(counts, placement)
    many = SWEEPS if sweeps is None else sweeps
    windows = np.asarray(counts, dtype=np.float64)
    return np.stack([_swept(window, placement, many) for window in windows])


def _swept(window: FloatArray, placement: Placement, sweeps: int) -> FloatArray:
    shares = sweep_batch(window, placement.phy2log, placement.num_ranks, sweeps)
    return rank_loads(window, placement, shares)


def mean_of(splits: Sequence[Splits]) -> Splits:
    """The mean of several, each over as many windows and layers."""
    even, swept, optimum = np.mean([(one.even, one.swept, one.optimum) for one in splits], axis=0).tolist()
    return Splits(even, swept, optimum)


def side_by_side(counts: npt.ArrayLike, placement: Placement) -> Splits:
    """The three splits of windows ``[T, L, E]`` under one placement."""
    even, swept, optimum = (
        float(imbalance(served_loads(counts, placement, sweeps)).mean()) for sweeps in (0, SWEEPS, TO_THE_END)
    )
    return Splits(even, swept, optimum)
