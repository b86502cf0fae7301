"""The part of a replay's page that is about one topology: findings, charts, tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..replay.result import FLOOR, GATED, ONCE, ROLES, ReplayResult, Series
from ..topology import Topology
from . import words
from .blocks import fact, figure, folded_table, open_table
from .charts import Bar, Line, bar_chart, key, line_chart, scatter_chart
from .heat import heat_legend, heat_map
from .looks import look_of
from .markup import Markup, element
from .standing import Standing, relative_loads, standing
from .tables import (
    activated_table,
    balance_table,
    gains_table,
    moves_table,
    rank_load_table,
    time_table,
    trade_table,
)
from .units import minus, of_unit, seconds, signed, size, topology_name

FloatArray = npt.NDArray[np.float64]

MANY_LINES = 9
MEASURE = "imbalance: busiest rank / mean"


def topology_section(result: ReplayResult, index: int, topology: Topology) -> Markup:
    """The section of the topology that is number ``index`` of its replay."""
    name = f"topology-{index}"
    stand = standing(result, topology)
    verdict, reason = words.is_it_worth_it(result, topology)
    sentences = [words.held_best(result, topology), words.what_it_moves(result, topology), reason]
    gate = words.gate_findings(result, topology) if result.settings.gate else ()
    return element(
        "section",
        element("h2", topology_name(topology), id=f"{name}-head", class_="first" if index == 0 else None),
        _facts(stand, verdict),
        [element("p", minus(sentence)) for sentence in sentences],
        element("ul", [element("li", minus(sentence)) for sentence in gate], class_="gate") if gate else None,
        _lines(result, index, topology, stand),
        _heat_maps(result, index, topology, stand),
        _gains(result, index, topology),
        open_table(balance_table(result, topology), f"{name}-table-0"),
        open_table(moves_table(result, topology), f"{name}-table-1"),
        open_table(activated_table(result, topology), f"{name}-table-2") if result.has_activated else None,
        id=name,
        aria_labelledby=f"{name}-head",
    )


def _facts(stand: Standing, verdict: str) -> Markup:
    best, floor, oracle = stand.best.summary, stand.floor.summary, stand.oracle.summary
    moved = f"by {stand.best.label}"
    if best.bytes is not None and best.replans:
        each = (best.lost_s or 0.0) / best.replans
        moved += f": {size(best.bytes / best.replans)} of weights, about {seconds(each)}"
    facts = [
        fact(
            "Held-out imbalance",
            f"{best.mean_imbalance:.3f}",
            f"{stand.best.label}; doing nothing {floor.mean_imbalance:.3f}, "
            f"knowing the future {oracle.mean_imbalance:.3f}",
        ),
        fact("Slots moved by a re-plan", f"{best.moves_share:.1%}", moved),
    ]
    if stand.favourite is not None and stand.favourite.summary.net_s is not None:
        facts.append(
            fact(
                "Net time, best way to re-plan",
                signed(stand.favourite.summary.net_s),
                f"{stand.favourite.label}; estimated, of {seconds(floor.layer_time_s)} in expert layers",
            )
        )
    tone = {"nothing gained": "no", "not known": "unsure"}.get(verdict, "yes")
    worth = element("dd", verdict[0].upper() + verdict[1:], class_=f"verdict {tone}")
    facts.append(element("div", element("dt", "Worth it?"), worth))
    return element("dl", facts, class_="facts")


def _lines(result: ReplayResult, index: int, topology: Topology, stand: Standing) -> Markup:
    """Imbalance over time and balance against moves, under one legend that shows and hides."""
    pair = (_over_time(result, index, topology), _against_moves(result, index, topology))
    return element(
        "div",
        _legend(result, index, topology, stand),
        element("div", pair, class_="pair wide"),
        class_="lines",
        id=f"lines-{index}",
    )


def _series_lines(
    result: ReplayResult, topology: Topology, points: Callable[[Series], tuple[FloatArray, FloatArray]]
) -> list[Line]:
    """A line for each series, through its points ``x`` and ``y``."""
    return [
        Line(f"s{number}", one.label, look_of(one, result.settings), *points(one))
        for number, one in enumerate(result.on(topology))
    ]


def _over_time(result: ReplayResult, index: int, topology: Topology) -> Markup:
    name, title = f"time-{index}", "Held-out imbalance over time"
    lines = _series_lines(result, topology, lambda one: (one.windows.astype(np.float64), one.mean_imbalance))
    text = "; ".join(f"{line.label} {_range(line.y)}" for line in lines)
    return figure(
        name,
        title,
        "Mean over layers of every scored window; a saw tooth is a plan that ages until the next one.",
        line_chart(name, title, text, lines, "window", MEASURE, 1.0),
        time_table(result, topology),
    )


def _against_moves(result: ReplayResult, index: int, topology: Topology) -> Markup:
    name, title = f"moves-{index}", "Balance against moves"
    lines = _series_lines(
        result,
        topology,
        lambda one: (np.array([float(one.summary.moves)]), np.array([one.summary.mean_imbalance])),
    )
    text = "; ".join(f"{line.label} {line.y[0]:.3f} with {line.x[0]:,.0f} moves" for line in lines)
    return figure(
        name,
        title,
        "Experts fetched in the whole replay; low and left is best.",
        scatter_chart(name, title, text, lines, "moves in all", MEASURE, 1.0),
        trade_table(result, topology),
    )


def _legend(result: ReplayResult, index: int, topology: Topology, stand: Standing) -> Markup:
    """A switch for the line and the mark of every series."""
    series = result.on(topology)
    shown = _shown(series, stand)
    switches = [
        element(
            "label",
            element(
                "input",
                type="checkbox",
                id=f"show-{index}-{number}",
                checked=one in shown,
                autocomplete="off",
            ),
            key(look_of(one, result.settings)),
            one.label,
            title=ROLES[one.role],
        )
        for number, one in enumerate(series)
    ]
    return element(
        "fieldset", element("legend", "Lines and marks to show"), element("div", switches, class_="keys")
    )


def _shown(series: tuple[Series, ...], stand: Standing) -> list[Series]:
    """Series to show at first: all, or if they are many, not the gated and once forms but for the best."""
    if len(series) <= MANY_LINES:
        return list(series)
    same = (stand.best.policy, stand.best.forecast)
    return [
        one
        for one in series
        if one.role not in (GATED, ONCE) or one is stand.favourite or (one.policy, one.forecast) == same
    ]


def _range(values: FloatArray) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.min():.3f} to {finite.max():.3f}" if finite.size else "no numbers"


def _heat_maps(result: ReplayResult, index: int, topology: Topology, stand: Standing) -> Markup:
    layers = result.settings.layers
    figures = []
    for when, series in (("before", stand.floor), ("after", stand.best)):
        name = f"{when}-{index}"
        title = f"Rank loads {when}: {series.label}"
        relative = relative_loads(series)
        top = relative.max(axis=1)
        text = (
            f"A layer's busiest rank has {top.mean():.2f} times the mean of its layer, "
            f"in the worst layer {top.max():.2f}."
        )
        plot = heat_map(name, title, text, relative, layers, topology.nodes)
        figures.append(figure(name, title, text, plot, heading="h4"))
    nodes = ", nodes apart by a line" if topology.num_nodes > 1 else ""
    return element(
        "div",
        element("h3", "Rank loads, layer by layer"),
        element(
            "p",
            f"{of_unit(result.settings.unit).capitalize()} of every rank over the last scored interval, as a "
            f"multiple of the mean of its layer{nodes}. "
            "The more even the colour, the less ranks wait for each other.",
            class_="soft",
        ),
        heat_legend(),
        element("div", figures, class_="pair"),
        folded_table(rank_load_table(result, topology)),
        class_="together",
    )


def _gains(result: ReplayResult, index: int, topology: Topology) -> Markup:
    """What each series gains against doing nothing, and what its moves take."""
    priced, bars, texts = [], [], []
    for series in result.on(topology):
        gained, lost, net = series.summary.gained_s, series.summary.lost_s or 0.0, series.summary.net_s
        if series.role == FLOOR or gained is None or net is None:
            continue
        priced.append(series)
        bars.append(Bar(series.label, ((0.0, gained, "gain"), (0.0, -lost, "loss")), signed(net)))
        texts.append(f"{series.label} gains {seconds(gained)}, loses {seconds(lost)}")
    if not bars:
        return Markup("")
    name, title = f"gains-{index}", "Time gained and lost"
    axis = "estimated seconds against doing nothing; to the right the net"
    keys = [
        element("span", element("span", class_=f"swap {part}"), meaning, class_="note-key")
        for part, meaning in (("gain", "gained in expert layers"), ("loss", "lost to moves"))
    ]
    plot = bar_chart(name, title, "; ".join(texts), bars, axis)
    drawn = figure(name, title, element("span", keys), plot, gains_table(priced))
    return element("div", drawn, class_="pair one")
