"""vLLM: expert-load histories in one JSON document, and JSON lines of statistics and initial mappings.

The history (``load_history``) is what the ADRS benchmark publishes. The JSON lines are those of a proposed
change to vLLM (``eplb_load_stats`` and ``eplb_initial_mapping``, version 1); they count MoE layers from 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..placement import Placement
from .base import (
    LoadFormat,
    PlacementFormat,
    PlacementRows,
    ReadOptions,
    Recording,
    fold,
    id_array,
    json_with,
    layer_number,
    load_array,
)
from .jsonstream import JsonReader

HISTORY = "load_history"
LOAD = "logical_expert_load"
STATS = "eplb_load_stats"
MAPPING = "eplb_initial_mapping"
ASSIGNMENTS = "initial_global_assignments"
MAX_LINE = 1 << 28


def _detect_history(path: Path, head: bytes) -> bool:
    return json_with(head, HISTORY)


def _read_history(path: Path, options: ReadOptions) -> Recording:
    steps: list[npt.NDArray[Any]] = []
    with JsonReader(path, options.progress) as reader:
        for key in reader.members():
            if key != HISTORY:
                reader.value()
                continue
            for index, entry in enumerate(reader.items()):
                place = f"{HISTORY}[{index}]"
                if not isinstance(entry, dict) or LOAD not in entry:
                    raise FormatError(path, f"{place} has no {LOAD!r}")
                step = load_array(path, f"{place}.{LOAD}", entry[LOAD], (2,))
                if steps and step.shape != steps[0].shape:
                    raise FormatError(
                        path, f"{place}.{LOAD} is {list(step.shape)}, earlier steps {list(steps[0].shape)}"
                    )
                steps.append(step)
        reader.end()
    if not steps:
        raise FormatError(path, f"has no steps in {HISTORY!r}")
    return Recording(np.stack(steps), source=f"expert-load history {path.name}")


def _detect_lines(kind: str, head: bytes) -> bool:
    return json_with(head, "record_type") and re.search(rb'"%s"' % kind.encode(), head) is not None


def _records(
    path: Path, kind: str, options: ReadOptions | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a kind with their places; lines of other kinds are passed over."""
    size = path.stat().st_size
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise FormatError(path, f"line {number} is longer than {MAX_LINE} bytes: no JSON lines")
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                raise FormatError(path, f"line {number} is not valid JSON (cut short?)") from None
            if not isinstance(record, dict):
                raise FormatError(path, f"line {number} must be an object, got {type(record).__name__}")
            if record.get("record_type") == kind:
                if record.get("version") != 1:
                    raise FormatError(
                        path, f"line {number} has version {str(record.get('version'))[:20]}, expected 1"
                    )
                yield f"line {number}", record
            if options is not None and options.progress is not None:
                options.progress(file.tell(), size)


def _field(path: Path, place: str, record: dict[str, Any], name: str, kind: type) -> Any:
    value = record.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FormatError(path, f"{place}: {name!r} must be {kind.__name__}, got {str(value)[:40]!r}")
    return value


def _read_stats(path: Path, options: ReadOptions) -> Recording:
    counts: list[npt.NDArray[Any]] = []
    steps: list[int] = []
    for place, record in _records(path, STATS, options):
        name = f"{place}: expert_load"
        physical = load_array(path, name, _field(path, place, record, "expert_load", list), (2,))
        phy2log = id_array(path, f"{place}: p2l_map", _field(path, place, record, "p2l_map", list), 2)
        logical = fold(path, name, physical, phy2log)
        if counts and logical.shape != counts[0].shape:
            raise FormatError(
                path,
                f"{place} has {list(logical.shape)} layers x experts, earlier lines {list(counts[0].shape)}",
            )
        step = _field(path, place, record, "step", int)
        if not -1 < step < 2**62 or (steps and step <= steps[-1]):
            raise FormatError(path, f"{place}: step {str(step)[:20]} does not come after the one before")
        counts.append(logical)
        steps.append(step)
    if not counts:
        raise FormatError(path, f"has no line with record_type {STATS!r}")
    first = np.array(steps, dtype=np.int64)
    return Recording(
        np.stack(counts), steps=np.stack([first, first + 1], axis=1), source=f"vLLM statistics {path.name}"
    )


def _read_mapping(path: Path) -> PlacementRows:
    found = list(_records(path, MAPPING))
    if len(found) != 1:
        raise FormatError(path, f"must have one line with record_type {MAPPING!r}, has {len(found)}")
    place, record = found[0]
    table = _field(path, place, record, ASSIGNMENTS, dict)
    rows = {layer_number(path, f"{place}: {ASSIGNMENTS}", key): slots for key, slots in table.items()}
    if sorted(rows) != list(range(len(rows))) or len(rows) != len(table):
        raise FormatError(path, f"{place}: {ASSIGNMENTS} must have the layers 0 to {len(table) - 1}")
    phy2log = id_array(path, f"{place}: {ASSIGNMENTS}", [rows[layer] for layer in range(len(rows))], 2)
    num_slots = _field(path, place, record, "num_slots", int)
    if num_slots != phy2log.shape[1]:
        raise FormatError(
            path, f"{place}: num_slots is {num_slots}, but layers have {phy2log.shape[1]} slots"
        )
    redundant = _field(path, place, record, "num_redundant_experts", int)
    return PlacementRows(phy2log, num_experts=num_slots - redundant)


def _write_mapping(placement: Placement, path: Path) -> None:
    record = {
        "record_type": MAPPING,
        "version": 1,
        "num_redundant_experts": placement.num_slots - placement.num_experts,
        "num_slots": placement.num_slots,
        ASSIGNMENTS: {str(layer): slots for layer, slots in enumerate(placement.phy2log.tolist())},
    }
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")


HISTORY_LOADS = LoadFormat(
    "adrs", "ADRS or vLLM expert-load JSON with load_history", _detect_history, _read_history
)
STATS_LOADS = LoadFormat(
    "vllm", "vLLM statistics: JSON lines", lambda path, head: _detect_lines(STATS, head), _read_stats
)
PLACEMENT = PlacementFormat(
    "vllm",
    "vLLM initial mapping: JSON lines",
    (".jsonl", ".json"),
    lambda path, head: _detect_lines(MAPPING, head),
    _read_mapping,
    _write_mapping,
)
