"""Processes that points run in: on this machine, each with its loads, each lost alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple, Protocol

from ..trace import LoadTrace
from .point import Outcome, Task, keep_to_one_thread, run_point


class Answer(NamedTuple):
    """What came of the task of a lane: its outcome, or why the worker was lost."""

    lane: int
    outcome: Outcome | None
    lost: str = ""


class Workers(Protocol):
    """Lanes that take a task at a time. A lane outlives its worker: the next task gets a new one."""

    lanes: int

    def give(self, lane: int, task: Task) -> None:
        """Start a task in a lane that has none."""
        ...

    def answers(self, timeout_s: float) -> list[Answer]:
        """What has come of tasks; waits for the first as long as this."""
        ...

    def drop(self, lane: int) -> None:
        """End a lane's worker, whatever it does; there is no answer."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    loads: set[str] = field(default_factory=set)
    """names of the loads that it has"""


class LocalWorkers:
    """A process for each lane, started when it gets its first task.

    A load is sent to a worker with the first task that needs it and stays there. Workers ignore Ctrl-C, which is
    the driver's to hear, and end with the driver, however that ends.
    """

    def __init__(self, lanes: int, traces: Mapping[str, LoadTrace]) -> None:
        self.lanes = lanes
        self._traces = traces
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[int, _Worker] = {}
        self._silent: list[Answer] = []

    def give(self, lane: int, task: Task) -> None:
        """Start a task in a lane that has none."""
        worker = self._workers.get(lane) or self._start(lane)
        name = task.point.load
        try:
            if name not in worker.loads:
                worker.pipe.send((name, self._traces[name]))
                worker.loads.add(name)
            worker.pipe.send(task)
        except OSError:  # it died while it had nothing to do
            self._silent.append(self._lost(lane))

    def answers(self, timeout_s: float) -> list[Answer]:
        """What has come of tasks; waits for the first as long as this."""
        found, self._silent = self._silent, []
        lane_of = {worker.pipe: lane for lane, worker in self._workers.items()}
        for pipe in wait(list(lane_of), 0.0 if found else timeout_s):
            assert isinstance(pipe, Connection)
            lane = lane_of[pipe]
            try:
                found.append(Answer(lane, pipe.recv()))
            except (EOFError, OSError):
                found.append(self._lost(lane))
        return found

    def drop(self, lane: int) -> None:
        """End a lane's worker, whatever it does; there is no answer."""
        worker = self._workers.pop(lane, None)
        if worker is not None:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()

    def close(self) -> None:
        """End all workers."""
        for lane in list(self._workers):
            self.drop(lane)

    def _start(self, lane: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(theirs,), daemon=True, name=f"sweep-{lane}")
        process.start()
        theirs.close()  # or the end of the worker would not be heard
        self._workers[lane] = _Worker(process, ours)
        return self._workers[lane]

    def _lost(self, lane: int) -> Answer:
        process = self._workers[lane].process
        process.join(1.0)
        code = process.exitcode
        self.drop(lane)
        how = f"ended with status {code}" if code is None or code >= 0 else f"was ended by signal {-code}"
        return Answer(lane, None, f"its worker {how}")


def serve(pipe: Connection) -> None:
    """What a worker does: keep the loads and run the tasks that come, until nobody is there to answer to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # what policies print is no output of the sweep's
    keep_to_one_thread()
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    traces: dict[str, LoadTrace] = {}
    with contextlib.suppress(EOFError, OSError):
        while True:
            message = pipe.recv()
            if isinstance(message, Task):
                pipe.send(run_point(message, traces[message.point.load]))
            else:
                traces.update([message])


def _end_with_the_driver() -> None:
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)
