"""The tables of recorded loads: what they are, and how a contiguous placement takes them."""

from __future__ import annotations

import math

from ..trace import LoadTrace
from .loads import LoadSummary, Similarity, phase_counts
from .table import Cell, Column, Table, row, tone
from .units import counted, of_unit

BARS = "▁▂▃▄▅▆▇█"
FAIR_IMBALANCE, POOR_IMBALANCE = 1.25, 2.0


def overview_table(trace: LoadTrace, summary: LoadSummary) -> Table:
    """Size, skew and drift; two columns without heads."""
    assert trace.steps is not None
    of = f" of {trace.num_model_layers} in the model" if trace.num_model_layers else ""
    steps = f" (steps {trace.steps[0, 0]:,} to {trace.steps[-1, 1] - 1:,})" if len(trace) > 1 else ""
    ratios = [layer.hottest_ratio for layer in summary.per_layer]
    tenths = [layer.hottest_tenth for layer in summary.per_layer]
    facts = {
        "layers": f"{summary.layers}{of} ({_span(trace.layers)})",
        "experts": f"{summary.experts}" + (f", top-{summary.top_k}" if summary.top_k else ""),
        "windows": f"{summary.windows:,}{steps}",
    }
    if (phases := phase_counts(trace)) is not None:
        facts["phases"] = ", ".join(f"{count:,} {tag}" for tag, count in phases.items())
    facts |= {
        **_size(trace, summary),
        "hottest expert": f"{sum(ratios) / len(ratios):.1f} x the mean expert "
        f"(layers {min(ratios):.1f} to {max(ratios):.1f})",
        "hottest tenth": f"{sum(tenths) / len(tenths):.0%} of the {of_unit(summary.unit)} "
        f"(layers {min(tenths):.0%} to {max(tenths):.0%})",
        "window to window": _drift(summary.consecutive, of_unit(summary.unit)),
        "first to second half": _drift(summary.halves, of_unit(summary.unit)),
    }
    words = Column(numeric=False)
    return Table(trace.source or "loads", (words, words), (tuple(row(*fact) for fact in facts.items()),))


def _size(trace: LoadTrace, summary: LoadSummary) -> dict[str, str]:
    """How much was counted."""
    if summary.tokens is not None:
        what = "tokens" if summary.top_k else "expert picks"
        return {what: f"{summary.tokens:,.0f} a layer, {summary.tokens / summary.windows:,.0f} a window"}
    assert trace.batches is not None
    batches = int(trace.batches.sum())
    return {
        "counted": "batches in which an expert was hit",
        "batches": f"{batches:,}, {batches / summary.windows:,.0f} a window",
        "activated experts": f"{summary.activated:.1f} of {summary.experts} a batch and layer",
    }


def contiguous_table(summary: LoadSummary) -> Table:
    """Imbalance of contiguous placement for several numbers of ranks."""
    measured = {"mean layer": summary.mean_imbalance, "worst layer": summary.worst_layer}
    if summary.windows > 1:
        measured["mean layer, windows summed"] = summary.total_imbalance
    rows = [
        row(str(ranks), str(slots) if slots else None, *(_ratio(values[i]) for values in measured.values()))
        for i, (ranks, slots) in enumerate(zip(summary.ranks, summary.slots, strict=True))
    ]
    return Table(
        "imbalance of contiguous placement: busiest rank over mean rank",
        tuple(Column((name,)) for name in ("ranks", "slots", *measured)),
        (tuple(rows),),
    )


def worst_table(summary: LoadSummary, count: int) -> Table:
    """The ``count`` layers of the largest imbalance, and a strip of bars for all layers."""
    names = (("layer",), ("hottest", "expert"), ("x", "mean"), ("hottest", "tenth"))
    column = max((i for i, slots in enumerate(summary.slots) if slots), default=None)
    notes: tuple[str, ...] = ()
    if column is not None:
        values = [layer.imbalance[column] for layer in summary.per_layer]
        span = f"{min(values):.2f} to {max(values):.2f}"
        notes = (f"every layer at {counted(summary.ranks[column], 'rank')}, {span}:", _strip(values))
    rows = [
        row(
            str(layer.layer),
            str(layer.hottest_expert),
            f"{layer.hottest_ratio:.1f}",
            f"{layer.hottest_tenth:.0%}",
            *map(_ratio, layer.imbalance),
        )
        for layer in summary.worst_layers(count)
    ]
    return Table(
        "the layers that will hurt",
        tuple(map(Column, (*names, *(_ranks(ranks) for ranks in summary.ranks)))),
        (tuple(rows),),
        notes=notes,
    )


def _ranks(number: int) -> tuple[str, ...]:
    return tuple(counted(number, "rank").split())


def _span(layers: tuple[int, ...]) -> str:
    if len(layers) > 1 and layers[-1] - layers[0] == len(layers) - 1:
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(str(layer) for layer in layers[:8]) + (", ..." if len(layers) > 8 else "")


def _drift(found: Similarity | None, counted: str) -> str:
    if found is None:
        return "one window only"
    text = (
        f"{_share(found.distance)} of the {counted} go elsewhere; sampling noise gives {_share(found.noise)}"
    )
    if found.noise > 0 and found.distance < 1.15 * found.noise:
        return text + " (no drift to be seen)"
    return text


def _share(value: float) -> str:
    return f"{value:.1%}" if value >= 0.01 else f"{value:.2%}"


def _ratio(value: float) -> Cell:
    if math.isnan(value):
        return Cell(None)
    return Cell(f"{value:.2f}", tone(value, FAIR_IMBALANCE, POOR_IMBALANCE))


def _strip(values: list[float]) -> str:
    """One bar per layer, from the smallest value to the largest."""
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)
