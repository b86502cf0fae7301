"""The decision whether to move: predicted gain over a horizon against the cost of the moves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from ..errors import ArgumentError

MEMORY = 0.5  # what a promise weighs after each further interval; benchmarks/bench_replay.py


def splitting_pays(even_s: float, swept_s: float, split_s: float) -> bool:
    """Whether a dispatcher should split every batch by its load.

    Parameters
    ----------
    even_s, swept_s : seconds of a layer in one step (`CostModel.step_times`), batches split evenly and by their load
    split_s : seconds that splitting takes there: the exchange of counts between ranks and the split itself
    """
    return swept_s + split_s < even_s


def check_split_s(split_s: float | None) -> None:
    """Raise `ArgumentError` unless what splitting takes is a number of seconds, or not known."""
    if split_s is None:
        return
    if isinstance(split_s, bool) or not isinstance(split_s, Real) or not 0 <= float(split_s) < math.inf:
        raise ArgumentError(f"split_s must be a number of seconds that is not negative, got {split_s!r}")


@dataclass
class Gate:
    """Takes a proposal only if the gain that it promises, discounted by experience, exceeds its cost.

    A plan looks best on the very loads that it was made from, so its promise is too high. The gate therefore
    learns what part of the promises came true: after every interval both placements, the one in force and the
    proposal, taken or not, are scored on the windows that came. Promises count half as much with each interval
    that passes. Before the first answer a promise is taken at its word.
    """

    promised_s: float = 0.0
    """what was promised, in seconds, the older the less it weighs"""
    kept_s: float = 0.0
    """what came of it"""

    @property
    def trust(self) -> float:
        """The part of their promises that earlier proposals kept, between 0 and 1."""
        if self.promised_s <= 0:
            return 1.0
        return min(1.0, max(0.0, self.kept_s / self.promised_s))

    def takes(self, gain_s: float, move_s: float) -> bool:
        """Whether to move, for a promise over the horizon and the time that the moves take, in seconds."""
        return gain_s > 0 and self.trust * gain_s > move_s

    def learn(self, promised_s: float, kept_s: float) -> None:
        """What a proposal promised for an interval and what it would have brought there, in seconds."""
        self.promised_s = MEMORY * self.promised_s + max(0.0, promised_s)
        self.kept_s = MEMORY * self.kept_s + (kept_s if promised_s > 0 else 0.0)
