"""Activated experts, as rows and columns of tables."""

from __future__ import annotations

from collections.abc import Iterator

from ..placement import contiguous_placement
from ..plans.activated import Activated, ExpectedActivated, known_activated
from ..trace import LoadTrace
from .table import Table, columns, row

Known = Activated | ExpectedActivated | None
HEADS = ("even", "batch", "activated", "optimum", ("hit over", "ranks"))
NAMES = {
    "even": "split evenly",
    "batch": "each batch split by its load",
    "activated": "each hit expert at one replica",
    "optimum": "the same, chosen as well as can be",
    "least": "hit experts over ranks, rounded up",
}
EXPECTED = {
    "even": "expected, each hit expert at one replica",
    "least": "no choice of replicas has less",
}


def activated_cells(found: Activated | None) -> list[str]:
    """The measures under `HEADS`; nothing of ``None``."""
    return [] if found is None else [f"{getattr(found, name):.3f}" for name in NAMES]


def activated_rows(found: Known) -> Iterator[tuple[str, str]]:
    """Measures by name, in words. Nothing of ``None``."""
    if found is not None:
        names = NAMES if isinstance(found, Activated) else EXPECTED
        for field, name in names.items():
            yield name, f"{getattr(found, field):.3f}"


def contiguous_ways(
    trace: LoadTrace, batches: LoadTrace | None, ranks: tuple[int, ...]
) -> list[tuple[int, Activated | ExpectedActivated]]:
    """Activated experts under contiguous placement, for those numbers of ranks that there are experts for.

    Of single ``batches`` where they are known, else what a trace that counts batches says; nothing of other traces.
    """
    found: list[tuple[int, Activated | ExpectedActivated]] = []
    for number in ranks:
        if number <= trace.num_experts:
            slots = -(-trace.num_experts // number) * number
            placement = contiguous_placement(trace.num_layers, trace.num_experts, number, slots)
            way = known_activated(trace, batches, placement)
            if way is not None:
                found.append((number, way))
    return found


def contiguous_activated(ways: list[tuple[int, Activated | ExpectedActivated]]) -> Table:
    """`contiguous_ways` as a table: few replicas if any, so that there is little to choose."""
    shown = {NAMES["even"], NAMES["least"], *EXPECTED.values()}
    cells = [(number, [each for each in activated_rows(way) if each[0] in shown]) for number, way in ways]
    rows = [row(str(number), *(value for _, value in each)) for number, each in cells]
    _, first = ways[0]
    return Table(
        f"Activated experts on the busiest rank, contiguous placement, {first.batches:,} batches",
        columns("ranks", *(name for name, _ in cells[0][1])),
        (tuple(rows),),
        notes=(f"a batch hits {first.hit:.1f} experts of a layer",),
    )
