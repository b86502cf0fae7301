"""A replay as one HTML page that needs nothing else: no network, no scripts, light, dark, phone and paper."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from string import Template

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..formats.output import write_file
from ..replay.result import CEILING, FLOOR, GATED, ONCE, PAST, POLICY, ROLES, ReplayResult, Series
from ..topology import Topology
from . import words
from .blocks import data_table, details, figure, meanings, minus, signed, whole_table
from .charts import Bar, Line, bar_chart, heat_legend, heat_map, line_chart, mark, scatter_chart
from .figures import relative_loads
from .markup import Markup, element, join
from .tables import forecast_finding, gate_findings, replay_tables, seconds, size, topology_name

FloatArray = npt.NDArray[np.float64]

DASHES = {FLOOR: "dots", PAST: "dashdot", CEILING: "dash", POLICY: "", GATED: "dash", ONCE: "fine"}
SHAPES = {FLOOR: "square", PAST: "up", CEILING: "down", POLICY: "circle", GATED: "diamond", ONCE: "plus"}
NUM_COLOURS = 6
MANY_LINES = 9
TIME_ROWS = 12

MEANINGS = {
    "imbalance": "tokens of a layer's busiest rank over the mean of its ranks. All ranks wait for the busiest: "
    "1.25 means that a layer takes a quarter longer than in perfect balance",
    "held-out": "scored on windows that come after the ones a plan was made from; in-sample is the score on "
    "those, and promises too much",
    "mean, 95 %": "mean and 95th percentile of the imbalance over all scored windows and layers",
    "worst layer": "largest imbalance of a layer, averaged over windows",
    "mean of ratios": "balancedness as SGLang prints it: mean of 1 / imbalance",
    "ratio of sums": "balancedness as vLLM prints it: sum of mean rank loads over sum of largest, over layers",
    "moved": "experts that ranks must fetch for one re-plan, as a share of all slots",
    "noise floor": "the error of a forecast that knew the true shares, since tokens are a random sample of them",
}


def save_html(result: ReplayResult, path: str | Path) -> None:
    """Write the page of a replay; the file appears only when it is whole."""
    write_file(path, replay_page(result).encode(errors="replace"))


def replay_page(result: ReplayResult) -> str:
    """The page as text. The same result gives the same page."""
    settings = result.settings
    topologies = settings.topologies
    heading = "What re-planning would have brought"
    sections = [_topology_section(result, index, topology) for index, topology in enumerate(topologies)]
    links = [(f"topology-{index}", topology_name(topology)) for index, topology in enumerate(topologies)]
    links += [("forecasts", "Forecasts"), ("method", "How this was made")]
    template = Template(files(__package__).joinpath("replay.html").read_text(encoding="utf-8"))
    return template.substitute(
        version=join(__version__),
        title=join(f"{heading} · Equipoise replay"),
        heading=join(heading),
        intro=join(words.what_was_replayed(settings)),
        notice="" if result.complete else _notice(),
        contents=element(
            "nav",
            element("ul", [element("li", element("a", text, href=f"#{name}")) for name, text in links]),
            aria_label="Contents",
        ),
        sections=join([*sections, _forecast_section(result), _method_section(result)]),
        rules="\n".join(
            f"#lines-{index}:has(#show-{index}-{key}:not(:checked)) .s{key} {{ display: none; }}"
            for index, topology in enumerate(topologies)
            for key in range(len(result.on(topology)))
        ),
    )


def _notice() -> Markup:
    text = "The replay was interrupted: this page holds the intervals that were scored in full."
    return element("p", text, class_="notice", role="note")


def _topology_section(result: ReplayResult, index: int, topology: Topology) -> Markup:
    name = f"topology-{index}"
    tables = list(replay_tables(result))[2 * index : 2 * index + 2]
    best = words.best_policy(result, topology)
    sentences = [words.held_best(result, topology), words.what_it_moves(result, topology)]
    sentences.append(words.is_it_worth_it(result, topology)[1])
    gate = gate_findings(result, topology) if result.settings.gate else ()
    return element(
        "section",
        element("h2", topology_name(topology), id=f"{name}-head", class_="first" if index == 0 else None),
        _facts(result, topology),
        [element("p", minus(sentence)) for sentence in sentences],
        element("ul", [element("li", minus(sentence)) for sentence in gate], class_="gate") if gate else None,
        _lines(result, index, topology),
        _heat_maps(result, index, topology, best),
        _gains(result, index, topology),
        [whole_table(table, f"{name}-table-{number}", best.label) for number, table in enumerate(tables)],
        id=name,
        aria_labelledby=f"{name}-head",
    )


def _facts(result: ReplayResult, topology: Topology) -> Markup:
    best, favourite = words.best_policy(result, topology), words.best_net(result, topology)
    floor = result.floor(topology).summary
    oracle = next(s for s in result.on(topology) if s.role == CEILING).summary
    summary = best.summary
    moved = f"by {best.label}"
    if summary.bytes is not None and summary.replans:
        each = (summary.lost_s or 0.0) / summary.replans
        moved += f": {size(summary.bytes / summary.replans)} of weights, about {seconds(each)}"
    verdict, _ = words.is_it_worth_it(result, topology)
    facts = [
        _fact(
            "Held-out imbalance",
            f"{summary.mean_imbalance:.3f}",
            f"{best.label}; doing nothing {floor.mean_imbalance:.3f}, "
            f"knowing the future {oracle.mean_imbalance:.3f}",
        ),
        _fact("Slots moved by a re-plan", f"{summary.moves_share:.1%}", moved),
    ]
    if favourite is not None and favourite.summary.net_s is not None:
        facts.append(
            _fact(
                "Net time, best way to re-plan",
                signed(favourite.summary.net_s),
                f"{favourite.label}; estimated, of {seconds(floor.layer_time_s)} in expert layers",
            )
        )
    tone = {"yes": "yes", "no": "no", "not known": "unsure"}.get(verdict, "yes")
    worth = element("dd", verdict[0].upper() + verdict[1:], class_=f"verdict {tone}")
    facts.append(element("div", element("dt", "Worth it?"), worth))
    return element("dl", facts, class_="facts")


def _fact(name: str, value: str, note: str) -> Markup:
    return element(
        "div", element("dt", name), element("dd", value, class_="value"), element("dd", note, class_="note")
    )


def _look(result: ReplayResult, series: Series) -> str:
    """Classes of a series' colour and dashes; the references are grey."""
    if series.role in (FLOOR, PAST, CEILING):
        return f"cx {DASHES[series.role]}"
    pairs = [(p, f) for p in result.settings.policies for f in result.settings.forecasts]
    return f"c{pairs.index((series.policy, series.forecast)) % NUM_COLOURS} {DASHES[series.role]}".strip()


