"""Waiting for a job no longer than agreed: serving must not hang because planning does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import EquipoiseError

Result = TypeVar("Result")


class Overdue(EquipoiseError):
    """A job is not done in time. It goes on in its thread, and until it ends no other one is begun."""


class Deadline:
    """Runs jobs one at a time in a thread beside the caller, who waits ``seconds`` for each and no longer.

    Examples
    --------
    >>> Deadline(5.0).run(lambda: 6 * 7)
    42
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a job that was given up is still running."""
        return self._thread is not None and self._thread.is_alive()

    def run(self, job: Callable[[], Result]) -> Result:
        """What the job returns or raises; `Overdue` if that takes too long, or an earlier one is still running."""
        if self.busy:
            raise Overdue(f"an earlier plan has not come to its end within {self.seconds:g} s")
        outcome: dict[str, Any] = {}
        self._thread = threading.Thread(target=_work, args=(job, outcome), name="equipoise-plan", daemon=True)
        self._thread.start()
        self._thread.join(self.seconds)
        if self.busy:
            raise Overdue(f"no plan within {self.seconds:g} s")
        self._thread = None
        if "error" in outcome:
            raise outcome["error"]
        result: Result = outcome["result"]
        return result


def _work(job: Callable[[], Any], outcome: dict[str, Any]) -> None:
    try:
        outcome["result"] = job()
    except Exception as error:  # raised again where the job was asked for
        outcome["error"] = error
    except BaseException as error:  # there it would end the server
        outcome["error"] = EquipoiseError(f"{type(error).__name__} in a plan: {error}")
