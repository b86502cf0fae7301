"""Who watches a runtime: the recorder of its windows and the counters for Prometheus."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..control.metrics import Metrics
from ..placement import IntArray
from .pace import Recorder

_log = logging.getLogger("equipoise")


class Witness:
    """Tells recorder and metrics, where there are any. One that raises is told nothing more, and balancing goes on.

    Parameters
    ----------
    recorder, metrics : see `equipoise.runtime.LiveBalancer`
    """

    def __init__(self, recorder: Recorder | None, metrics: Metrics | None) -> None:
        self._recorder, self._metrics = recorder, metrics

    def record(self, window: IntArray, steps: int, pairs: IntArray | None) -> None:
        """Hand over a window ``[L, E]`` of so many forward passes, and its pairs ``[L, E, E]`` where counted."""
        try:
            if (
                self._recorder is not None and pairs is None
            ):  # a recorder without pairs needs no such argument
                self._recorder.add(window, steps=steps)
            elif self._recorder is not None:
                self._recorder.add(window, steps=steps, pairs=pairs)
        except Exception as error:
            _log.warning("equipoise records no further windows: %s", error)
            self._recorder = None

    def count(self, what: Callable[[Metrics], None]) -> None:
        """Let ``what`` tell the metrics something."""
        try:
            if self._metrics is not None:
                what(self._metrics)
        except Exception as error:
            _log.warning("equipoise counts nothing further: %s", error)
            self._metrics = None