def _lines(result: ReplayResult, index: int, topology: Topology) -> Markup:
    """Imbalance over time and balance against moves, under one legend that shows and hides."""
    series = result.on(topology)
    shown = _shown(result, topology)
    over_time, against = [], []
    for key, one in enumerate(series):
        shared = (f"s{key}", one.label, _look(result, one), SHAPES[one.role])
        over_time.append(Line(*shared, one.windows.astype(np.float64), one.mean_imbalance))
        at = (np.array([float(one.summary.moves)]), np.array([one.summary.mean_imbalance]))
        against.append(Line(*shared, *at))
    drawn = "imbalance: busiest rank / mean"
    time_name, moves_name = f"time-{index}", f"moves-{index}"
    time_title, moves_title = "Held-out imbalance over time", "Balance against moves"
    ranges = "; ".join(f"{line.label} {_range(line.y)}" for line in over_time)
    points = "; ".join(f"{line.label} {line.y[0]:.3f} with {line.x[0]:,.0f} moves" for line in against)
    time = figure(
        time_name,
        time_title,
        "Mean over layers of every scored window; a saw tooth is a plan that ages until the next one.",
        line_chart(time_name, time_title, ranges, over_time, "window", drawn, 1.0),
        _time_table(series),
    )
    moves = figure(
        moves_name,
        moves_title,
        "Experts fetched in the whole replay; low and left is best.",
        scatter_chart(moves_name, moves_title, points, against, "moves in all", drawn, 1.0),
        data_table(
            ["", "moves", "mean imbalance"],
            [[line.label, f"{line.x[0]:,.0f}", f"{line.y[0]:.3f}"] for line in against],
        ),
    )
    keys = [
        element(
            "label",
            element(
                "input",
                type="checkbox",
                id=f"show-{index}-{key}",
                checked=one in shown,
                autocomplete="off",
            ),
            _key(_look(result, one), SHAPES[one.role]),
            one.label,
            title=ROLES[one.role],
        )
        for key, one in enumerate(series)
    ]
    legend = element(
        "fieldset", element("legend", "Lines and marks to show"), element("div", keys, class_="keys")
    )
    return element(
        "div", legend, element("div", time, moves, class_="pair wide"), class_="lines", id=f"lines-{index}"
    )


