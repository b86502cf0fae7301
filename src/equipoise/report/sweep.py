"""A sweep in tables and sentences, and as a page: what held best where, and what each setting brings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..formats.output import write_file
from ..sweep.point import DONE, FAILED, REFUSED
from .blocks import figure, folded_table, meanings, open_table
from .charts import Bar, bar_chart
from .markup import Markup, element
from .page import framed, section
from .table import BEST, Column, Row, Table, columns, row
from .units import counted, minus, seconds

Rows = Sequence[dict[str, Any]]

TUNED = ("policy", "forecast", "interval", "history", "max_moves", "gate", "horizon")
"""Settings that are free to choose on a topology; the others say what is planned for, or are repeats."""
SHAPES = ("load", "ranks", "redundant", "nodes", "groups")
MANY = 200
"""Points that the page lists; the results file has all of them."""

_COLUMNS = (*columns("", "mean", "nothing", "oracle", "moved", "net"), Column(("settings",), numeric=False))

MEANINGS = {
    "mean": "held-out imbalance: tokens of a layer's busiest rank over the mean of its ranks, mean over later "
    "windows and layers. 1.25 means that a layer takes a quarter longer than in perfect balance",
    "nothing": "the same for the contiguous placement that engines start from, never changed",
    "oracle": "the same for the point's policy, planned from the very windows that it is scored on; nobody can "
    "have it",
    "moved": "experts that ranks must fetch for one re-plan, as a share of all slots",
    "net": "estimated seconds of layer time saved against doing nothing, less those spent on moves",
}


def standing_of(rows: Rows, total: int) -> str:
    """How many points ended how, in a sentence."""
    found = Counter(each["status"] for each in rows)
    text = f"{counted(total, 'point')}: {found[DONE]:,} scored"
    parts = {"refused": found[REFUSED], "failed": found[FAILED], "still to run": total - len(rows)}
    return text + "".join(f", {number:,} {word}" for word, number in parts.items() if number) + "."


def best_table(rows: Rows) -> Table:
    """For each load and topology the point that held best on later windows."""
    return Table(
        "What held best on later windows",
        _COLUMNS,
        (tuple(_best_row(group) for group in _groups(rows, SHAPES)),),
    )


def settings_table(rows: Rows) -> Table:
    """What each value of a setting brings, all else equal."""
    sections = tuple(part for name in ("redundant", *TUNED) if (part := tuple(_setting(rows, name))))
    return Table(
        "What each setting brings, all else equal",
        columns("", "points", "mean", "moved", "net"),
        sections,
        notes=("Means over the points that were scored with every value of the setting.",),
    )


def trouble_table(rows: Rows) -> Table:
    """Why points were refused or failed."""
    why = Counter((each["status"], each["reason"]) for each in rows if each["status"] != DONE)
    return Table(
        "Points without a score",
        columns("", "points"),
        (
            tuple(
                row(f"{status}: {reason}", f"{number:,}") for (status, reason), number in why.most_common(20)
            ),
        ),
    )


def save_page(rows: Rows, total: int, path: Path) -> None:
    """Write the page of a sweep; the file appears only when it is whole."""
    write_file(path, sweep_page(rows, total).encode(errors="replace"))


def sweep_page(rows: Rows, total: int) -> str:
    """The page as text. The same points give the same page."""
    scored = [each for each in rows if each["status"] == DONE]
    notice = (
        "" if len(rows) == total else "The sweep is not finished: this page holds the points that have run."
    )
    parts = [section("best", "What held best", *_best_parts(scored), first=True)] if scored else []
    if scored:
        parts.append(
            section("settings", "What settings bring", open_table(settings_table(scored), "settings-0"))
        )
    if len(scored) < len(rows):
        parts.append(section("trouble", "What was not scored", open_table(trouble_table(rows), "trouble-0")))
    parts.append(
        section(
            "method",
            "How this was made",
            meanings({"Equipoise": __version__}),
            element("h3", "Words"),
            meanings(MEANINGS),
        )
    )
    named = {"best": "Best", "settings": "Settings", "trouble": "Not scored", "method": "How this was made"}
    there = "".join(parts)
    links = [(name, text) for name, text in named.items() if f'<section id="{name}"' in there]
    return framed("Equipoise sweep", "What the sweep found", standing_of(rows, total), parts, links, notice)


def _best_parts(scored: Rows) -> Iterator[Markup]:
    groups = list(_groups(scored, SHAPES))
    best = [min(group, key=_mean) for group in groups]
    bars = [
        Bar(_shape(each), ((0.0, 100 * (_mean(each) - 1), "bar"),), f"{_mean(each):.3f}")
        for each in best[:MANY]
    ]
    text = "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    caption = "Held-out imbalance of the best point of each load and topology; 1 is perfect balance."
    plot = bar_chart(
        "best-chart", "Best by topology", text, bars, "% of tokens that the busiest rank has above the mean"
    )
    yield element("div", figure("best-chart", "Best by topology", caption, plot), class_="pair one")
    yield open_table(best_table(scored), "best-0")
    yield folded_table(_points_table(scored))


def _points_table(scored: Rows) -> Table:
    best, varied = sorted(scored, key=_mean)[:MANY], _varied(scored)
    title = "All points" if len(scored) <= MANY else f"The {MANY} best of {counted(len(scored), 'point')}"
    return Table(
        title,
        _COLUMNS,
        (tuple(row(_shape(each), *_figures(each), _settings(each, varied)) for each in best),),
    )


def _groups(rows: Rows, names: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Scored rows that agree in all of ``names``, in the order in which they came."""
    found: defaultdict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for each in rows:
        if each["status"] == DONE:
            found[tuple(each[name] for name in names)].append(each)
    yield from found.values()


