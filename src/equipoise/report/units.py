"""Numbers and names as readers want them: three digits, a unit that suits, a sign that can be seen."""

from __future__ import annotations

import re

from ..replay.result import ReplaySettings
from ..topology import Topology

NEARLY = 0.9995
"""From this part of a unit on, three digits round up to all of it."""


def topology_name(topology: Topology) -> str:
    """``32 ranks x 9 slots, 4 nodes, 8 groups``"""
    name = f"{counted(topology.num_ranks, 'rank')} x {counted(topology.slots_per_rank, 'slot')}"
    if topology.num_nodes > 1:
        sizes = [topology.nodes.count(node) for node in range(topology.num_nodes)]
        name += f", {topology.num_nodes} nodes" + (
            "" if topology.even else f" of {', '.join(map(str, sizes))} ranks"
        )
    if topology.num_groups > 1:
        name += f", {topology.num_groups} groups"
    return name


def of_unit(unit: str) -> str:
    """What loads of a unit count, in words: tokens, or hits of experts by batches."""
    return "hits" if unit == "batches" else "tokens"


def counted(number: int, noun: str) -> str:
    """``1 rank``, ``1,200 ranks``"""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def percent(part: float, decimals: int = 1) -> str:
    """A part as percentage, without a minus before zero."""
    return f"{round(part, decimals + 2) + 0.0:.{decimals}%}"


def seconds(value: float | None) -> str:
    """A time in three digits with a unit that suits it, or a dash."""
    if value is None:
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if abs(value) >= NEARLY * scale or value == 0:
            return f"{_digits(value / scale)} {unit}"
    return f"{_digits(value * 1e6)} µs"


def size(value: float | None) -> str:
    """A number of bytes in three digits with a decimal unit, or a dash."""
    if value is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if value < NEARLY * 1000:
            return f"{_digits(value)} {unit}"
        value /= 1000
    return f"{_digits(value)} TB"


def duration(value: float, *, brief: bool = False) -> str:
    """A time as people plan with it, microseconds to days; in words above a minute unless ``brief``."""
    for unit, short, scale in (("day", "d", 86400.0), ("hour", "h", 3600.0), ("minute", "min", 60.0)):
        if value >= NEARLY * scale:
            digits = _digits(value / scale)
            if brief:
                return f"{digits} {short}"
            return f"{digits} {unit}" + ("" if float(digits) == 1 else "s")
    return seconds(value)


def amount(value: float, *, brief: bool = False) -> str:
    """A number of things in three digits: 512, 4,100, 1.25 million (``brief``: 1.25 M)."""
    for unit, short, scale in (("trillion", "T", 1e12), ("billion", "G", 1e9), ("million", "M", 1e6)):
        if value >= NEARLY * scale:
            return f"{_digits(value / scale)} {short if brief else unit}"
    if value < NEARLY * 1000:
        return _digits(value)
    return f"{float(f'{value:.3g}'):,.0f}"


def traffic_unit(settings: ReplaySettings) -> str:
    """What traffic is counted in: time where it is known how much passes in a second, else tokens."""
    if settings.window_s is not None:
        return "time"
    if settings.tokens_per_window is not None:
        return "tokens"
    return "windows" if settings.picks_per_window is None else "expert picks of a layer"


def traffic_of(settings: ReplaySettings, windows: float, *, brief: bool = False) -> str:
    """A number of windows as time, tokens, or whatever is known about them; ``brief`` for tables."""
    if settings.window_s is not None:
        return duration(windows * settings.window_s, brief=brief)
    each = settings.tokens_per_window or settings.picks_per_window or 1.0
    number = amount(windows * each, brief=brief)
    return number if brief else f"{number} {traffic_unit(settings)}"


def _digits(value: float) -> str:
    decimals = next((d for d, end in ((2, 10), (1, 100)) if abs(round(value, d)) < end), 0)
    decimals = 0 if float(value).is_integer() else decimals
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # no minus before zero


def signed(value: float) -> str:
    """A time with its sign, plus included."""
    return f"+{seconds(value)}" if value > 0 else minus(seconds(value))


def minus(text: str) -> str:
    """The true minus sign before numbers, as wide as a plus."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)