def _shown(result: ReplayResult, topology: Topology) -> list[Series]:
    """Series to show at first: all, or if they are many, not the gated and once forms but for the best."""
    series = result.on(topology)
    if len(series) <= MANY_LINES:
        return list(series)
    best, favourite = words.best_policy(result, topology), words.best_net(result, topology)
    same = (best.policy, best.forecast)
    return [
        one
        for one in series
        if one.role not in (GATED, ONCE) or one is favourite or (one.policy, one.forecast) == same
    ]


def _key(look: str, shape: str) -> Markup:
    line = element("path", d="M0 10H40", class_=f"line {look}")
    box = element("svg", line, viewBox="0 0 40 20", preserveAspectRatio="none")
    return element("span", box, mark(shape, look), class_="key", aria_hidden="true")


def _range(values: FloatArray) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.min():.3f} to {finite.max():.3f}" if finite.size else "no numbers"


def _time_table(series: Sequence[Series]) -> Markup:
    windows = series[0].windows
    edges = np.linspace(0, len(windows), min(TIME_ROWS, len(windows)) + 1).astype(int)
    rows = [
        [
            f"{windows[start]} to {windows[end - 1]}",
            *(f"{one.mean_imbalance[start:end].mean():.3f}" for one in series),
        ]
        for start, end in pairwise(edges)
    ]
    return data_table(["windows", *(one.label for one in series)], rows)


def _heat_maps(result: ReplayResult, index: int, topology: Topology, best: Series) -> Markup:
    floor, layers = result.floor(topology), result.settings.layers
    pair = [("before", floor, relative_loads(floor)), ("after", best, relative_loads(best))]
    figures = []
    for when, series, relative in pair:
        name = f"{when}-{index}"
        title = f"Rank loads {when}: {series.label}"
        top = relative.max(axis=1)
        text = (
            f"A layer's busiest rank has {top.mean():.2f} times the mean of its layer, "
            f"in the worst layer {top.max():.2f}."
        )
        plot = heat_map(name, title, text, relative, layers, topology.ranks_per_node)
        figures.append(figure(name, title, text, plot, heading="h4"))
    rows = [
        [str(layer), *(cell for *_, relative in pair for cell in _busiest(relative[row]))]
        for row, layer in enumerate(layers)
    ]
    heads = [
        "layer",
        *(f"{head} {when}" for when, *_ in pair for head in ("busiest rank", "its load", "least")),
    ]
    nodes = ", nodes apart by a line" if topology.num_nodes > 1 else ""
    return element(
        "div",
        element("h3", "Rank loads, layer by layer"),
        element(
            "p",
            "Tokens of every rank over the last scored interval, as a multiple of the mean of its layer"
            f"{nodes}. The more even the colour, the less ranks wait for each other.",
            class_="soft",
        ),
        heat_legend(),
        element("div", figures, class_="pair"),
        details("Both maps as a table", data_table(heads, rows)),
        class_="together",
    )


