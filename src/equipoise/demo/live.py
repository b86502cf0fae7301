"""The live demo: ranks serve pass after pass in step, and every output is compared with that of one rank."""

from __future__ import annotations

import contextlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dispatch.split import split_batch
from ..errors import EquipoiseError
from ..metrics import imbalance, rank_loads
from ..placement import IntArray, Placement
from ..plans.warmup import PlanKind, TransferKind
from ..topology import Topology
from .model import Shape
from .serving import Answer, LiveRank, OneRank, Setup
from .texts import Stream
from .workers import Failure, Workers

PASSES, PHASES = 24, 5
"""passes of one kind of text, and how many kinds come one after the other"""
SEQUENCES = 8
"""of a batch of one rank"""
SECONDS = 60.0
"""after which no further pass begins, on machines that are slow or busy"""
SHOWN = 4
"""passes that the rank loads shown are of: those of one pass are noisy"""
ANSWER_S, AFTER_S = 60.0, 15.0
"""seconds for an answer; and once a rank has failed, for those of the others"""
ONE = -1
"""name of the process that serves the whole model alone"""


@dataclass(frozen=True, eq=False)
class Moment:
    """How things stand after a pass."""

    number: int
    passes: int
    kind: str
    """of the text"""
    members: tuple[int, ...]
    """ranks that serve"""
    loads: npt.NDArray[np.float64]
    """``[L, P]``, rank loads over the last passes of this kind, an even split among replicas"""
    imbalance: float
    """of these, mean over layers"""
    unmoved: float
    """the same had nothing ever moved"""
    even: float
    """of this pass alone, tokens split evenly among replicas"""
    batch: float
    """of this pass alone, split by its load; passes are served by the one and the other in turn"""
    state: str
    """of the runtime"""
    moves: int = 0
    """slots fetched so far"""
    commits: int = 0
    """of layers so far"""
    compared: int = 0
    """outputs, bit by bit"""
    differing: int = 0
    """those that were not those of one rank"""
    news: str = ""
    """what happened in this pass, if anything"""


@dataclass
class Tally:
    """Adds up what ranks tell."""

    setup: Setup
    passes: int
    recent: deque[IntArray] = field(default_factory=lambda: deque(maxlen=SHOWN))
    kind: str = ""
    held: Placement | None = None
    moves: int = 0
    commits: int = 0
    compared: int = 0
    differing: int = 0

    def take(self, number: int, answers: dict[int, Answer], alone: dict[int, str]) -> Moment:
        """How things stand, from the answers of all ranks to a pass and from what one rank gives for each."""
        first, kind = answers[min(answers)], self.setup.stream.kind(number)
        if kind != self.kind:
            self.recent.clear()
        batch = np.sum([answer.counts for answer in answers.values()], axis=0)
        self.recent.append(batch)
        placement = Placement(first.phy2log, len(answers), first.counts.shape[1])
        if self.held is not None and self.held.num_ranks == placement.num_ranks:
            self.moves += int(np.sum(placement.moves_from(self.held)))
        self.compared += len(answers)
        self.differing += sum(answer.digest != alone[rank] for rank, answer in answers.items())
        self.held, self.kind, self.commits = placement, kind, first.commits
        counts = np.sum(self.recent, axis=0)
        loads = rank_loads(counts, placement)
        return Moment(
            number,
            self.passes,
            kind,
            tuple(sorted(answers)),
            loads,
            float(imbalance(loads).mean()),
            float(imbalance(rank_loads(counts, self.setup.start(len(answers)))).mean()),
            float(imbalance(rank_loads(batch, placement)).mean()),
            float(imbalance(rank_loads(batch, placement, split_batch(batch, placement))).mean()),
            first.state,
            self.moves,
            self.commits,
            self.compared,
            self.differing,
        )


