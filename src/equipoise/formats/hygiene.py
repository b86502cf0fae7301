"""From what a file holds to a trace: dense layers and empty steps left out, and what looks odd said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, FormatError
from ..trace import LoadTrace
from .base import Recording, ranges
from .models import model_of_moe, model_of_rows, rows_named


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


def clean(
    path: Path,
    recording: Recording,
    layers: tuple[int, ...] | None = None,
    num_model_layers: int | None = None,
) -> tuple[LoadTrace, list[Finding]]:
    """The trace of a recording, and what was done to it.

    Empty steps are left out, their numbers kept; a ring buffer with unused rows in its middle is put back into
    the order of time. A layer without load is a layer, unless the recording numbers a model's dense layers and
    ``layers`` or the shape of a known model says that it is one of them. Nothing else is changed.

    Parameters
    ----------
    layers : the model's numbers of the MoE layers, where the caller knows them
    num_model_layers : layers of the whole model, where the caller knows

    Raises
    ------
    FormatError
        if no load is left, the recording contradicts itself, or ``layers`` contradicts it
    """
    findings = [Finding("reader", note, True) for note in recording.notes]
    counts = recording.counts
    if recording.layers is not None and len(recording.layers) != counts.shape[1]:
        raise FormatError(
            path, f"names {len(recording.layers)} layers, but its counts have {counts.shape[1]}"
        )
    steps = recording.steps
    if steps is None:
        first = np.arange(len(counts), dtype=np.int64)
        steps = np.stack([first, first + 1], axis=1)
    windows = np.arange(len(counts))
    busy_layers = np.asarray(counts.any(axis=(0, 2)))
    if not recording.exact:
        if not busy_layers.any():
            raise FormatError(path, "all loads are zero: nothing was recorded")
        windows = _in_time(np.asarray(counts.any(axis=(1, 2))), recording.ring, findings)
        if recording.ring and len(windows) == len(counts):
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
    rows, numbers, total = _choose_layers(path, recording, busy_layers, layers, findings)
    if len(windows) != len(counts) or len(rows) != counts.shape[1] or (np.diff(windows) < 0).any():
        counts = counts[np.ix_(windows, np.array(rows))]
    phases = recording.phases
    try:
        trace = LoadTrace(
            _frozen(counts),
            layers=numbers,
            num_model_layers=total if num_model_layers is None else num_model_layers,
            steps=steps[windows],
            phases=None if phases is None else tuple(np.array(phases, dtype=object)[windows]),
            top_k=recording.top_k,
            source=recording.source,
            unit=recording.unit,
            batches=None if recording.batches is None else recording.batches[windows],
        )
    except (ArgumentError, IndexError) as error:
        raise FormatError(path, str(error)) from None
    return trace, findings


def _choose_layers(
    path: Path,
    recording: Recording,
    busy: npt.NDArray[np.bool_],
    wanted: tuple[int, ...] | None,
    findings: list[Finding],
) -> tuple[list[int], tuple[int, ...], int | None]:
    """The rows that are MoE layers, their numbers, and the layers of the model where known.

    Parameters
    ----------
    busy : ``[M]``, whether a row holds any load
    wanted : the model's numbers of the MoE layers, where the caller knows them
    """
    size = len(busy)
    numbers = tuple(range(size)) if recording.layers is None else recording.layers
    rows, total = list(range(size)), recording.num_model_layers
    if wanted is not None:
        rows, numbers, total = _as_wanted(path, recording, numbers, busy, wanted)
    elif recording.every_layer:
        num_experts = recording.counts.shape[2]
        model = model_of_rows(size, num_experts, ~busy)
        bare = model_of_moe(size, num_experts)
        if model is not None:
            rows = [row for row in rows if row not in model.dense]
            numbers = model.moe
            if model.dense:
                text = f"left out the dense {rows_named(model.dense)} of {model.name}"
                findings.append(Finding("dense_layers", text, True))
        elif bare is not None and busy.all():
            total = None  # only the MoE layers of a known model: rows are not its hidden layers
    idle = [numbers[place] for place, row in enumerate(rows) if not busy[row]]
    if idle:
        text = f"{rows_named(idle)} without any load: kept, as MoE layers that saw no token"
        if recording.every_layer and wanted is None and len(rows) == size:
            text += "; if they are dense, name the MoE layers with --layers"
        findings.append(Finding("idle_layers", text))
    return rows, numbers, total


def _as_wanted(
    path: Path,
    recording: Recording,
    numbers: tuple[int, ...],
    busy: npt.NDArray[np.bool_],
    wanted: tuple[int, ...],
) -> tuple[list[int], tuple[int, ...], int | None]:
    """The rows of the layers that the caller names; or all rows, named anew, where the file only counts them."""
    known = set(numbers)
    by_number = known >= set(wanted) and not (recording.counted and len(wanted) == len(numbers))
    if by_number and not recording.counted:
        rows = [row for row, number in enumerate(numbers) if number in set(wanted)]
        lost = [
            number
            for number, has_load in zip(numbers, busy, strict=True)
            if has_load and number not in wanted
        ]
        if lost:
            raise FormatError(path, f"has load in {rows_named(lost)}, which --layers leaves out")
        return rows, wanted, recording.num_model_layers
    if len(wanted) == len(numbers) and numbers == tuple(range(len(numbers))):
        return list(range(len(numbers))), wanted, None
    if recording.counted:
        raise FormatError(path, f"counts {len(numbers)} MoE layers, but --layers names {len(wanted)}")
    missing = sorted(set(wanted) - known)
    raise FormatError(path, f"has no layer {missing[0]}, which --layers names; it has {ranges(numbers)}")


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
    if trace.unit == "batches":  # layers differ in how many experts a batch hits, and few batches repeat
        found = (_never_hit(trace), _always_hit(trace))
        return [finding for finding in found if finding is not None]
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
    idle = ~sums.any(axis=0)  # spoken of on their own
    if idle.all():
        return None
    usual = np.median(sums[:, ~idle], axis=1, keepdims=True)
    off = (np.abs(sums - usual) > 1e-9 * usual) & ~idle
    if not off.any():
        return None
    window, layer = (int(i) for i in np.argwhere(off)[0])
    worst = float((np.abs(sums - usual) / np.maximum(usual, 1))[:, ~idle].max())
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
    total = trace.total()
    cold = np.argwhere(
        (total == 0) & total.any(axis=1, keepdims=True)
    )  # idle layers are spoken of on their own
    if not len(cold):
        return None
    shown = ", ".join(f"{trace.layers[layer]}:{expert}" for layer, expert in cold[:5].tolist())
    more = f", and {len(cold) - 5} more" if len(cold) > 5 else ""
    return Finding(
        "never_hit",
        f"{len(cold)} experts of {total.size} were never hit (layer:expert {shown}{more})",
    )


def _always_hit(trace: LoadTrace) -> Finding | None:
    """Experts that every batch hits: what they cost a rank is known, whatever the traffic does."""
    assert trace.batches is not None
    always = (trace.counts == trace.batches[:, None, None]).all(axis=0)
    if not always.any():
        return None
    return Finding(
        "always_hit",
        f"{int(always.sum())} experts of {always.size} were hit in every batch: batches are large, and balancing "
        "tokens may matter more than balancing activated experts",
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