def _busiest(loads: FloatArray) -> tuple[str, str, str]:
    return str(int(np.argmax(loads))), f"{loads.max():.2f}", f"{loads.min():.2f}"


def _gains(result: ReplayResult, index: int, topology: Topology) -> Markup:
    """What each series gains against doing nothing, and what its moves take."""
    bars = [
        Bar(
            series.label,
            ((0.0, series.summary.gained_s, "gain"), (0.0, -(series.summary.lost_s or 0.0), "loss")),
            signed(series.summary.net_s),
        )
        for series in result.on(topology)
        if series.role != FLOOR and series.summary.gained_s is not None and series.summary.net_s is not None
    ]
    if not bars:
        return Markup("")
    name, title = f"gains-{index}", "Time gained and lost"
    text = "; ".join(
        f"{bar.label} gains {seconds(bar.parts[0][1])}, loses {seconds(-bar.parts[1][1])}" for bar in bars
    )
    plot = bar_chart(name, title, text, bars, "estimated seconds against doing nothing; to the right the net")
    keys = [
        element("span", element("span", class_=f"swap {look}"), words_, class_="note-key")
        for look, words_ in (("c0", "gained in expert layers"), ("c1", "lost to moves"))
    ]
    table = [[bar.label, seconds(bar.parts[0][1]), seconds(-bar.parts[1][1]), bar.text] for bar in bars]
    drawn = figure(name, title, element("span", keys), plot, data_table(["", "gained", "lost", "net"], table))
    return element("div", drawn, class_="pair one")


def _forecast_section(result: ReplayResult) -> Markup:
    found = result.forecasts
    name, title = "forecast", "Forecast error against the noise floor"
    bars = [
        Bar(one.forecast, ((0.0, 100 * one.mean_error, "bar"),), f"{one.mean_error:.2%}") for one in found
    ]
    floor = found[0].mean_floor if found else None
    text = "; ".join(f"{one.forecast} {one.mean_error:.2%}" for one in found)
    caption = "Tokens forecast on the wrong expert, mean over layers and re-plannings."
    if floor is not None:
        text += f"; noise floor {floor:.2%}"
        caption += f" Dashed: {floor:.2%}, what sampling noise alone makes of a perfect forecast."
    plot = bar_chart(name, title, text, bars, "% of tokens", None if floor is None else 100 * floor)
    return element(
        "section",
        element("h2", "Could better forecasting help?", id="forecasts-head", class_="near"),
        [element("p", sentence) for sentence in forecast_finding(result)],
        element("div", figure(name, title, caption, plot), class_="pair one"),
        whole_table(list(replay_tables(result))[-1], "forecast-table", ""),
        id="forecasts",
        aria_labelledby="forecasts-head",
    )


def _method_section(result: ReplayResult) -> Markup:
    settings = result.settings
    roles = dict.fromkeys(series.role for series in result.series)
    facts = {
        "loads": settings.source,
        "policies": ", ".join(settings.policies),
        "forecasts": ", ".join(settings.forecasts),
        "reference": f"{settings.reference}, behind all-past and oracle",
        "seed": settings.seed,
    }
    if settings.gate:
        facts["gate"] = f"moves must pay for themselves within {settings.horizon} windows"
    if settings.cost is not None:
        facts["cost model"] = f"{settings.cost.get('name') or 'given figures'}; times are estimates"
        for number, source in enumerate(settings.cost.get("sources") or (), 1):
            facts[f"source {number}"] = source
    facts["Equipoise"] = __version__
    return element(
        "section",
        element("h2", "How this was made", id="method-head", class_="near"),
        meanings(facts),
        element("h3", "Rows"),
        meanings({role if role != POLICY else "a policy's name": ROLES[role] for role in roles}),
        element("h3", "Words"),
        meanings(MEANINGS),
        id="method",
        aria_labelledby="method-head",
    )
