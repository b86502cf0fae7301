"""What a `LiveBalancer` is doing, and when it does what."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ..errors import ArgumentError
from ..placement import IntArray

LONGEST = 1 << 62
"""passes; ranks compare their settings as numbers of 64 bits"""


class State(str, Enum):
    """What a `LiveBalancer` does now."""

    RECORDING = "recording"
    REDUCING = "reducing"
    """the window is added up over all ranks, beside serving"""
    PLANNING = "planning"
    MOVING = "moving"
    PAUSED = "paused"
    DEGRADED = "degraded"
    """serving goes on with the maps that are committed; nothing moves until `LiveBalancer.recover`"""


class Answer(int, Enum):
    """What rank 0 tells the others of a plan."""

    LATER = 0
    KEEP = 1
    FAILED = 2
    MOVE = 3


class Recorder(Protocol):
    """Takes the windows of rank 0, as `equipoise.TraceWriter` does."""

    def add(
        self,
        counts: IntArray,
        step: int | None = None,
        steps: int = 1,
        *,
        batches: int | None = None,
        pairs: IntArray | None = None,
    ) -> None:
        """Record a window ``[L, E]``. A runtime that counts batches says how many, and one that counts pairs hands
        them over ``[L, E, E]``; others leave these out.
        """
        ...


@dataclass(frozen=True)
class Pace:
    """When things happen, in forward passes; the same on all ranks.

    Parameters
    ----------
    interval : passes of a window; a plan is asked for at its end
    ask_every : passes that a window has to be added up, and between two questions whether the plan is there
    patience : questions after which a plan is given up
    layers_per_step : layers that move between two passes

    Raises
    ------
    ArgumentError
        if one is not a positive integer
    """

    interval: int = 1000
    ask_every: int = 2
    patience: int = 500
    layers_per_step: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < LONGEST:
                raise ArgumentError(f"{name} must be a positive integer below 2**62, got {value!r}")
