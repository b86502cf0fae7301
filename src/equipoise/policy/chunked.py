"""``chunked``: Chunked Sorted Greedy with perturbed candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..planning.orders import LPT, NOISY
from ..planning.pipeline import Recipe, pack_layers
from ..planning.scale import sum_windows
from ..problem import Problem
from .protocol import Ability


@dataclass(frozen=True)
class Chunked:
    """Chunked Sorted Greedy: sorted items in chunks of ``P``, each chunk to the ranks from lightest to heaviest.

    The first candidate is sorted by weight, the others by weight times noise; the one with the smallest largest
    rank load is kept. Avoidable twins are parted. Windows are summed; what ranks hold is not looked at.

    Parameters
    ----------
    candidates : orders tried for each layer
    noise : weights are multiplied by a number uniform in [1 - noise, 1 + noise) before sorting
    """

    candidates: int = 8
    noise: float = 0.2
    name: ClassVar[str] = "chunked"
    abilities: ClassVar[frozenset[Ability]] = frozenset({Ability.GROUPS})

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ArgumentError(f"candidates must be at least 1, got {self.candidates}")
        if not 0 <= self.noise < 1:
            raise ArgumentError(f"noise must be in [0, 1), got {self.noise}")

    def place(self, problem: Problem) -> npt.NDArray[np.int64]:
        """See `equipoise.Policy`."""
        kinds = np.repeat([LPT, NOISY], [1, self.candidates - 1])
        recipe = Recipe(kinds, float(self.noise), chunked=True, max_swaps=0)
        loads = sum_windows(problem.loads)
        return pack_layers(loads, problem.topology, recipe, problem.seed, exact_groups=True)
