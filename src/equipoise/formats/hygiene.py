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
    windows = np.arange(len(counts))
    if not recording.exact:
        if len(layers) != counts.shape[1]:
            raise FormatError(path, f"names {len(layers)} layers, but its counts have {counts.shape[1]}")
        busy_steps = np.asarray(counts.any(axis=(1, 2)))
        if not busy_steps.any():
            raise FormatError(path, "all loads are zero: nothing was recorded")
        windows = _in_time(busy_steps, recording.ring, findings)
        if recording.ring and busy_steps.all():
            seam = find_seam(counts)
            if seam is not None:
                findings.append(
                    Finding(
                        "looks_rotated",
                        f"loads jump at step {seam} and run on from the last step to the first: a full ring "
                        "buffer may start there; the order of time is not certain",
                    )
                )
        # Rows before the first window are what the ring wrote after its wrap, or are left out.
        steps = np.concatenate([steps[: windows[0]] + len(counts), steps[windows[0] :]])
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


def find_seam(counts: npt.NDArray[Any], blocks: int = 8) -> int | None:
    """Where a full ring buffer seems to begin, if its rows ``[S, M, E]`` look rotated.

    Traffic drifts, so the step before the oldest one is the only place where neighbours have little in common
    while the last row and the first one belong together. Block means over ``S / blocks`` steps are compared by
    total variation; the one jump must stand out of all others by far, and there must be none at the wrap.
    """
    size = len(counts) // blocks
    if size < 2:
        return None
    some = counts[:, :: max(1, counts.shape[1] // 8)].astype(np.float32)
    sums = some.sum(axis=2, keepdims=True)
    flat = np.divide(some, sums, out=np.zeros_like(some), where=sums > 0).reshape(len(some), -1)
    flat /= some.shape[1]
    ring = np.concatenate([flat[-size:], flat, flat[:size]])
    totals = np.concatenate([np.zeros((1, ring.shape[1])), np.cumsum(ring, axis=0, dtype=np.float64)])
    starts = np.arange(len(flat)) + size
    before = totals[starts] - totals[starts - size]
    after = totals[starts + size] - totals[starts]
    jumps = np.abs(after - before).sum(axis=1) / (2 * size)
    seam = int(jumps.argmax())
    far = np.abs((starts - starts[seam] + len(flat) // 2) % len(flat) - len(flat) // 2) >= size
    usual = float(np.median(jumps[far]))
    spread = float(np.median(np.abs(jumps[far] - usual)))
    stands_out = jumps[seam] > max(usual + 8 * spread, 1.5 * usual)
    return seam if stands_out and seam and jumps[0] < usual + 4 * spread else None


def diagnose(trace: LoadTrace, top_k: int | None = None) -> list[Finding]:
    """What looks odd about a trace; nothing is changed.

    ``top_k`` stands in for the trace's own where that is not known.
    """
    sums = trace.counts.sum(axis=2)
    return [
        finding
        for finding in (
            _uneven_layers(trace, sums),
            _repeats(trace),
            _never_hit(trace),
            _indivisible(trace, sums, trace.top_k or top_k),
        )
        if finding is not None
    ]


def _uneven_layers(trace: LoadTrace, sums: npt.NDArray[Any]) -> Finding | None:
    usual = np.median(sums, axis=1, keepdims=True)
    off = np.abs(sums - usual) > 1e-9 * usual
    if not off.any():
        return None
    window, layer = (int(i) for i in np.argwhere(off)[0])
    worst = float((np.abs(sums - usual) / np.maximum(usual, 1)).max())
    return Finding(
        "uneven_layers",
        f"layers disagree about the tokens of {int(off.any(axis=1).sum())} of {len(sums)} windows, by up to "
        f"{worst:.1%}: in window {window} layer {trace.layers[layer]} has {_number(sums[window, layer])}, "
        f"half of the layers have {_number(usual[window, 0])} or more",
    )


def _number(value: Any) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"


def _repeats(trace: LoadTrace) -> Finding | None:
    same = [w for w in range(1, len(trace)) if np.array_equal(trace.counts[w], trace.counts[w - 1])]
    if not same:
        return None
    return Finding(
        "repeated_steps",
        f"{len(same)} windows repeat the one before exactly, the first of them window {same[0]}: "
        "padding or dummy passes, which teach a plan nothing",
    )


def _never_hit(trace: LoadTrace) -> Finding | None:
    cold = np.argwhere(trace.total() == 0)
    if not len(cold):
        return None
    shown = ", ".join(f"{trace.layers[layer]}:{expert}" for layer, expert in cold[:5].tolist())
    more = f", and {len(cold) - 5} more" if len(cold) > 5 else ""
    return Finding(
        "never_hit",
        f"{len(cold)} experts of {trace.total().size} were never hit (layer:expert {shown}{more})",
    )


def _indivisible(trace: LoadTrace, sums: npt.NDArray[Any], top_k: int | None) -> Finding | None:
    if top_k is None or top_k == 1:
        return None
    bad = np.argwhere(sums % top_k != 0)
    if not len(bad):
        return None
    window, layer = bad[0].tolist()
    return Finding(
        "top_k",
        f"{len(bad)} of {sums.size} sums of a layer are no multiple of top-k {top_k}, as "
        f"{_number(sums[window, layer])} in window {window}, layer {trace.layers[layer]}: "
        "tokens were dropped, or shared experts counted",
    )
