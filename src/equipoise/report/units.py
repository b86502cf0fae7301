"""Numbers and names as readers want them: three digits, a unit that suits, a sign that can be seen."""

from __future__ import annotations

import re

from ..topology import Topology

NEARLY = 0.9995
"""From this part of a unit on, three digits round up to all of it."""


def topology_name(topology: Topology) -> str:
    """``32 ranks x 9 slots, 4 nodes, 8 groups``"""
    name = f"{topology.num_ranks} ranks x {topology.slots_per_rank} slots"
    if topology.num_nodes > 1:
        sizes = [topology.nodes.count(node) for node in range(topology.num_nodes)]
        name += f", {topology.num_nodes} nodes" + (
            "" if topology.even else f" of {', '.join(map(str, sizes))} ranks"
        )
    if topology.num_groups > 1:
        name += f", {topology.num_groups} groups"
    return name


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


def _digits(value: float) -> str:
    value += 0.0  # no minus before zero
    if float(value).is_integer():
        return f"{value:.0f}"
    decimals = next((d for d, end in ((2, 10), (1, 100)) if abs(round(value, d)) < end), 0)
    return f"{value:.{decimals}f}"


def signed(value: float) -> str:
    """A time with its sign, plus included."""
    return f"+{seconds(value)}" if value > 0 else minus(seconds(value))


def minus(text: str) -> str:
    """The true minus sign before numbers, as wide as a plus."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)
