"""Who watches a runtime: the recorder of its windows and the counters for Prometheus."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..control.metrics import Metrics
from ..placement import IntArray
from .pace import Recorder, State

_log = logging.getLogger("equipoise")


class Witness:
    """Tells recorder and metrics, where there are any. One that raises is told nothing more, and balancing goes on.

    Only Ctrl-C comes through: it is for the process, whoever happens to run.

    Parameters
    ----------
    recorder, metrics : see `equipoise.runtime.LiveBalancer`
    """

    def __init__(self, recorder: Recorder | None, metrics: Metrics | None) -> None:
        self._recorder, self._metrics = recorder, metrics

    def record(self, window: IntArray, steps: int, **more: Any) -> None:
        """Hand over a window ``[L, E]`` of so many forward passes, to read: the plan is made from it, too.

        ``more``: what else is counted, see `Recorder`.
        """
        shown = window.view()
        shown.flags.writeable = False
        try:
            if self._recorder is not None:
                self._recorder.add(shown, steps=steps, **more)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            _log.warning("equipoise records no further windows: %s", _said(error))
            self._recorder = None

    def count(self, what: Callable[[Metrics], None]) -> None:
        """Let ``what`` tell the metrics something."""
        try:
            if self._metrics is not None:
                what(self._metrics)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            _log.warning("equipoise counts nothing further: %s", _said(error))
            self._metrics = None

    def entered(self, state: State, lost: int) -> None:
        """Tell the metrics what a runtime does now, and how many experts no rank holds."""
        shown = "degraded" if state is State.DEGRADED else "balancing"
        self.count(lambda metrics: metrics.enter(shown))
        self.count(lambda metrics: metrics.lost(lost))


def _said(error: BaseException) -> str:
    """An error in one line, also where it cannot say itself what it is."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
