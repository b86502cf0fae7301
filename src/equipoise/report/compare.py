"""The tables of a comparison of placements."""

from __future__ import annotations

from ..plans.compare import Comparison
from .activated import activated_rows
from .communication import communication_cells
from .table import BEST, Table, columns, row
from .units import counted, percent


def scored_table(found: Comparison, windows: int) -> Table:
    """How each placement holds on the loads."""
    several = windows > 1
    by_load = any(one.placement.split != "even" for one in found.scored)
    rows = []
    for one in found.scored:
        placement, measured = one.placement, one.balance
        cells = [
            one.name,
            f"{placement.num_ranks} x {placement.slots_per_rank}",
            *([placement.split] if by_load else []),
            f"{measured.mean_imbalance:.4f}",
            *([f"{one.summed:.4f}"] if several else []),
            f"{measured.worst_layer:.4f}",
            f"{measured.mean_of_ratios:.4f}",
            f"{measured.ratio_of_sums:.4f}",
            f"{placement.twins.sum()}",
        ]
        rows.append(row(*cells, role=BEST if one is found.best else ""))
    return Table(
        f"Imbalance and balancedness, {counted(windows, 'window')} x {counted(_layers(found), 'layer')}",
        columns(
            "",
            ("ranks x", "slots"),
            *(["split"] if by_load else []),
            "mean",
            *([("windows", "summed")] if several else []),
            ("worst", "layer"),
            ("mean of", "ratios"),
            ("ratio of", "sums"),
            "twins",
        ),
        (tuple(rows),),
    )


def communication_table(found: Comparison, num_nodes: int, token_bytes: float | None) -> Table:
    """Where tokens go under each placement."""
    cells = [communication_cells(one.communication, num_nodes, token_bytes) for one in found.scored]
    rows = [
        row(one.name, *(value for _, value in each)) for one, each in zip(found.scored, cells, strict=True)
    ]
    names = [name for name, _ in cells[0]]
    return Table(f"Where tokens go, {counted(num_nodes, 'node')}", columns("", *names), (tuple(rows),))


def activated_table(found: Comparison) -> Table:
    """Activated experts on the busiest rank under each placement."""
    cells = [tuple(activated_rows(one.activated)) for one in found.scored]
    rows = [
        row(one.name, *(value for _, value in each)) for one, each in zip(found.scored, cells, strict=True)
    ]
    names = [name for name, _ in cells[0]]
    return Table("Activated experts on the busiest rank", columns("", *names), (tuple(rows),))


def moves_table(found: Comparison) -> Table:
    """Fetches from each placement to each other one, and as a share of all slots of the other."""
    names = [one.name for one in found.scored]
    rows = []
    for i, name in enumerate(names):
        cells: list[str | None] = [name]
        for j, to in enumerate(found.scored):
            moves = int(found.moves[i, j])
            slots = to.placement.num_layers * to.placement.num_slots
            if i == j or moves < 0:
                cells.append(None)
            else:
                cells.append(f"{moves:,} ({percent(moves / slots)})")
        rows.append(row(*cells))
    return Table(
        "Moves from the row to the column (share of all slots)", columns("from", *names), (tuple(rows),)
    )


def _layers(found: Comparison) -> int:
    return found.scored[0].placement.num_layers
