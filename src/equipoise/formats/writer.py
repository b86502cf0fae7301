"""The one writer of recordings: windows go into a folder of segments, each written whole."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, FileAccessError, FormatError
from ..placement import check_layers
from ..routes import PairCounts
from ..trace import LoadTrace, check_loads
from .base import MAX_TOTAL, reading
from .buffer import Window, fitting, windows_of
from .lock import FolderLock
from .native import LIMIT, MAX_WINDOWS, encode_segment
from .output import write_file
from .pairs import unpacked
from .segments import LOCK, UNTAGGED, Segment, number_in, open_segment, segment_files, segment_path

MAX_STEP = 1 << 60
_log = logging.getLogger("equipoise")


def _is_whole(value: Any, least: int, end: int) -> bool:
    """Whether ``value`` is a whole number from ``least`` up to below ``end``."""
    number = isinstance(value, int | float | np.integer | np.floating)
    return number and bool(least <= value < end and value == int(value))


class TraceWriter:
    """Writes windows of expert loads into a folder that `equipoise.load_trace` and every command read as one trace.

    The folder holds segments, each a load file of up to ``segment_windows`` windows. A file is written aside and
    renamed, so that at every instant what is in the folder can be read, whatever happens to the process. A writer
    that is started again goes on behind the last window; it counts steps on where they begin anew.

    Pair counts that come with windows are added up in each segment, which keeps them small.

    Nothing that happens to the disk stops who records: windows that cannot be written are counted and said once,
    by the logger ``equipoise``. One writer at a time writes to a folder; a process forked from it writes nothing.

    Parameters
    ----------
    folder : where to; made if it is not there
    num_layers, num_experts : ``L`` and ``E`` of every window
    layers, num_model_layers, top_k, source, unit : as in `LoadTrace`
    segment_windows : windows of a segment; fewer where ``max_bytes`` has no room for four segments
    flush_seconds : a window is on the disk at the latest with the first one that is added so much later
    max_bytes : size of all segments together, at every instant; the oldest is removed for a new one

    Raises
    ------
    FileAccessError
        if the folder cannot be made or locked, or another writer has it
    FormatError, ArgumentError
        if the folder holds a recording of other layers or experts; if an argument is out of its range

    Examples
    --------
    >>> import tempfile, numpy as np, equipoise as eq
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with eq.TraceWriter(folder, 2, 4) as writer:
    ...         writer.add(np.arange(8).reshape(2, 4), steps=100)
    ...     eq.load_trace(folder).steps.tolist()
    [[0, 100]]
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        num_layers: int,
        num_experts: int,
        *,
        layers: Sequence[int] | None = None,
        num_model_layers: int | None = None,
        top_k: int | None = None,
        source: str = "",
        unit: str = "tokens",
        segment_windows: int = 64,
        flush_seconds: float = 60.0,
        max_bytes: int = 1 << 28,
    ) -> None:
        self.folder = Path(folder)
        for name, value in (("num_layers", num_layers), ("num_experts", num_experts)):
            if not 0 < value < LIMIT:
                raise ArgumentError(f"{name} must be positive, got {value}")
        self._shape = (num_layers, num_experts)
        self._about: dict[str, Any] = {
            "layers": check_layers(layers, num_layers, num_model_layers),
            "num_model_layers": num_model_layers,
            "top_k": top_k,
            "source": source,
            "unit": unit,
        }
        LoadTrace(np.ones(self._shape, dtype=np.int64), **self._about)  # checks the rest
        self._segment_windows = fitting(segment_windows, max_bytes, self._shape)
        if not flush_seconds >= 0:
            raise ArgumentError(f"flush_seconds must not be negative, got {flush_seconds}")
        self._flush_seconds, self._max_bytes = flush_seconds, max_bytes
        self._guard = threading.RLock()
        self._process = os.getpid()
        self._closed = False
        self._in_trouble = False
        self._windows: list[Window] = []
        self._stored = 0  # windows of the buffer that are on the disk
        self._pairs: npt.NDArray[np.int64] | None = None  # of the windows in the buffer
        self._first, self._end_step, self._step_offset, self._unwritten = 0, 0, 0, 0
        self._lock = self._locked()
        try:
            self._go_on()
        except BaseException:
            self._lock.release()
            raise
        self._flushed = time.monotonic()

    @property
    def unwritten(self) -> int:
        """Windows of the whole recording that could not be written, as known now."""
        return self._unwritten

    def add(
        self,
        counts: npt.ArrayLike,
        step: int | None = None,
        steps: int = 1,
        phase: str | None = None,
        batches: int | None = None,
        *,
        pairs: npt.ArrayLike | None = None,
    ) -> None:
        """Record a window. A window without load is left out, as it would be when a recording is read.

        Parameters
        ----------
        counts : ``[L, E]``, tokens routed to each logical expert in the window, or batches in which it was hit; whole
            numbers
        step : number of its first step; the end of the window before unless given. A number that lies before that
            end (an engine that was started anew) counts on from it, and so do those after it
        steps : how many steps the window spans
        phase : "prefill", "decode" or "mixed", where known
        batches : that the window counted, where batches are counted; one for each step unless given
        pairs : ``[L, E, E]``, tokens of the window, or of a sample of them, that hit both experts, where counted: see
            `equipoise.PairCounts`. They are added up over the windows of a segment

        Raises
        ------
        ArgumentError
            for counts of another shape, negative, not finite or not whole, or of more batches than there were; for
            pairs that are no pair counts, or for which ``max_bytes`` has no room; for a closed writer. Never
            `OSError`
        """
        window = self._checked(counts)
        together = None if pairs is None else self._checked_pairs(pairs)
        if not (_is_whole(steps, 1, LIMIT) and (step is None or _is_whole(step, 0, MAX_STEP))):
            raise ArgumentError(
                f"step must be a whole number from 0 to 2**60 and steps one of at least 1, got {step!r} and {steps!r}"
            )
        batches = self._checked_batches(window, int(steps), batches)
        with self._guard:
            if self._closed:
                raise ArgumentError(f"the writer to {self.folder} is closed")
            if self._process != os.getpid():
                return
            first = self._counted_on(None if step is None else int(step))
            self._end_step = first + int(steps)
            if not window.any():
                return
            self._windows.append(Window(window, first, self._end_step, phase, batches))
            self._take_pairs(together)
            full = len(self._windows) >= self._segment_windows
            if full or time.monotonic() - self._flushed >= self._flush_seconds:
                self.flush()

    def flush(self) -> None:
        """Write what is buffered; where that fails, it is tried again with a later window."""
        with self._guard:
            if self._closed or self._process != os.getpid():
                return
            if self._stored < len(self._windows) and self._wrote():
                self._stored = len(self._windows)
            self._flushed = time.monotonic()
            if len(self._windows) >= self._segment_windows:
                self._begin_segment()

    def close(self) -> None:
        """Write what is buffered and let others write to the folder; a second time it does nothing."""
        with self._guard:
            if self._closed or self._process != os.getpid():
                return
            self.flush()
            self._unwritten += len(self._windows) - self._stored
            self._closed = True
            self._lock.release()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
        array = check_loads(counts, "counts", (2,))
        if array.shape != self._shape:
            raise ArgumentError(
                f"counts must be [layers, experts] = {list(self._shape)}, got {list(array.shape)}"
            )
        most = MAX_TOTAL / self._segment_windows  # what a segment adds up to has to be countable
        if not array.sum(dtype=np.float64) < most or (array.dtype.kind == "f" and (array % 1).any()):
            raise ArgumentError(f"counts must be whole numbers of tokens that add up to less than {most:.0f}")
        return array.astype(np.int64)  # a copy: engines count on in their arrays

    def _checked_batches(self, window: npt.NDArray[np.int64], steps: int, batches: int | None) -> int | None:
        """Batches of a window, as a trace of it alone would have them."""
        unit = self._about["unit"]
        if unit == "tokens" and batches is None:
            return None
        given = None if batches is None else np.array([batches])
        trace = LoadTrace(window, unit=unit, steps=np.array([[0, steps]]), batches=given)
        return None if trace.batches is None else int(trace.batches[0])

    def _checked_pairs(self, pairs: npt.ArrayLike) -> npt.NDArray[np.int64]:
        found = PairCounts(np.asarray(pairs)).counts
        wanted = (self._shape[0], self._shape[1], self._shape[1])
        most = MAX_TOTAL / self._segment_windows
        if found.shape != wanted or found.dtype.kind == "f" or found.max() >= most:
            raise ArgumentError(
                f"pairs must be integers below {most:.0f}, [layers, experts, experts] = {list(wanted)}, got "
                f"{found.dtype} {list(found.shape)} up to {found.max()}"
            )
        if self._pairs is None:  # from now on a segment has more to hold
            self._segment_windows = fitting(self._segment_windows, self._max_bytes, self._shape, pairs=True)
        return found.astype(np.int64)

    def _take_pairs(self, pairs: npt.NDArray[np.int64] | None) -> None:
        if pairs is not None:
            self._pairs = pairs if self._pairs is None else self._pairs + pairs

    def _counted_on(self, step: int | None) -> int:
        """The first step of a window, in steps of the recording, which only rise."""
        if step is None:
            return self._end_step
        offset = max(self._step_offset, self._end_step - int(step))
        if step + offset >= 2 * MAX_STEP:
            raise ArgumentError(f"step {step} counts on to {step + offset}, which is no step number")
        self._step_offset = offset
        return int(step) + offset

    def _locked(self) -> FolderLock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return FolderLock(self.folder, LOCK)
        except FileAccessError:
            raise
        except OSError as error:
            raise FileAccessError(self.folder, f"cannot be recorded to: {error.strerror or error}") from None

    def _go_on(self) -> None:
        """Take up what an earlier writer left: its counters, and its last segment where that is not full."""
        with reading(self.folder):
            files = segment_files(self.folder)
            last = self._last_sound(files)
        behind = number_in(files[-1]) + self._segment_windows if files else 0
        if behind >= MAX_WINDOWS:
            raise FormatError(files[-1], "has a number that no recording reaches: remove it")
        if last is None:
            self._first = behind
            return
        if last.form != (*self._shape, self._about["layers"], self._about["unit"]):
            raise FormatError(
                self.folder,
                f"holds a recording of {last.form[0]} layers x {last.form[1]} experts in {last.form[3]}, not of "
                f"{self._shape[0]} x {self._shape[1]} in {self._about['unit']} (or of other layer numbers): record "
                "to another folder",
            )
        assert last.windows.steps is not None
        self._end_step, self._unwritten = int(last.windows.steps[-1, 1]), last.unwritten
        self._first = last.end if last.path == files[-1] else behind
        if last.path == files[-1] and len(last.windows.counts) < self._segment_windows:
            self._first, self._windows = last.first, windows_of(last)
            self._stored = len(self._windows)
            pairs = last.windows.pairs
            self._pairs = None if pairs is None else unpacked(pairs, self._shape[1])

    def _last_sound(self, files: list[Path]) -> Segment | None:
        for path in reversed(files):
            try:
                return open_segment(path)
            except FormatError as error:
                _log.warning("%s; recording goes on behind it", error)
        return None

    def _wrote(self) -> bool:
        """Whether the segment of the buffered windows could be written; else that is said once."""
        try:
            data = self._encoded()
            self._make_room(len(data))
            write_file(segment_path(self.folder, self._first), data)
        except OSError as error:
            if not self._in_trouble:
                _log.warning("windows are not recorded: %s; serving goes on", error)
            self._in_trouble = True
            return False
        if self._in_trouble:
            _log.warning("recording to %s goes on; %d windows were not written", self.folder, self._unwritten)
        self._in_trouble = False
        return True

    def _encoded(self) -> bytes:
        windows = self._windows
        tags = [window.phase for window in windows]
        batches = [window.batches for window in windows if window.batches is not None]
        trace = LoadTrace(
            np.stack([window.counts for window in windows]),
            steps=np.array([(window.first_step, window.end_step) for window in windows]),
            phases=tuple(tag or UNTAGGED for tag in tags) if any(tags) else None,
            batches=np.array(batches) if batches else None,
            **self._about,
        )
        return encode_segment(trace, self._first, self._unwritten, self._pairs)

    def _make_room(self, size: int) -> None:
        """Remove the oldest segments until ``size`` bytes more keep to ``max_bytes``."""
        files = segment_files(self.folder)
        sizes = {path: path.stat().st_size for path in files}
        used = sum(sizes.values())
        current = segment_path(self.folder, self._first)
        for path in files:
            if used + size <= self._max_bytes:
                return
            if path != current:
                path.unlink()
                used -= sizes[path]
        if used + size > self._max_bytes:
            raise FileAccessError(
                current, f"{size} bytes and {used} before are beyond max_bytes={self._max_bytes}"
            )

    def _begin_segment(self) -> None:
        self._unwritten += len(self._windows) - self._stored
        self._first += len(self._windows)
        self._windows, self._stored, self._pairs = [], 0, None
