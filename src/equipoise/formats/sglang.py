"""SGLang: ``stat`` dumps of the expert distribution recorder, and ``--init-expert-location`` files.

Layouts as in SGLang 0.5: ``srt/eplb/expert_distribution.py`` writes the dumps and
``srt/eplb/expert_location.py`` reads the placements. Both count all hidden layers of the model: dense ones
are rows of their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, PlacementError
from ..placement import Placement
from . import torchfile
from .base import (
    MAX_CELLS,
    LoadFormat,
    PlacementFormat,
    PlacementRows,
    ReadOptions,
    Recording,
    id_array,
    json_with,
    load_array,
)
from .jsonstream import JsonReader, read_json

COUNTS = "logical_count"
MAP = "physical_to_logical_map"


def _detect_stat(path: Path, head: bytes) -> bool:
    return json_with(head, COUNTS) or torchfile.mentions(path, head, (COUNTS.encode(),))


def _read_stat(path: Path, options: ReadOptions) -> Recording:
    if path.open("rb").read(4).startswith((torchfile.ZIP, torchfile.PICKLE)):
        counts = _stat_from_torch(path)
    else:
        counts = _stat_from_json(path, options)
    if counts.ndim == 2:
        counts = counts[None]
    return Recording(
        counts, num_model_layers=counts.shape[1], source=f"SGLang stat dump {path.name}", ring=True
    )


def _stat_from_torch(path: Path) -> npt.NDArray[Any]:
    content = torchfile.load(path)
    if not isinstance(content, dict) or COUNTS not in content:
        raise FormatError(path, f"must be a dict with {COUNTS!r}, got {_keys(content)}")
    return load_array(path, COUNTS, torchfile.numbers(path, COUNTS, content[COUNTS]))


def _stat_from_json(path: Path, options: ReadOptions) -> npt.NDArray[Any]:
    counts = None
    with JsonReader(path, options.progress) as reader:
        for key in reader.members():
            if key == COUNTS and reader.at("["):
                counts = stack(path, COUNTS, reader.items())
            else:
                reader.value()
        reader.end()
    if counts is None:
        raise FormatError(path, f"has no list {COUNTS!r}")
    return load_array(path, COUNTS, counts)


def stack(path: Path, field: str, items: Any) -> npt.NDArray[Any]:
    """The rows (or tables) of a streamed list as one array; each is turned into numbers at once."""
    parts: list[npt.NDArray[Any]] = []
    for index, item in enumerate(items):
        part = load_array(path, f"{field}[{index}]", item, (1, 2))
        if parts and part.shape != parts[0].shape:
            raise FormatError(
                path, f"{field}[{index}] has the shape {list(part.shape)}, others {list(parts[0].shape)}"
            )
        parts.append(part)
    if not parts:
        raise FormatError(path, f"{field} is empty")
    return np.stack(parts)


def _keys(content: Any) -> str:
    if isinstance(content, dict):
        return "the keys " + (", ".join(str(key)[:30] for key in list(content)[:8]) or "(none)")
    return f"a {type(content).__name__}"


def _detect_placement(path: Path, head: bytes) -> bool:
    return json_with(head, MAP) or torchfile.mentions(path, head, (MAP.encode(),))


def _read_placement(path: Path) -> PlacementRows:
    if path.open("rb").read(4).startswith((torchfile.ZIP, torchfile.PICKLE)):
        content = torchfile.load(path)
    else:
        content = read_json(path)
    if not isinstance(content, dict) or MAP not in content:
        raise FormatError(path, f"must be an object with {MAP!r}, got {_keys(content)}")
    others = [key for key in content if key != MAP]
    if others:
        raise FormatError(
            path, f"has the key {str(others[0])[:40]!r} beside {MAP!r}; SGLang accepts no other key"
        )
    value = content[MAP]
    if not isinstance(value, list):
        value = torchfile.numbers(path, MAP, value)
    table = id_array(path, MAP, value, 2)
    return PlacementRows(table, layers=tuple(range(len(table))), num_model_layers=len(table))


def _write_placement(placement: Placement, path: Path) -> None:
    rows = placement.num_model_layers or placement.layers[-1] + 1
    if rows * placement.num_slots > MAX_CELLS:
        raise PlacementError(
            f"SGLang's file has a row for each of {rows} layers of the model: too many to write"
        )
    # Dense layers need a row with every expert in it; the engine never looks at it.
    table = np.tile(np.arange(placement.num_slots) % placement.num_experts, (rows, 1))
    table[list(placement.layers)] = placement.phy2log
    if path.suffix == ".pt":
        torchfile.save(path, {MAP: table})
    else:
        path.write_text(json.dumps({MAP: table.tolist()}) + "\n", encoding="utf-8")


LOADS = LoadFormat(
    "sglang",
    "SGLang stat dump: .pt, or JSON with logical_count",
    _detect_stat,
    _read_stat,
)
PLACEMENT = PlacementFormat(
    "sglang",
    "SGLang --init-expert-location: .json or .pt",
    (".json", ".pt"),
    _detect_placement,
    _read_placement,
    _write_placement,
)
