"""From what a file holds to a trace: dense layers and empty steps left out, and what looks odd said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, FormatError
from ..trace import LoadTrace
from .base import Recording


@dataclass(frozen=True)
class Finding:
    """Something about a recording that its user should know.

    Parameters
    ----------
    kind : a short name for machines, such as ``dense_layers``
    message : one sentence for people
    applied : whether the trace was changed for it
    """

    kind: str
    message: str
    applied: bool = False


def clean(path: Path, recording: Recording) -> tuple[LoadTrace, list[Finding]]:
    """The trace of a recording, and what was done to it.

    Dense layers (all zero) and empty steps are left out, their numbers kept; a ring buffer with unused rows
    in its middle is put back into the order of time. Nothing else is changed.

    Raises `FormatError` if no load is left or the recording contradicts itself.
    """
    findings = [Finding("reader", note, True) for note in recording.notes]
    counts = recording.counts
    layers = np.array(
        range(counts.shape[1]) if recording.layers is None else recording.layers, dtype=np.int64
    )
    steps = recording.steps
    if steps is None:
        first = np.arange(len(counts), dtype=np.int64)
        steps = np.stack([first, first + 1], axis=1)
    steps = steps.copy()
    windows = np.arange(len(counts))
    if not recording.exact:
        if len(layers) != counts.shape[1]:
            raise FormatError(path, f"names {len(layers)} layers, but its counts have {counts.shape[1]}")
        busy_steps = np.asarray(counts.any(axis=(1, 2)))
        if not busy_steps.any():
            raise FormatError(path, "all loads are zero: nothing was recorded")
        windows = _in_time(busy_steps, recording.ring, findings)
        steps[: windows[0]] += len(counts)  # what the ring wrote after its wrap; else all of it is left out
        busy_layers = np.asarray(counts.any(axis=(0, 2)))
        if not busy_layers.all():
            left_out = ", ".join(str(layer) for layer in layers[~busy_layers])
            findings.append(Finding("dense_layers", f"layers without load left out: {left_out}", True))
        if len(windows) != len(counts) or not busy_layers.all() or (np.diff(windows) < 0).any():
            counts = counts[np.ix_(windows, busy_layers)]
        layers = layers[busy_layers]
    phases = recording.phases
    try:
        trace = LoadTrace(
            _frozen(counts),
            layers=tuple(int(layer) for layer in layers),
            num_model_layers=recording.num_model_layers,
            steps=steps[windows],
            phases=None if phases is None else tuple(np.array(phases, dtype=object)[windows]),
            top_k=recording.top_k,
            source=recording.source,
        )
    except (ArgumentError, IndexError) as error:
        raise FormatError(path, str(error)) from None
    return trace, findings


def _frozen(counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Read-only, so that the trace need not copy an array that nobody else holds."""
    counts.flags.writeable = False
    return counts


def _in_time(busy: npt.NDArray[np.bool_], ring: bool, findings: list[Finding]) -> npt.NDArray[np.int64]:
    """The steps with load, in the order of time."""
    windows = np.flatnonzero(busy)
    if len(windows) < len(busy):
        empty = len(busy) - len(windows)
        findings.append(Finding("empty_steps", f"{empty} of {len(busy)} steps without load left out", True))
    gaps = np.flatnonzero(np.diff(windows) > 1)
    if ring and len(gaps) == 1 and busy[0] and busy[-1]:
        # After a dump the ring goes on writing where it was and wraps: what is behind the gap came first.
        start = int(gaps[0]) + 1
        findings.append(
            Finding("rotated", f"ring buffer wrapped: put back in order from step {windows[start]}", True)
        )
        return np.roll(windows, -start)
    return windows
