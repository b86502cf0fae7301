"""A Balancer beside serving: it plans in a thread, one plan at a time, and whatever it raises is an answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from ..control.balancer import Balancer, Proposal
from ..errors import EquipoiseError
from ..placement import IntArray, Placement
from ..problem import Held
from ..topology import Topology
from .pace import Answer

MOST_WAITING = 64
"""windows, so that a plan that does not end costs no memory without end"""


@dataclass
class _Job:
    """A plan in the making."""

    done: threading.Event = field(default_factory=threading.Event)
    answer: Proposal | BaseException | None = None
    seconds: float = 0.0
    given_up: bool = False


class Planner:
    """Hands a balancer what happens and asks it for plans. While a plan is made, the rest waits; no call does.

    Parameters
    ----------
    balancer : used by nothing else from now on
    """

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer
        self._waiting: list[Callable[[], None]] = []
        self._job: _Job | None = None

    @property
    def busy(self) -> bool:
        """Whether a plan is being made, also one that nobody waits for any more."""
        return self._job is not None and not self._job.done.is_set()

    @property
    def seconds(self) -> float:
        """How long the last plan took."""
        return 0.0 if self._job is None else self._job.seconds

    def observe(self, counts: IntArray, steps: int) -> None:
        """Take in a window ``[L, E]`` of so many forward passes; none while `MOST_WAITING` wait for a plan."""
        if not self.busy or len(self._waiting) < MOST_WAITING:
            self._do(lambda: self.balancer.observe(counts, steps=steps))

    def commit(self, placement: Placement) -> None:
        """Tell what is served now."""
        self._do(lambda: self.balancer.commit(placement))

    def change_topology(self, topology: Topology) -> None:
        """Tell which ranks there are now."""
        self._do(lambda: self.balancer.change_topology(topology))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the balancer."""
        self._do(lambda: self.balancer.save(path))

    def start(self, held: Held, *, blind: bool = False) -> bool:
        """Begin a plan from what ranks hold; false where one is being made still.

        A ``blind`` plan is made also where no load was seen yet, as if all experts were alike.
        """
        if self.busy:
            return False
        job = self._job = _Job()
        threading.Thread(
            target=self._plan, args=(job, held, blind), name="equipoise-plan", daemon=True
        ).start()
        return True

    def answer(self, wait_s: float = 0.0) -> Proposal | BaseException | None:
        """What came of the plan: a proposal, what was raised, or ``None`` while it is being made or given up."""
        if self._job is None or not self._job.done.wait(wait_s) or self._job.given_up:
            return None
        return self._job.answer

    def give_up(self) -> None:
        """Let the plan that is being made come to nothing."""
        if self._job is not None:
            self._job.given_up = True

    def _plan(self, job: _Job, held: Held, blind: bool) -> None:
        start = monotonic()
        try:
            self._catch_up()
            if blind and not self.balancer.windows:
                self.balancer.observe(np.ones((held.num_layers, held.num_experts)))
            job.answer = self.balancer.propose(held)
        except BaseException as error:  # whatever a policy raises must not end serving, nor a wait for it
            job.answer = error
        finally:
            job.seconds = monotonic() - start
            job.done.set()

    def _do(self, what: Callable[[], None]) -> None:
        self._waiting.append(what)
        if not self.busy:
            self._catch_up()

    def _catch_up(self) -> None:
        while self._waiting:
            self._waiting.pop(0)()


def kind(answer: Proposal | BaseException | None) -> Answer:
    """What an answer comes to."""
    if answer is None:
        return Answer.LATER
    if not isinstance(answer, Proposal):
        return Answer.FAILED
    return Answer.KEEP if answer.keep else Answer.MOVE


def legal(answer: Proposal | BaseException | None) -> Placement | None:
    """The placement that an answer asks for, if any."""
    return answer.placement if isinstance(answer, Proposal) else None


def words(answer: Proposal | BaseException | None) -> str:
    """An answer in one line."""
    if isinstance(answer, Proposal):
        return answer.reason
    if answer is None:
        return "the plan took too long"
    text = str(answer) if isinstance(answer, EquipoiseError) else f"{type(answer).__name__}: {answer}"
    return f"no plan: {text}"