class LiveDemo:
    """Four ranks that serve the model of the package, and the process that serves it alone.

    Use it as a context: no process outlives that. Iterating serves passes.

    Parameters
    ----------
    policy, seed : of the balancer

    Raises
    ------
    EquipoiseError
        if there is no text or no fork; while iterating, if so many ranks are lost that the others cannot hold all
        experts
    """

    def __init__(self, policy: str, seed: int) -> None:
        stream = Stream(passes=PASSES, sequences=SEQUENCES, seed=seed)
        self.setup = Setup(stream, policy=policy, seed=seed)
        self.passes, self._epoch = PHASES * PASSES, 0
        self._members = list(range(self.setup.num_ranks))
        self._open = contextlib.ExitStack()

    def warm(self) -> None:
        """Compile what plans need, here and once, where it can be said; rank 0 would in the middle of serving."""
        topology = Topology(self.setup.num_ranks, self.setup.slots_per_rank)
        experts = Shape().experts
        for windows in range(1, self.setup.history + 1):
            PlanKind(topology, experts, windows, self.setup.policy, current=True).warm()
        TransferKind().warm()

    def __enter__(self) -> LiveDemo:
        folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="equipoise-demo-"))
        makers: dict[int, Callable[[], Any]] = {
            rank: partial(LiveRank, self.setup, rank, Path(folder) / "meeting") for rank in self._members
        }
        self._workers = self._open.enter_context(Workers(makers | {ONE: partial(OneRank, self.setup)}))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __iter__(self) -> Iterator[Moment]:
        until = monotonic() + SECONDS
        tally = Tally(self.setup, self.passes)
        for number in range(self.passes):
            if monotonic() > until:
                return
            before = list(self._members)
            answers, alone = self._pass(number)
            moment = tally.take(number, answers, alone)
            gone = sorted(set(before) - set(self._members))
            yield replace(moment, news=_lost(gone, len(self._members)) if gone else "")

    @property
    def shape(self) -> Shape:
        """Sizes of the model."""
        return Shape()

    @property
    def process_ids(self) -> dict[int, int | None]:
        """Of the ranks, and of the process that serves alone (`ONE`)."""
        return self._workers.process_ids

    def _pass(self, number: int) -> tuple[dict[int, Answer], dict[int, str]]:
        """What all ranks answer, and what one rank gives for each; again with those left where some are lost."""
        alone: tuple[Any, ...] = (number, list(self._members))
        answers = self._ask(dict.fromkeys(self._members, ("serve", number)) | {ONE: alone})
        digests = answers.pop(ONE, None)
        if digests is None or isinstance(digests, Failure):
            raise EquipoiseError(
                f"the process that serves the model alone is gone: {digests or 'it was ended'}"
            )
        while trouble := self._trouble(answers):
            self._meet_again(sorted(answers), trouble)
            answers = self._ask(dict.fromkeys(self._members, ("serve", number)))
        return answers, digests

    def _trouble(self, answers: dict[int, Any]) -> str:
        """What went wrong, if anything did: ranks that say so, or are missing."""
        said = [f"rank {rank}: {found}" for rank, found in answers.items() if isinstance(found, Failure)]
        return "; ".join(said[:1] or ["a rank is gone"] * (len(answers) < len(self._members)))

    def _meet_again(self, left: list[int], trouble: str) -> None:
        """Bring the ranks that are left together, once more where another is lost meanwhile."""
        while left != self._members:
            self._members = left
            slots, experts = len(left) * self.setup.slots_per_rank, Shape().experts
            if slots < experts:
                raise EquipoiseError(
                    f"{len(left)} of {self.setup.num_ranks} ranks are left, with {slots} slots for {experts} "
                    "experts: the demo ends here"
                )
            self._epoch += 1
            met = self._ask(dict.fromkeys(left, ("meet", left, self._epoch)))
            left = sorted(met)
            if left == self._members and all(found is True for found in met.values()):
                return
        raise EquipoiseError(f"ranks could not go on: {trouble}")

    def _ask(self, questions: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        return self._workers.ask(questions, limit_s=ANSWER_S, after_s=AFTER_S)


def _lost(gone: list[int], left: int) -> str:
    names = ", ".join(map(str, gone))
    return f"rank{'s' * (len(gone) > 1)} {names} gone: {left} ranks serve on, with lost experts loaded from the file"
