"""The tables of a replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from ..replay.result import CEILING, FLOOR, PAST, REFERENCES, ReplayResult, Series
from ..topology import Topology
from .activated import HEADS, activated_cells
from .standing import relative_loads, standing
from .table import BEST, REFERENCE, Row, Table, columns, row
from .units import counted, of_unit, seconds, signed, size, topology_name, traffic_of, traffic_unit

TIME_ROWS = 12
KNOWS = "all-past knows what the policies know, and can be had; oracle knows the future."
PAIRS = (
    "pairs: of a token's experts, all windows together, so plans are made from loads alone; ranks and nodes a token "
    "need token routes."
)
PAYS = "pays after: {} of such traffic until the moves of a re-plan have paid"


def replay_tables(result: ReplayResult) -> Iterator[Table]:
    """Two tables for each topology, balance and moves, then the forecasts."""
    for topology in result.settings.topologies:
        yield balance_table(result, topology)
        yield moves_table(result, topology)
        if result.has_splits:
            yield splits_table(result, topology)
        if result.has_activated:
            yield activated_table(result, topology)
    yield forecast_table(result)


def balance_table(result: ReplayResult, topology: Topology) -> Table:
    """Imbalance and balancedness of every series on windows that came after its plans."""
    stand = standing(result, topology)
    windows, layers = len(stand.floor.windows), len(stand.floor.layer_imbalance)
    scored = f"{counted(windows, 'later window')} x {counted(layers, 'layer')}"

    def row_of(series: Series) -> Row:
        summary = series.summary
        return row(
            series.label,
            f"{summary.mean_imbalance:.3f}",
            f"{summary.p95_imbalance:.3f}",
            f"{summary.worst_layer:.3f}",
            _if_known(summary.in_sample, "{:.3f}".format),
            f"{summary.mean_of_ratios:.3f}",
            f"{summary.ratio_of_sums:.3f}",
            *(cell for _, cell in _where(series)),
            role=_role(series, stand.best),
        )

    return Table(
        f"Held-out imbalance and balancedness, {scored}",
        columns(
            "",
            "mean",
            "95 %",
            ("worst", "layer"),
            ("in-", "sample"),
            ("mean of", "ratios"),
            ("ratio of", "sums"),
            *(head for head, _ in _where(stand.floor)),
        ),
        (tuple(row_of(series) for series in result.on(topology)),),
        notes=(KNOWS, *((PAIRS,) if stand.floor.summary.pairs_on_one_rank is not None else ())),
        subject=topology_name(topology),
    )


def brief_table(result: ReplayResult) -> Table:
    """What a first look needs: doing nothing and the policies, on the first topology."""

    def row_of(series: Series) -> Row:
        summary = series.summary
        return row(
            series.label,
            f"{summary.mean_imbalance:.4f}",
            f"{summary.worst_layer:.4f}",
            f"{summary.moves_share:.1%}" if summary.proposals else None,
        )

    shown = [
        series for series in result.on(result.settings.topologies[0]) if series.role not in (PAST, CEILING)
    ]
    return Table(
        "held-out: scored on the windows after those that it was planned from",
        columns("", ("mean", "imbalance"), ("worst", "layer"), ("slots moved", "each time")),
        (tuple(map(row_of, shown)),),
    )


def moves_table(result: ReplayResult, topology: Topology) -> Table:
    """Plans, moves and times of every series but the floor, which has none."""
    best, settings = standing(result, topology).best, result.settings

    def row_of(series: Series) -> Row:
        summary = series.summary
        return row(
            series.label,
            f"{summary.replans}/{summary.proposals}",
            f"{summary.moves_share:.1%}",
            _if_known(summary.bytes, size),
            _if_known(summary.planning_s, seconds),
            _if_known(summary.gained_s, seconds),
            _if_known(summary.net_s, seconds),
            _if_known(summary.break_even_windows, lambda windows: traffic_of(settings, windows, brief=True)),
            role=_role(series, best),
        )

    return Table(
        "Moves, and what they bring against do-nothing",
        columns("", "plans", "moved", "bytes", "planning", "gained", "net", ("pays", "after")),
        (tuple(row_of(series) for series in result.on(topology) if series.role != FLOOR),),
        notes=(PAYS.format(traffic_unit(settings)),) if settings.cost is not None else (),
    )


def splits_table(result: ReplayResult, topology: Topology) -> Table:
    """Every series with each window split evenly, in a few sweeps and as well as can be."""
    best = standing(result, topology).best

    def row_of(series: Series) -> Row:
        found = series.splits
        assert found is not None
        cells = (f"{value:.3f}" for value in (found.even, found.swept, found.optimum))
        times = (_if_known(value, seconds) for value in (series.even_step_s, series.swept_step_s))
        return row(series.label, *cells, *times, role=_role(series, best))

    return Table(
        "Held-out mean imbalance by how each window's tokens are split",
        columns("", "even", ("few", "sweeps"), "optimum", ("a layer's", "step, even"), ("a few", "sweeps")),
        (tuple(row_of(series) for series in result.on(topology)),),
        notes=("each window counts as one batch; engines split evenly",),
        subject=topology_name(topology),
    )


def activated_table(result: ReplayResult, topology: Topology) -> Table:
    """Every series by the experts that single batches activate on the busiest rank."""
    judged = [series for series in result.on(topology) if series.role not in REFERENCES]
    best = min(judged, key=lambda series: series.activated.activated if series.activated else 0.0)
    found = best.activated
    assert found is not None
    rows = [
        row(series.label, *activated_cells(series.activated), role=_role(series, best))
        for series in result.on(topology)
        if series.activated is not None
    ]
    return Table(
        "Held-out activated experts on the busiest rank",
        columns("", *HEADS),
        (tuple(rows),),
        notes=(
            f"{found.batches:,} batches, each hits {found.hit:.1f} experts of a layer; by how they are dispatched",
        ),
        subject=topology_name(topology),
    )


def forecast_table(result: ReplayResult) -> Table:
    """The error of every forecast beside what sampling noise alone would make it."""
    rows = [
        row(
            found.forecast,
            f"{found.mean_error:.2%}",
            _if_known(found.mean_floor, "{:.2%}".format),
            None if not found.mean_floor else f"{found.mean_error / found.mean_floor:.1f}",
        )
        for found in result.forecasts
    ]
    what = of_unit(result.settings.unit).capitalize()
    return Table(
        f"{what} forecast on the wrong expert", columns("", "error", "noise floor", "ratio"), (tuple(rows),)
    )


def time_table(result: ReplayResult, topology: Topology) -> Table:
    """Mean imbalance of every series in spans of windows."""
    series = result.on(topology)
    windows = series[0].windows
    edges = np.linspace(0, len(windows), min(TIME_ROWS, len(windows)) + 1).astype(int)
    rows = [
        row(
            f"{windows[start]} to {windows[end - 1]}",
            *(f"{one.mean_imbalance[start:end].mean():.3f}" for one in series),
        )
        for start, end in pairwise(edges)
    ]
    return Table("The same as a table", columns("windows", *(one.label for one in series)), (tuple(rows),))


def trade_table(result: ReplayResult, topology: Topology) -> Table:
    """Moves of the whole replay and mean imbalance of every series."""
    rows = [
        row(one.label, f"{one.summary.moves:,}", f"{one.summary.mean_imbalance:.3f}")
        for one in result.on(topology)
    ]
    return Table("The same as a table", columns("", "moves", "mean imbalance"), (tuple(rows),))


def rank_load_table(result: ReplayResult, topology: Topology) -> Table:
    """The busiest and the least busy rank of every layer, before and after."""
    stand = standing(result, topology)
    both = (relative_loads(stand.floor), relative_loads(stand.best))
    rows = []
    for index, layer in enumerate(result.settings.layers):
        cells = [str(layer)]
        for loads in (relative[index] for relative in both):
            cells += [str(int(np.argmax(loads))), f"{loads.max():.2f}", f"{loads.min():.2f}"]
        rows.append(row(*cells))
    heads = [
        f"{head} {when}" for when in ("before", "after") for head in ("busiest rank", "its load", "least")
    ]
    return Table("Both maps as a table", columns("layer", *heads), (tuple(rows),))


def gains_table(priced: list[Series]) -> Table:
    """What series gain against doing nothing, and what their moves take."""
    rows = [
        row(
            series.label,
            _if_known(series.summary.gained_s, seconds),
            _if_known(series.summary.lost_s, seconds),
            _if_known(series.summary.net_s, signed),
        )
        for series in priced
    ]
    return Table("The same as a table", columns("", "gained", "lost", "net"), (tuple(rows),))


def _where(series: Series) -> list[tuple[tuple[str, str], str]]:
    """Where tokens go, as far as it is known: head and cell; nodes only where there are several."""
    summary = series.summary
    ranks = [
        (("ranks", "a token"), summary.ranks_per_token, "{:.3f}"),
        (("pairs on", "one rank"), summary.pairs_on_one_rank, "{:.1%}"),
    ]
    nodes = [
        (("nodes", "a token"), summary.nodes_per_token, "{:.3f}"),
        (("pairs on", "one node"), summary.pairs_on_one_node, "{:.1%}"),
    ]
    shown = ranks + nodes if series.topology.num_nodes > 1 else ranks
    return [(head, style.format(value)) for head, value, style in shown if value is not None]


def _role(series: Series, best: Series) -> str:
    if series is best:
        return BEST
    return REFERENCE if series.role in REFERENCES else ""


def _if_known(value: float | None, words: Callable[[float], str]) -> str | None:
    return None if value is None else words(value)
