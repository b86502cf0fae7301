"""Options that several commands share, and what their text means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ArgumentError, FileAccessError
from ..topology import Topology

Ranks = Annotated[int, typer.Option("--ranks", help="EP ranks (GPUs).")]
Nodes = Annotated[int, typer.Option("--nodes", help="Servers; ranks are contiguous per node.")]
Groups = Annotated[
    int, typer.Option("--groups", help="Expert groups; kept on nodes where the nodes divide them.")
]
Redundant = Annotated[
    int, typer.Option("--redundant", help="Slots per layer beyond one for each expert; all ranks together.")
]
PolicyName = Annotated[str, typer.Option("--policy", help="Name of a policy, as in equipoise.policies.")]
Seed = Annotated[int, typer.Option("--seed", help="Same input and seed, same plan.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LoadFormatName = Annotated[
    str | None, typer.Option("--from", help="Format of LOAD; found from its content unless given.")
]


def topology_for(num_experts: int, ranks: int, redundant: int, nodes: int, groups: int) -> Topology:
    """The topology that the options describe for a model of ``num_experts`` experts.

    Raises `ArgumentError` naming the option; for slots that the ranks do not divide, with the nearest number
    of redundant slots that works.
    """
    for name, value, least in (("ranks", ranks, 1), ("nodes", nodes, 1), ("groups", groups, 1)):
        if value < least:
            raise ArgumentError(f"--{name} must be at least {least}, got {value}")
    if redundant < 0:
        raise ArgumentError(f"--redundant must not be negative, got {redundant}")
    slots = num_experts + redundant
    if slots % ranks:
        more = redundant + -slots % ranks
        fewer = redundant - slots % ranks
        ways = f"{fewer} or {more}" if fewer >= 0 else f"{more}"
        raise ArgumentError(
            f"{num_experts} experts + --redundant {redundant} are {slots} slots, not divisible by --ranks {ranks}: "
            f"use --redundant {ways}"
        )
    return Topology.from_slots(slots, ranks, nodes, groups)


def parse_max_moves(text: str | None) -> int | float | None:
    """``--max-moves``: an integer is a number of fetches; ``5%`` and ``0.05`` are shares of all slots."""
    if text is None:
        return None
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100.0
        return float(text) if "." in text else int(text)
    except ValueError:
        raise ArgumentError(
            f"--max-moves must be a number of fetches (100) or a share of all slots (5% or 0.05), got {text!r}"
        ) from None


def check_output(path: Path, format_name: str) -> None:
    """Fail before planning, not after it, where a placement file could not be written.

    Raises `ArgumentError` for an unknown format or a suffix that it does not have, and `FileAccessError`.
    """
    from ..formats import PLACEMENT_FORMATS
    from ..formats.base import atomic_output

    if format_name not in PLACEMENT_FORMATS:
        known = ", ".join(PLACEMENT_FORMATS)
        raise ArgumentError(f"unknown placement format {format_name!r}; known are {known}")
    suffixes = PLACEMENT_FORMATS[format_name].suffixes
    if path.suffix not in suffixes:
        raise ArgumentError(f"{path} must end in {' or '.join(suffixes)} for --format {format_name}")
    try:
        with atomic_output(path):
            raise _OnlyTrying
    except _OnlyTrying:
        pass
    if path.exists() and not path.is_file():
        raise FileAccessError(path, "is not a plain file")


class _OnlyTrying(Exception):
    """Leaves `atomic_output` without writing."""
