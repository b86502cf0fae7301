"""Recording beside serving: windows are written by a thread of their own, whatever the disk does."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy.typing as npt

from ..errors import EquipoiseError
from ..formats.writer import TraceWriter
from .metrics import Metrics


class Recorder:
    """Writes each window of one model to a folder as soon as it is handed over. It raises nothing.

    What cannot be recorded (to a folder that another process writes to, say) is said once, and serving goes on.
    """

    def __init__(
        self, folder: Path, source: str, max_bytes: int, metrics: Metrics, log: logging.Logger
    ) -> None:
        self._folder, self._log, self._metrics = folder, log, metrics
        self._about: dict[str, Any] = {"source": source, "max_bytes": max_bytes, "flush_seconds": 0.0}
        self._windows: SimpleQueue[tuple[npt.NDArray[Any], int]] = SimpleQueue()
        self._writer: TraceWriter | None = None
        self._said = ""
        threading.Thread(target=self._work, name="equipoise-record", daemon=True).start()

    def add(self, counts: npt.NDArray[Any], steps: int) -> None:
        """Hand over a window ``[L, E]`` of so many forward passes."""
        self._windows.put((counts.copy(), steps))

    def _work(self) -> None:
        while True:
            counts, steps = self._windows.get()
            try:
                self._write(counts, steps)
            except (EquipoiseError, OSError) as error:
                if str(error) != self._said:
                    self._log.warning("equipoise does not record: %s", error)
                self._said = str(error)

    def _write(self, counts: npt.NDArray[Any], steps: int) -> None:
        if self._writer is None:
            self._writer = TraceWriter(self._folder, *counts.shape, **self._about)
        self._writer.add(counts, steps=steps)
        self._metrics.unwritten(self._writer.unwritten)
