"""``greedy``: the algorithm of DeepSeek EPLB (https://github.com/deepseek-ai/EPLB)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..planning.pipeline import pack_layers
from ..planning.scale import sum_windows
from ..problem import Problem
from .protocol import Ability


@dataclass(frozen=True)
class Greedy:
    """DeepSeek EPLB: replicas by the Adams divisor method, heaviest first to the least loaded rank with room.

    With several nodes that divide the groups, groups go to nodes first, greedily too. Windows are summed; what
    ranks hold is not looked at. Replicas of one expert may come to share a rank, as in the original.
    """

    name: ClassVar[str] = "greedy"
    abilities: ClassVar[frozenset[Ability]] = frozenset({Ability.GROUPS})

    def place(self, problem: Problem) -> npt.NDArray[np.int64]:
        """See `equipoise.Policy`."""
        loads = sum_windows(problem.loads)
        return pack_layers(loads, problem.topology, None, problem.seed, exact_groups=False)
