"""The driver of a sweep: hands out points, keeps what comes back, and goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..control.cost import CostModel, cost_for
from ..errors import EquipoiseError
from ..trace import LoadTrace
from .journal import Journal
from .point import DONE, FAILED, REFUSED, Outcome, Task
from .spec import Spec

if TYPE_CHECKING:
    from .workers import Answer, Workers

Progress = Callable[[int, int], None]
"""called with points finished and points in all"""

ATTEMPTS = 3
"""Workers that a point may cost before it is given up: one may be lost by chance, three are lost by the point."""
HOPELESS = 10
"""Workers lost, and attempts that ran out of time, before the first point is finished after which nothing will be."""
TICK_S = 0.5


@dataclass
class _Running:
    task: Task
    until: float


class Sweep:
    """A sweep in a folder; a second one there goes on with what the first has not finished.

    A point is known by its settings, the content of its loads, its cost model and the version of Equipoise: where any
    of these has changed it runs again, and a grid that has grown runs what is new. Points that failed run again, too.

    Parameters
    ----------
    spec : what is swept
    folder : where results go; made if it is not there

    Raises
    ------
    EquipoiseError
        if a load cannot be read, or the folder not written
    """

    def __init__(self, spec: Spec, folder: Path) -> None:
        self.spec = spec
        self.folder = folder
        used = {point.load for point in spec.points}
        self.traces = {name: file.load() for name, file in spec.loads.items() if name in used}
        self.tasks = tuple(_tasks(spec, self.traces))
        self.journal = Journal(folder)

    @property
    def outcomes(self) -> list[Outcome | None]:
        """What became of each of `tasks`; None for one that has not run."""
        return [self.journal.outcomes.get(task.key) for task in self.tasks]

    @property
    def waiting(self) -> list[Task]:
        """The tasks that are still to run."""
        finished = (DONE, REFUSED)
        pairs = zip(self.tasks, self.outcomes, strict=True)
        return [task for task, found in pairs if found is None or found.status not in finished]

    def run(self, workers: Workers, progress: Progress | None = None) -> None:
        """Run what is still to run. After a KeyboardInterrupt what was finished is kept, as after anything else."""
        waiting = self.waiting
        _Round(self, workers, deque(waiting), len(self.tasks) - len(waiting), progress).run()

    def close(self) -> None:
        """Let other processes sweep into the folder."""
        self.journal.close()


class _Round:
    """One run of a sweep: who works on what, and until when."""

    def __init__(
        self, sweep: Sweep, workers: Workers, waiting: deque[Task], finished: int, progress: Progress | None
    ) -> None:
        self._sweep, self._workers, self._waiting = sweep, workers, waiting
        self._progress = progress or (lambda done, total: None)
        self._finished, self._before = finished, finished
        self._idle = list(range(workers.lanes))
        self._running: dict[int, _Running] = {}
        self._attempts: Counter[str] = Counter()

    def run(self) -> None:
        self._progress(self._finished, len(self._sweep.tasks))
        while self._waiting or self._running:
            while self._idle and self._waiting:
                self._give(self._idle.pop(), self._waiting.popleft())
            for answer in self._workers.answers(TICK_S):
                self._take(answer)
            self._give_up_late_ones()

    def _give(self, lane: int, task: Task) -> None:
        self._attempts[task.key] += 1
        self._running[lane] = _Running(task, time.monotonic() + self._sweep.spec.deadline_s)
        self._workers.give(lane, task)

    def _take(self, answer: Answer) -> None:
        running = self._running.pop(answer.lane, None)
        self._idle.append(answer.lane)
        assert running is not None
        if answer.outcome is None:
            self._lost(running.task, answer.lost)
        else:
            self._keep(answer.outcome)

    def _give_up_late_ones(self) -> None:
        now = time.monotonic()
        for lane in [lane for lane, running in self._running.items() if running.until < now]:
            task = self._running.pop(lane).task
            self._workers.drop(lane)
            self._idle.append(lane)
            self._lost(task, f"it took longer than deadline_s = {self._sweep.spec.deadline_s:g}")

    def _lost(self, task: Task, why: str) -> None:
        if self._finished == self._before and self._attempts.total() >= HOPELESS:
            raise EquipoiseError(
                f"{self._attempts.total()} attempts were lost before a point was finished, the last one because "
                f"{why}: see to that first; the same command goes on"
            )
        if self._attempts[task.key] < ATTEMPTS:
            self._waiting.append(task)
        else:
            self._keep(Outcome(task.key, FAILED, f"given up after {ATTEMPTS} attempts: {why}", {}, {}))

    def _keep(self, outcome: Outcome) -> None:
        clocks = outcome.clocks | {"attempts": self._attempts[outcome.key]}
        self._sweep.journal.add(replace(outcome, clocks=clocks))
        self._finished += 1
        self._progress(self._finished, len(self._sweep.tasks))


def _tasks(spec: Spec, traces: Mapping[str, LoadTrace]) -> list[Task]:
    costs = {name: cost_for(trace, **spec.cost) for name, trace in traces.items()}
    prints = {name: _fingerprint(trace, costs[name]) for name, trace in traces.items()}
    return [
        Task(_digest(prints[point.load], point.as_dict()), point, costs[point.load]) for point in spec.points
    ]


def _fingerprint(trace: LoadTrace, cost: CostModel | None) -> str:
    """What a replay of these loads depends on beside its settings."""
    digest = hashlib.sha256(trace.counts.tobytes())
    digest.update(b"" if trace.steps is None else trace.steps.tobytes())
    about = [trace.counts.shape, trace.counts.dtype.str, trace.phases, trace.top_k]
    about += [trace.unit] if trace.unit != "tokens" else []  # journals of tokens stay what they were
    return _digest(digest.hexdigest(), about, None if cost is None else cost.as_dict(), __version__)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
