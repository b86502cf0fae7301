"""Recording beside serving: windows are written by a thread of their own, whatever the disk does."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy.typing as npt

from ..control.metrics import Metrics
from ..errors import EquipoiseError
from ..formats.writer import TraceWriter
from .question import Question


class Recorder:
    """Writes each window of one model to a folder as soon as it is handed over. It raises nothing.

    What cannot be recorded (to a folder that another process writes to, say) is said once, and serving goes on.

    Parameters
    ----------
    folder : where to
    about : what `TraceWriter` is told, ``unit`` among it
    """

    def __init__(self, folder: Path, about: dict[str, Any], metrics: Metrics, log: logging.Logger) -> None:
        self._folder, self._log, self._metrics = folder, log, metrics
        self._about = {**about, "flush_seconds": 0.0}
        self._windows: SimpleQueue[tuple[npt.NDArray[Any], int, int | None]] = SimpleQueue()
        self._writer: TraceWriter | None = None
        self._said = ""
        threading.Thread(target=self._work, name="equipoise-record", daemon=True).start()

    def add(self, question: Question) -> None:
        """Hand over the window of a question: its hits where batches are recorded, else its tokens."""
        if self._about["unit"] == "tokens":
            self._windows.put((question.counts.copy(), question.steps, None))
        elif question.hits is not None:
            self._windows.put((question.hits.counts, question.steps, question.hits.batches))

    def _work(self) -> None:
        while True:
            window = self._windows.get()
            try:
                self._write(*window)
            except (EquipoiseError, OSError) as error:
                if str(error) != self._said:
                    self._log.warning("equipoise does not record: %s", error)
                self._said = str(error)

    def _write(self, counts: npt.NDArray[Any], steps: int, batches: int | None) -> None:
        if self._writer is None:
            self._writer = TraceWriter(self._folder, *counts.shape, **self._about)
        self._writer.add(counts, steps=steps, batches=batches)
        self._metrics.unwritten(self._writer.unwritten)
