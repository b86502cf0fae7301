"""What a sweep is asked: loads, and grids of settings, from a TOML file.

::

    deadline_s = 3600                  # a point that takes longer is given up

    [loads.chat]                       # any number of recordings, by names of your own
    path = "chat.safetensors"          # beside the spec, or absolute
    window_steps = 8

    [grid]                             # every combination; [[grid]] several times for several grids
    ranks = [16, 32]
    redundant = [0, 32]
    policy = ["greedy", "robust"]

    [cost]                             # unless given, that of the model with the loads' shape
    model = "deepseek-v3"
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..control import cost_model
from ..control.forecast import FORECASTS
from ..errors import ArgumentError, FormatError
from ..formats import load_trace
from ..formats.toml import nearest, read_toml
from ..policy.registry import policies
from ..trace import LoadTrace

MAX_POINTS = 1_000_000
DEADLINE_S = 3600.0


@dataclass(frozen=True)
class Point:
    """One replay of a sweep: a load, a topology, and the settings of a policy."""

    load: str
    """name of the load in the spec"""
    ranks: int
    """EP ranks ``P``"""
    redundant: int = 0
    """slots of a layer beyond one for each expert, all ranks together"""
    nodes: int = 1
    groups: int = 1
    policy: str = "robust"
    forecast: str = "windows"
    interval: int = 8
    """windows between two re-plannings"""
    history: int = 8
    """windows that a plan is made from"""
    max_moves: int | float | None = None
    """budget of a re-planning; None for none"""
    gate: bool = False
    """whether plans have to pay for their moves"""
    horizon: int | None = None
    """windows over which they must; the interval unless given"""
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self)


@dataclass(frozen=True)
class LoadFile:
    """A recording as the spec names it; the fields are arguments of `load_trace`."""

    path: Path
    format: str | None = None
    window_steps: int | None = None
    window_tokens: int | None = None
    experts: int | None = None

    def load(self) -> LoadTrace:
        """Read it."""
        return load_trace(
            self.path,
            self.format,
            window_steps=self.window_steps,
            window_tokens=self.window_tokens,
            num_experts=self.experts,
        )


@dataclass(frozen=True)
class Spec:
    """A sweep: its points in the order of the grid, each once."""

    loads: Mapping[str, LoadFile]
    points: tuple[Point, ...]
    cost: Mapping[str, Any]
    """arguments of `cost_model`; empty for the model of the loads' shape"""
    deadline_s: float = DEADLINE_S


def load_spec(path: str | Path) -> Spec:
    """Read the spec of a sweep.

    Raises
    ------
    FileAccessError
        if the file cannot be read
    FormatError
        if it is no such spec; names the key, what was found and what it must be
    """
    path = Path(path)
    content = read_toml(path, "name the TOML file of a sweep")
    try:
        _known(content, ("loads", "grid", "cost", "deadline_s"), "the spec")
        loads = _loads(content.get("loads"), path.parent)
        grids = content.get("grid")
        points = dict.fromkeys(
            point
            for grid in (grids if isinstance(grids, list) else [grids])
            for point in _points(grid, tuple(loads))
        )
        deadline = content.get("deadline_s", DEADLINE_S)
        if (
            isinstance(deadline, bool)
            or not isinstance(deadline, (int, float))
            or not 0 < deadline < math.inf
        ):
            raise _Wrong(f"deadline_s must be seconds, above 0, got {deadline!r}")
        return Spec(loads, tuple(points), _cost(content.get("cost", {})), float(deadline))
    except (_Wrong, ArgumentError) as error:
        raise FormatError(path, str(error)) from None


class _Wrong(Exception):
    """What is wrong with a spec, without the name of its file."""


_Check = tuple[Callable[[Any], bool], str]


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _budget(value: Any) -> bool:
    share = isinstance(value, float) and 0 <= value <= 1
    return value == "none" or share or _whole(0)(value)


_POSITIVE: _Check = (_whole(1), "a whole number, at least 1")
_COUNT: _Check = (_whole(0), "a whole number, not negative")
_TEXT: _Check = (lambda value: isinstance(value, str), "a text")
_NUMBER: _Check = (lambda value: isinstance(value, (int, float)) and not isinstance(value, bool), "a number")
_SWITCH: _Check = (lambda value: isinstance(value, bool), "true or false")

