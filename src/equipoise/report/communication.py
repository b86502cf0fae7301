"""Where tokens go, as rows and columns of tables."""

from __future__ import annotations

from ..placement import contiguous_placement
from ..plans.communication import Communication, Together, where_tokens_go
from ..routes import PairCounts, Routes
from ..topology import Topology
from .table import Table, columns, row
from .units import counted, size

Known = Communication | Together | None
MEASURES = {
    "ranks a token": lambda found: found.ranks_per_token,
    "nodes a token": lambda found: found.nodes_per_token,
    "sent to other ranks, copies a token": lambda found: found.sent() / found.tokens.clip(1),
    "sent to other nodes, copies a token": lambda found: found.sent_between_nodes() / found.tokens.clip(1),
}
SHARES = {
    "pairs of a token's experts on one rank": lambda found: found.on_rank,
    "pairs of a token's experts on one node": lambda found: found.on_node,
}


def communication_cells(
    found: Known, num_nodes: int, token_bytes: float | None = None
) -> list[tuple[str, str]]:
    """Measures by name, means over layers, in words; nodes are left out where there is one. Nothing of ``None``."""
    if found is None:
        return []
    measures, style = (MEASURES, "{:.3f}") if isinstance(found, Communication) else (SHARES, "{:.1%}")
    cells = [(name, style.format(measure(found).mean())) for name, measure in measures.items()]
    if token_bytes is not None and isinstance(found, Communication):
        cells += [
            ("bytes to other ranks, a layer", size(found.sent(token_bytes).mean())),
            ("bytes to other nodes, a layer", size(found.sent_between_nodes(token_bytes).mean())),
        ]
    return [(name, cell) for name, cell in cells if num_nodes > 1 or "node" not in name]


def contiguous_ways(
    routes: Routes | PairCounts, ranks: tuple[int, ...], num_nodes: int
) -> list[tuple[int, Communication | Together]]:
    """Where tokens go under contiguous placement, for those numbers of ranks that nodes divide."""
    experts, found = routes.num_experts, []
    for number in ranks:
        if number <= experts and number % num_nodes == 0:
            slots = -(-experts // number)
            placement = contiguous_placement(routes.num_layers, experts, number, slots * number)
            way = where_tokens_go(routes, placement, Topology(number, slots, num_nodes))
            if way is not None:
                found.append((number, way))
    return found


def contiguous_communication(
    routes: Routes | PairCounts, ranks: tuple[int, ...], num_nodes: int, token_bytes: float | None
) -> Table:
    """`contiguous_ways` as a table."""
    cells = [
        (number, communication_cells(way, num_nodes, token_bytes))
        for number, way in contiguous_ways(routes, ranks, num_nodes)
    ]
    names = [name for name, _ in cells[0][1]] if cells else []
    what = "token routes" if isinstance(routes, Routes) else "pair counts"
    return Table(
        f"Contiguous placement on {counted(num_nodes, 'node')}, by {what}",
        columns("ranks", *names),
        (tuple(row(str(number), *(value for _, value in each)) for number, each in cells),),
    )
