"""What an engine asks its planner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from ..placement import IntArray
from ..problem import Held
from ..topology import Topology


@dataclass(frozen=True, eq=False)
class Hits:
    """In how many batches of a window experts were hit."""

    counts: IntArray
    """``[L, E]``"""
    batches: int
    """that there were"""


@dataclass(frozen=True, eq=False)
class Question:
    """These are the loads, this is held; what shall be served?"""

    counts: npt.NDArray[Any]
    """``[L, E]``, tokens of each logical expert in the window, added up over all ranks"""
    topology: Topology
    held: Held | None
    """what ranks hold, where the engine says"""
    legal: bool
    """whether all ranks could go on with what they hold"""
    model: str = ""
    """which of several models of this engine; each has a history of its own"""
    fresh: bool = True
    """whether the window is a whole one that has not been asked about before"""
    early: bool = False
    """whether this is asked only for the sake of what was planned ahead"""
    steps: int = 1
    """forward passes in the window"""
    parts: tuple[tuple[npt.NDArray[Any], int], ...] = ()
    """the window cut into shorter ones, with their passes, oldest first: for the first plan, which has no history"""
    expert_bytes: int = 0
    """weights of one expert of one layer, where known"""
    hits: Hits | None = None
    """of the same window, where they are to be recorded"""
