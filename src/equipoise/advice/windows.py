"""The windows that advice is made from, and the later ones that it is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import ArgumentError
from ..trace import LoadTrace

TOLD_APART = ("prefill", "decode")


@dataclass(frozen=True, eq=False)
class Part:
    """Windows of one kind, cut in time: planned from the first, scored on the last."""

    name: str
    """``prefill`` or ``decode`` where the recording tells them apart, else empty"""
    seen: LoadTrace
    later: LoadTrace

    @property
    def whole(self) -> LoadTrace:
        """All windows in the order of time."""
        return joined([self.seen, self.later])


def joined(traces: Sequence[LoadTrace]) -> LoadTrace:
    """Recordings of one model, one after the other, as one trace.

    Raises `ArgumentError` where they have other layers or experts, or count something else. Steps are numbered on;
    phases and top-k are kept where all have them.
    """
    first = traces[0]
    for other in traces[1:]:
        if (other.layers, other.num_experts) != (first.layers, first.num_experts):
            raise ArgumentError(
                f"{other.source or 'a recording'} has {other.num_layers} layers x {other.num_experts} experts, and "
                f"{first.source or 'the first'} {first.num_layers} x {first.num_experts}: they must be of one model"
            )
        if other.unit != first.unit:
            raise ArgumentError(
                f"{other.source or 'a recording'} counts {other.unit}, and {first.source or 'the first'} "
                f"{first.unit}: they do not add up"
            )
    if len(traces) == 1:
        return first
    lengths = np.concatenate(
        [trace.steps[:, 1] - trace.steps[:, 0] for trace in traces if trace.steps is not None]
    )
    ends = np.cumsum(lengths)
    phases = [trace.phases for trace in traces]
    batches = [trace.batches for trace in traces if trace.batches is not None]
    return replace(
        first,
        counts=np.concatenate([trace.counts for trace in traces]),
        steps=np.stack([ends - lengths, ends], axis=1),
        phases=None if None in phases else tuple(tag for tags in phases for tag in tags or ()),
        top_k=first.top_k if len({trace.top_k for trace in traces}) == 1 else None,
        source=", ".join(dict.fromkeys(trace.source for trace in traces if trace.source)),
        batches=np.concatenate(batches) if batches else None,
    )


def parted(trace: LoadTrace, later: LoadTrace | None = None) -> tuple[Part, ...]:
    """Prefill and decode apart where windows of both are tagged, else everything together.

    Parameters
    ----------
    trace : ``T`` windows
    later : what to score on; the last quarter of ``trace``, at least one window, unless given

    Raises
    ------
    ArgumentError
        if there are no windows to plan from, or no later ones
    """
    if later is not None:
        joined([trace, later])  # of one model
    tags = [set(each.phases or ()) for each in (trace, later) if each is not None]
    names = TOLD_APART if all(set(TOLD_APART) <= found for found in tags) else ("",)
    return tuple(_part(name, trace, later) for name in names)


def _part(name: str, trace: LoadTrace, later: LoadTrace | None) -> Part:
    seen = _tagged(trace, name)
    if later is not None:
        return Part(name, seen, _tagged(later, name))
    if len(seen) < 2:
        of = f" of {name}" if name else ""
        raise ArgumentError(
            f"advice is scored on windows later than those planned from, and the recording has one window{of}: "
            "record more, cut shorter windows, or name later recordings with --later"
        )
    first = len(seen) - max(1, len(seen) // 4)
    return Part(name, seen[:first], seen[first:])


def _tagged(trace: LoadTrace, name: str) -> LoadTrace:
    if not name:
        return trace
    rows = np.array([tag == name for tag in trace.phases or ()])
    assert trace.steps is not None
    return replace(
        trace,
        counts=trace.counts[rows],
        steps=trace.steps[rows],
        phases=(name,) * int(rows.sum()),
        batches=None if trace.batches is None else trace.batches[rows],
    )