_AXES: dict[str, _Check] = {
    "load": _TEXT,
    **dict.fromkeys(("ranks", "nodes", "groups", "interval", "history", "horizon"), _POSITIVE),
    **dict.fromkeys(("redundant", "seed"), _COUNT),
    "policy": (lambda value: isinstance(value, str) and value in policies, "a policy"),
    "forecast": (
        lambda value: isinstance(value, str) and value in FORECASTS,
        f"one of {', '.join(FORECASTS)}",
    ),
    "max_moves": (_budget, 'fetches (100), a share of all slots (0.05), or "none"'),
    "gate": _SWITCH,
}
_FILE: dict[str, _Check] = {
    "path": _TEXT,
    "format": _TEXT,
    **dict.fromkeys(("window_steps", "window_tokens", "experts"), _POSITIVE),
}
_COST: dict[str, _Check] = {
    **dict.fromkeys(("model", "dtype", "accelerator", "intra", "inter"), _TEXT),
    **dict.fromkeys(("token_us", "fixed_us"), _NUMBER),
    "tile": _POSITIVE,
}


def _table(found: Any, name: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise _Wrong(f"{name} must be a table, got {'nothing' if found is None else type(found).__name__}")
    return found


def _known(table: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for name in table:
        if name not in names:
            raise _Wrong(f"{where} has the key {name[:40]!r}{nearest(name, names)}")


def _checked(name: str, value: Any, check: _Check) -> Any:
    right, words = check
    if not right(value):
        raise _Wrong(f"{name} must be {words}, got {value!r:.80}")
    return value


def _loads(found: Any, folder: Path) -> dict[str, LoadFile]:
    loads = {}
    for name, entry in _table(found, "loads").items():
        where = f"loads.{name}"
        table = _table(entry, where)
        _known(table, tuple(_FILE), where)
        if "path" not in table:
            raise _Wrong(f"{where} has no path: name the recording's file or folder")
        values = {key: _checked(f"{where}.{key}", value, _FILE[key]) for key, value in table.items()}
        loads[name] = LoadFile(**values | {"path": folder / values["path"]})
    if not loads:
        raise _Wrong("loads is empty: name a recording as [loads.NAME] with its path")
    return loads


def _points(found: Any, loads: tuple[str, ...]) -> Iterator[Point]:
    """Every combination of a grid, the last key changing fastest."""
    grid = _table(found, "grid")
    _known(grid, tuple(_AXES), "grid")
    axes: dict[str, list[Any]] = {"load": list(loads)}
    for part in fields(Point):
        if part.name in grid:
            given = grid[part.name]
            values = given if isinstance(given, list) else [given]
            if not values:
                raise _Wrong(f"grid.{part.name} is empty: give a value, or leave it out")
            axes[part.name] = [_checked(f"grid.{part.name}", value, _AXES[part.name]) for value in values]
        elif part.default is MISSING and part.name not in axes:
            raise _Wrong(f"grid has no {part.name}: give {_AXES[part.name][1]}, or a list")
    for name in axes["load"]:
        if name not in loads:
            raise _Wrong(f"grid.load names {name!r}{nearest(name, loads)}")
    number = math.prod(len(values) for values in axes.values())
    if number > MAX_POINTS:
        raise _Wrong(f"grid has {number:,} points, more than {MAX_POINTS:,}: sweep fewer")
    for chosen in itertools.product(*axes.values()):
        settings = dict(zip(axes, chosen, strict=True))
        if settings.get("max_moves") == "none":
            settings["max_moves"] = None
        yield Point(**settings)


def _cost(found: Any) -> dict[str, Any]:
    table = _table(found, "cost")
    _known(table, tuple(_COST), "cost")
    figures = {name: _checked(f"cost.{name}", value, _COST[name]) for name, value in table.items()}
    for name in ("token_us", "fixed_us"):
        if name in figures:
            figures[name.replace("_us", "_s")] = figures.pop(name) * 1e-6
    if figures:
        cost_model(**{"model": "deepseek-v3", **figures})  # a name that is unknown, a figure out of range
    return figures
