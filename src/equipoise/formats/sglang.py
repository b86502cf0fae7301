"""SGLang: ``stat`` dumps of the expert distribution recorder, and ``--init-expert-location`` files.

Layouts as in SGLang 0.5: ``srt/eplb/expert_distribution.py`` writes the dumps and
``srt/eplb/expert_location.py`` reads the placements. Both count all hidden layers of the model: dense ones
are rows of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, PlacementError
from ..placement import Placement
from . import torchfile
from .base import (
    Blocks,
    LoadFormat,
    PlacementFormat,
    PlacementRows,
    ReadOptions,
    Recording,
    id_array,
    load_array,
)
from .jsonstream import JsonReader, read_json
from .models import is_counted, model_of_moe, rows_named

COUNTS = "logical_count"
MAP = "physical_to_logical_map"
LAYOUT = "logical_count_layout"
BY_RANK = "rank_layer_expert"
MAX_LAYERS = 1 << 16
MAX_TABLE = 1 << 24
"""numbers in a placement file: as text, 100 MB"""


def _read_stat(path: Path, options: ReadOptions) -> Recording:
    with path.open("rb") as file:
        zipped = torchfile.is_torch(file.read(4))
    counts, layout = _stat_from_torch(path) if zipped else _stat_from_json(path, options)
    notes = []
    if layout is not None:
        if layout != BY_RANK:
            raise FormatError(path, f"has the {LAYOUT} {str(layout)[:40]!r}, known is {BY_RANK!r}")
        if counts.ndim != 3:
            raise FormatError(
                path, f"{COUNTS} must be [ranks, layers, experts] by its {LAYOUT}, got {list(counts.shape)}"
            )
        notes.append(f"counts of {len(counts)} source ranks added up ({LAYOUT})")
        counts = counts.sum(axis=0)
    if counts.ndim == 2:
        counts = counts[None]
    return Recording(
        counts,
        num_model_layers=counts.shape[1],
        every_layer=True,
        source=f"SGLang stat dump {path.name}",
        ring=True,
        notes=tuple(notes),
    )


def _stat_from_torch(path: Path) -> tuple[npt.NDArray[Any], Any]:
    content = torchfile.load(path)
    if not isinstance(content, dict) or COUNTS not in content:
        raise FormatError(path, f"must be a dict with {COUNTS!r}, got {torchfile.described(content)}")
    counts = load_array(path, COUNTS, torchfile.numbers(path, COUNTS, content[COUNTS]))
    return counts, content.get(LAYOUT)


def _stat_from_json(path: Path, options: ReadOptions) -> tuple[npt.NDArray[Any], Any]:
    counts, layout, others = None, None, []
    with JsonReader(path, options.progress) as reader:
        for key in reader.members():
            if key == COUNTS and reader.at("["):
                counts = stack(path, COUNTS, reader.items())
            elif key == LAYOUT:
                layout = reader.value()
            else:
                reader.value()
                others.append(key)
        reader.end()
    if counts is None:
        found = ", ".join(key[:30] for key in others[:8]) or "none"
        raise FormatError(path, f"has no list {COUNTS!r} at its top level; its keys are {found}")
    return load_array(path, COUNTS, counts), layout


def stack(path: Path, field: str, items: Iterable[Any]) -> npt.NDArray[Any]:
    """The rows (or tables) of a streamed list as one array; each is turned into numbers at once."""
    parts = Blocks()
    shape = None
    for index, item in enumerate(items):
        part = load_array(path, f"{field}[{index}]", item, (1, 2))
        shape = part.shape if shape is None else shape
        if part.ndim == 1 and index == MAX_LAYERS:
            raise FormatError(path, f"{field} has more than {MAX_LAYERS} layers")
        if part.shape != shape:
            raise FormatError(
                path, f"{field}[{index}] has the shape {list(part.shape)}, others {list(shape)}"
            )
        parts.append(part)
    if shape is None:
        raise FormatError(path, f"{field} is empty")
    return parts.stacked()


def _read_placement(path: Path) -> PlacementRows:
    with path.open("rb") as file:
        zipped = torchfile.is_torch(file.read(4))
    content = torchfile.load(path) if zipped else read_json(path)
    if not isinstance(content, dict) or MAP not in content:
        raise FormatError(path, f"must be an object with {MAP!r}, got {torchfile.described(content)}")
    others = [key for key in content if key != MAP]
    if others:
        raise FormatError(
            path, f"has the key {str(others[0])[:40]!r} beside {MAP!r}; SGLang accepts no other key"
        )
    value = content[MAP]
    if not isinstance(value, list):
        value = torchfile.numbers(path, MAP, value)
    table = id_array(path, MAP, value, 2)
    return PlacementRows(
        table, layers=tuple(range(len(table))), num_model_layers=len(table), every_layer=True
    )


def _encode_placement(placement: Placement, suffix: str) -> bytes:
    model = model_of_moe(placement.num_layers, placement.num_experts)
    if is_counted(placement.layers, placement.num_model_layers) and model is not None and model.dense:
        raise PlacementError(
            f"SGLang's file has a row for every hidden layer, and {placement.num_layers} MoE layers of "
            f"{placement.num_experts} experts are those of {model.name}, whose {rows_named(model.dense)} are dense: "
            f"give the model's numbers of the layers (--layers) and its number of layers (--model-layers)"
        )
    rows = placement.num_model_layers or placement.layers[-1] + 1
    if rows * placement.num_slots > MAX_TABLE:
        raise PlacementError(
            f"SGLang's file has a row for each of {rows} layers of the model: too many to write"
        )
    # Dense layers need a row with every expert in it; the engine never looks at it.
    table = np.tile(np.arange(placement.num_slots) % placement.num_experts, (rows, 1))
    table[list(placement.layers)] = placement.phy2log
    if suffix == ".pt":
        return torchfile.encode({MAP: table})
    return (json.dumps({MAP: table.tolist()}) + "\n").encode()


LOADS = LoadFormat(
    "sglang",
    "SGLang stat dump: .pt, or JSON with logical_count",
    lambda peek: peek.has_key(COUNTS),
    _read_stat,
)
PLACEMENT = PlacementFormat(
    "sglang",
    "SGLang --init-expert-location: .json or .pt",
    (".json", ".pt"),
    lambda peek: peek.has_key(MAP),
    _read_placement,
    _encode_placement,
    "model",
)
