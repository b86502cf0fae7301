"""Forked processes that answer one question after the other, and end when whoever asks is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from time import monotonic
from types import TracebackType
from typing import Any

from ..errors import EquipoiseError

Answerer = Callable[..., Any]
"""Takes a question's parts and answers it"""


class Failure(str):
    """What an answerer raised, in one line."""


class Workers:
    """Processes by name. They share nothing but what was there before the fork, and print nothing.

    Parameters
    ----------
    makers : for each name what makes its answerer, in the process itself

    Raises
    ------
    EquipoiseError
        on systems without fork, or where no process can be started
    """

    def __init__(self, makers: dict[int, Callable[[], Answerer]]) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise EquipoiseError("the live demo forks its ranks, which this system does not do: use Linux")
        context = multiprocessing.get_context("fork")
        pairs = {name: context.Pipe() for name in makers}
        self._pipes = {name: ours for name, (ours, _) in pairs.items()}
        self._processes: dict[int, Any] = {}
        try:
            for name, make in makers.items():
                # A worker that kept the ends of others would keep them from noticing that the asker is gone.
                mine = pairs[name][1]
                foreign = [end for pair in pairs.values() for end in pair if end is not mine]
                process = context.Process(target=_work, args=(make, mine, foreign), daemon=True)
                process.start()
                self._processes[name] = process
        except OSError as error:
            self.__exit__(None, None, None)
            raise EquipoiseError(f"processes cannot be started: {error.strerror or error}") from None
        for _, theirs in pairs.values():
            theirs.close()

    @property
    def process_ids(self) -> dict[int, int | None]:
        """By name."""
        return {name: process.pid for name, process in self._processes.items()}

    def ask(self, questions: dict[int, tuple[Any, ...]], *, limit_s: float, after_s: float) -> dict[int, Any]:
        """What workers answer. Those that die, or are silent for too long, are ended and missing from it.

        Parameters
        ----------
        questions : by name
        limit_s : seconds for all
        after_s : seconds for the others once one has failed or died
        """
        waiting = {}
        for name, question in questions.items():
            if _sent(self._pipes[name], question):
                waiting[self._pipes[name]] = name
            else:
                self._end(name)
        answers: dict[int, Any] = {}
        until = monotonic() + limit_s
        while waiting and (left := until - monotonic()) > 0:
            for pipe in wait(list(waiting), left):
                assert isinstance(pipe, Connection)
                name = waiting.pop(pipe)
                answer = _received(pipe)
                if answer is None:
                    self._end(name)
                else:
                    answers[name] = answer
                if answer is None or isinstance(answer, Failure):
                    until = min(until, monotonic() + after_s)
        for name in waiting.values():
            self._end(name)
        return answers

    def _end(self, name: int) -> None:
        self._processes[name].kill()
        self._processes[name].join()
        self._pipes[name].close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()


def _sent(pipe: Connection, question: tuple[Any, ...]) -> bool:
    try:
        pipe.send(question)
    except OSError:
        return False
    return True


def _received(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _work(make: Callable[[], Answerer], pipe: Connection, foreign: list[Connection]) -> None:
    """The life of a worker. Ctrl-C is for the one who asks; what libraries print would spoil its view."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever asks may clean up first, a worker has nothing to
    for end in foreign:
        end.close()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    try:
        answer: Answerer | Failure = make()
    except BaseException:
        answer = _failure()
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send(answer if isinstance(answer, Failure) else answer(*question))
        except OSError:
            break
        except BaseException:
            pipe.send(_failure())
    os._exit(0)  # destructors of groups would wait for ranks that are gone


def _failure() -> Failure:
    return Failure(traceback.format_exc(limit=0).strip().splitlines()[-1])