def _best_row(group: Rows) -> Row:
    best = min(group, key=_mean)
    return row(_shape(best), *_figures(best), _settings(best, _varied(group)))


def _figures(each: dict[str, Any]) -> tuple[str | None, ...]:
    net = each.get("net_s")
    return (
        f"{_mean(each):.3f}",
        f"{each['do_nothing']:.3f}",
        f"{each['oracle']:.3f}",
        f"{each['moves_share']:.1%}",
        None if net is None else minus(seconds(net)),
    )


def _shape(each: dict[str, Any]) -> str:
    text = f"{each['load']}, {each['ranks']} x {each['slots_per_rank']}"
    parts = (f", {each[name]} {name}" for name in ("nodes", "groups") if each[name] > 1)
    return text + "".join(parts)


def _varied(rows: Rows) -> list[str]:
    """Names of the settings that differ among rows."""
    return [name for name in (*TUNED, "seed") if len({str(each[name]) for each in rows}) > 1]


def _settings(each: dict[str, Any], varied: Sequence[str]) -> str:
    """Settings in words."""
    return ", ".join(f"{name} {_value(each[name])}" for name in varied) or "the same for all"


def _value(value: object) -> str:
    """A setting's value as the spec has it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "as the interval" if value is None else str(value)


def _setting(rows: Rows, name: str) -> Iterator[Row]:
    """A row for each value of a setting, over points that were scored with all of its values."""
    others = [other for other in (*SHAPES, *TUNED, "seed") if other != name]
    values = list(dict.fromkeys(each[name] for each in rows if each["status"] == DONE))
    groups = [group for group in _groups(rows, others) if len(group) == len(values)]
    if len(values) < 2 or not groups:
        return
    means = {value: [each for group in groups for each in group if each[name] == value] for value in values}
    least = min(means, key=lambda value: _average(means[value], "mean_imbalance") or 0.0)
    for value, points in means.items():
        net = _average(points, "net_s")
        yield row(
            f"{name} {_value(value)}",
            f"{len(points):,}",
            f"{_average(points, 'mean_imbalance'):.3f}",
            f"{_average(points, 'moves_share'):.1%}",
            None if net is None else minus(seconds(net)),
            role=BEST if value == least else "",
        )


def _average(points: Rows, name: str) -> float | None:
    known = [each[name] for each in points if each[name] is not None]
    return sum(known) / len(known) if known else None


def _mean(each: dict[str, Any]) -> float:
    return float(each["mean_imbalance"])
