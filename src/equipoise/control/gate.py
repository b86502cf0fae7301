"""The decision whether to move: predicted gain over a horizon against the cost of the moves."""

from __future__ import annotations

from dataclasses import dataclass

MEMORY = 0.5  # what a promise weighs after each further interval; benchmarks/bench_replay.py


@dataclass
class Gate:
    """Takes a proposal only if the gain that it promises, discounted by experience, exceeds its cost.

    A plan looks best on the very loads that it was made from, so its promise is too high. The gate therefore
    learns what part of the promises came true: after every interval both placements, the one in force and the
    proposal, taken or not, are scored on the windows that came. Promises count half as much with each interval
    that passes. Before the first answer a promise is taken at its word.
    """

    _promised: float = 0.0
    _kept: float = 0.0

    @property
    def trust(self) -> float:
        """The part of their promises that earlier proposals kept, between 0 and 1."""
        if self._promised <= 0:
            return 1.0
        return min(1.0, max(0.0, self._kept / self._promised))

    def takes(self, promised_s: float, move_s: float) -> bool:
        """Whether to move, for a promise over the horizon and the time that the moves take, in seconds."""
        return promised_s > 0 and self.trust * promised_s > move_s

    def learn(self, promised_s: float, kept_s: float) -> None:
        """What a proposal promised for an interval and what it would have brought there, in seconds."""
        self._promised = MEMORY * self._promised + max(0.0, promised_s)
        self._kept = MEMORY * self._kept + (kept_s if promised_s > 0 else 0.0)
