"""A replay as tables for a terminal, and in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from ..replay.result import CEILING, FLOOR, GATED, ONCE, PAST, POLICY, ReplayResult, Series
from ..topology import Topology

NEAR_FLOOR = 1.5
"""A forecast from as many tokens as it is held against errs sqrt(2) of the floor on steady traffic."""


def topology_name(topology: Topology) -> str:
    """``32 ranks x 9 slots, 4 nodes, 8 groups``"""
    name = f"{topology.num_ranks} ranks x {topology.slots_per_rank} slots"
    if topology.num_nodes > 1:
        name += f", {topology.num_nodes} nodes"
    if topology.num_groups > 1:
        name += f", {topology.num_groups} groups"
    return name


def seconds(value: float | None) -> str:
    """A time in three digits with a unit that suits it, or a dash."""
    if value is None:
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if abs(value) >= scale or value == 0:
            return f"{_digits(value / scale)} {unit}"
    return f"{_digits(value * 1e6)} µs"


def size(value: float | None) -> str:
    """A number of bytes in three digits with a decimal unit, or a dash."""
    if value is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{_digits(value)} {unit}"
        value /= 1000
    return f"{_digits(value)} TB"


def _digits(value: float) -> str:
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def replay_tables(result: ReplayResult) -> Iterator[Table]:
    """Two tables for each topology, balance and moves, then the forecasts."""
    for topology in result.settings.topologies:
        yield _balance_table(result, topology)
        yield _moves_table(result, topology)
    yield _forecast_table(result)


def _style(series: Series) -> str:
    return "dim" if series.role in (FLOOR, PAST, CEILING) else ""


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _balance_table(result: ReplayResult, topology: Topology) -> Table:
    some = result.floor(topology)
    scored = f"{len(some.windows)} later windows x {len(some.layer_imbalance)} layers"
    table = _table(
        f"{topology_name(topology)}\nHeld-out imbalance and balancedness, {scored}",
        "",
        "mean",
        "95 %",
        "worst\nlayer",
        "in-\nsample",
        "mean of\nratios",
        "ratio of\nsums",
    )
    for series in result.on(topology):
        summary = series.summary
        table.add_row(
            series.label,
            f"{summary.mean_imbalance:.3f}",
            f"{summary.p95_imbalance:.3f}",
            f"{summary.worst_layer:.3f}",
            "-" if summary.in_sample is None else f"{summary.in_sample:.3f}",
            f"{summary.mean_of_ratios:.3f}",
            f"{summary.ratio_of_sums:.3f}",
            style=_style(series),
        )
    return table


def _moves_table(result: ReplayResult, topology: Topology) -> Table:
    table = _table(
        "Moves, and what they bring against do-nothing",
        "",
        "plans",
        "moved",
        "bytes",
        "planning",
        "gained",
        "lost",
        "net",
    )
    for series in result.on(topology):
        if series.role == FLOOR:
            continue
        summary = series.summary
        table.add_row(
            series.label,
            f"{summary.replans}/{summary.proposals}",
            f"{summary.moves_share:.1%}",
            size(summary.bytes),
            seconds(summary.planning_s),
            seconds(summary.gained_s),
            seconds(summary.lost_s),
            seconds(summary.net_s),
            style=_style(series),
        )
    return table


def _forecast_table(result: ReplayResult) -> Table:
    table = _table("Tokens forecast on the wrong expert", "", "error", "noise floor", "ratio")
    for found in result.forecasts:
        floor = found.mean_floor
        table.add_row(
            found.forecast,
            f"{found.mean_error:.2%}",
            "-" if floor is None else f"{floor:.2%}",
            "-" if not floor else f"{found.mean_error / floor:.1f}",
        )
    return table


def findings(result: ReplayResult) -> Iterator[str]:
    """What a reader should take away, one sentence each."""
    for topology in result.settings.topologies:
        yield _best(result, topology)
        if result.settings.gate:
            yield from gate_findings(result, topology)
    yield from forecast_finding(result)
    if not result.complete:
        yield "The replay was interrupted: these are the intervals that were scored in full."


def _best(result: ReplayResult, topology: Topology) -> str:
    series = result.on(topology)
    best = min((s for s in series if s.role == POLICY), key=lambda s: s.summary.mean_imbalance)
    oracle = next(s for s in series if s.role == CEILING).summary.mean_imbalance
    floor = result.floor(topology).summary.mean_imbalance
    text = (
        f"{topology_name(topology)}: {best.label} holds best on later windows, mean imbalance "
        f"{best.summary.mean_imbalance:.3f} against {floor:.3f} for doing nothing and {oracle:.3f} for a "
        f"plan by {result.settings.reference} that knows the future."
    )
    paying = [s for s in series if s.role in (POLICY, GATED, ONCE) and s.summary.net_s is not None]
    if paying:
        most = max(paying, key=lambda s: s.summary.net_s or 0.0)
        text += (
            f" After the cost of moves {most.label} brings most, {seconds(most.summary.net_s)} net."
            if (most.summary.net_s or 0.0) > 0
            else " After the cost of moves nothing beats doing nothing: re-plan less often, or limit moves."
        )
    return text


def gate_findings(result: ReplayResult, topology: Topology) -> Iterator[str]:
    """What each gate brought beside always, once and never."""
    series = result.on(topology)
    for gated in (s for s in series if s.role == GATED):
        same = [s for s in series if (s.policy, s.forecast) == (gated.policy, gated.forecast)]
        always = next(s for s in same if s.role == POLICY).summary
        once = next(s for s in same if s.role == ONCE).summary
        text = (
            f"{gated.label} re-planned {gated.summary.replans} of {gated.summary.proposals} times, net "
            f"{seconds(gated.summary.net_s)}; always would have brought {seconds(always.net_s)}, the first plan "
            f"kept {seconds(once.net_s)}, never 0 s."
        )
        if (gated.summary.net_s or 0.0) < (once.net_s or 0.0) - 0.1 * abs(once.net_s or 0.0):
            text += (
                " It moves too readily: try a shorter horizon."
                if gated.summary.replans
                else " Placements hold longer than the horizon: try a longer one."
            )
        yield text


def forecast_finding(result: ReplayResult) -> Iterator[str]:
    """Whether better forecasting could help; nothing without a noise floor."""
    best = min(result.forecasts, key=lambda found: found.mean_error)
    if not best.mean_floor:
        return
    ratio = best.mean_error / best.mean_floor
    verdict = (
        "it is near what sampling noise allows, better forecasting would help little"
        if ratio <= NEAR_FLOOR
        else "drift and bursts make the rest, and the oracle shows what a perfect forecast could bring"
    )
    yield (
        f"The best forecast ({best.forecast}) puts {best.mean_error:.1%} of tokens on the wrong expert, "
        f"{ratio:.1f} times the noise floor: {verdict}."
    )
