"""vLLM: expert-load histories in one JSON document, and JSON lines of statistics and initial mappings.

The history (``load_history``) is what the ADRS benchmark publishes. The JSON lines are those of a proposed
change to vLLM (``eplb_load_stats`` and ``eplb_initial_mapping``, version 1); they count MoE layers from 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..placement import Placement
from ..topology import MAX_SLOTS
from .base import (
    MAX_CELLS,
    Blocks,
    LoadFormat,
    Peek,
    PlacementFormat,
    PlacementRows,
    Progress,
    ReadOptions,
    Recording,
    fold,
    id_array,
    layer_number,
    load_array,
)
from .jsonstream import JsonReader, parse_json
from .source import check_plain

HISTORY = "load_history"
LOAD = "logical_expert_load"
STATS = "eplb_load_stats"
MAPPING = "eplb_initial_mapping"
ASSIGNMENTS = "initial_global_assignments"
MAX_LINE = 1 << 23


def _read_history(path: Path, options: ReadOptions) -> Recording:
    steps, shape = Blocks(), None
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
                shape = step.shape if shape is None else shape
                if step.shape != shape:
                    raise FormatError(
                        path, f"{place}.{LOAD} is {list(step.shape)}, earlier steps {list(shape)}"
                    )
                steps.append(step)
        reader.end()
    if shape is None:
        raise FormatError(path, f"has no steps in {HISTORY!r}")
    return Recording(steps.stacked(), counted=True, source=f"expert-load history {path.name}")


def _detect_lines(kind: str, peek: Peek) -> bool:
    return not peek.pickle and peek.has_key("record_type") and f'"{kind}"'.encode() in peek.head


def _lines(path: Path, progress: Progress | None = None) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Numbers and objects of the lines; None for a line without an end.

    A server that is killed while it appends leaves such a line, and what the next one appends stands in the same
    line: that gives None first and then the object.
    """
    check_plain(path)
    size = path.stat().st_size
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise FormatError(path, f"line {number} is longer than {MAX_LINE} bytes: no JSON lines")
            if line.strip():
                text = line.strip(b"\x00 \t\r\n")  # zeros: what a power cut leaves of a line
                if not text.endswith(b"}"):
                    yield number, None
                else:
                    yield from _objects(path, number, text)
            if progress is not None:
                progress(file.tell(), size)


def _objects(path: Path, number: int, text: bytes) -> Iterator[tuple[int, dict[str, Any] | None]]:
    start = text.rfind(b'{"record_type"')
    for whole in (True, False):
        try:
            record = parse_json(path, text if whole else text[start:], f"line {number}")
        except FormatError:
            raise
        except (ValueError, RecursionError):
            if whole and start > 0:
                continue
            raise FormatError(path, f"line {number} is not valid JSON (damaged?)") from None
        if not isinstance(record, dict):
            raise FormatError(path, f"line {number} must be an object, got {type(record).__name__}")
        if not whole:
            yield number, None
        yield number, record
        return


def _is_kind(path: Path, number: int, record: dict[str, Any], kind: str) -> bool:
    """Whether a record is of a kind; `FormatError` if it is of a version that is not known."""
    if record.get("record_type") != kind:
        return False
    version = record.get("version")
    if version != 1 or isinstance(version, bool):
        raise FormatError(path, f"line {number} has version {str(version)[:20]}, expected 1")
    return True


def _field(path: Path, place: str, record: dict[str, Any], name: str, kind: type) -> Any:
    value = record.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FormatError(path, f"{place}: {name!r} must be {kind.__name__}, got {str(value)[:40]!r}")
    return value


@dataclass
class _Run:
    """What one server appended: the counts ``[M, E]`` of each step."""

    counts: list[npt.NDArray[Any]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def shape(self) -> tuple[int, int]:
        """Layers and experts; lines of a server that lost its last experts show fewer."""
        return len(self.counts[0]), max(counts.shape[1] for counts in self.counts)


def _read_stats(path: Path, options: ReadOptions) -> Recording:
    runs: list[_Run] = []
    cut: list[int] = []
    pending = False  # whether a line without an end came after the last record
    for number, record in _lines(path, options.progress):
        if record is None:
            cut.append(number)
            pending = True
            continue
        if not _is_kind(path, number, record, STATS):
            continue
        step, counts = _read_record(path, f"line {number}", record)
        if not runs or step <= runs[-1].steps[-1]:
            runs.append(_Run())  # steps count from 0 in every server
        elif pending and cut[-1] != number:
            raise FormatError(path, f"line {cut[-1]} is not valid JSON (cut short?)")
        pending = False
        run = runs[-1]
        if run.counts and len(counts) != len(run.counts[0]):
            found, before = [list(c.shape) for c in (counts, run.counts[0])]
            raise FormatError(path, f"line {number} has {found} layers x experts, earlier lines {before}")
        run.counts.append(counts)
        run.steps.append(step)
    if not runs:
        raise FormatError(path, f"has no whole line with record_type {STATS!r}")
    return _joined(path, runs, _about_cuts(cut))


def _about_cuts(cut: list[int]) -> list[str]:
    if not cut:
        return []
    lines = (
        ("line " if len(cut) == 1 else "lines ") + ", ".join(map(str, cut[:5])) + (", ..." if cut[5:] else "")
    )
    return [f"{lines} left out: without an end, as when a server is stopped while it writes"]


def _joined(path: Path, runs: list[_Run], notes: list[str]) -> Recording:
    """The runs of a file one behind the other, if they are of one model; else those of the last run's model."""
    wanted = runs[-1].shape()
    if wanted[0] * wanted[1] * sum(len(run.counts) for run in runs) > MAX_CELLS:
        raise FormatError(path, "holds more counts than fit into memory")
    kept = [run for run in runs if run.shape() == wanted]
    if len(runs) > 1:
        text = f"{len(runs)} runs appended to one file, the steps of later ones counted on"
        if len(kept) < len(runs):
            lost = sum(len(run.counts) for run in runs if run.shape() != wanted)
            text += f"; {lost} windows of other layers x experts than {list(wanted)} left out"
        notes.append(text)
    counts, steps, offset = [], [], 0
    for run in kept:
        for step, part in zip(run.steps, run.counts, strict=True):
            counts.append(np.pad(part, ((0, 0), (0, wanted[1] - part.shape[1]))))
            steps.append(step - run.steps[0] + offset if offset else step)
        offset = steps[-1] + 1
        if offset >= 1 << 62:
            raise FormatError(path, f"has steps up to {offset - 1}, which are no step numbers")
    first = np.array(steps, dtype=np.int64)
    return Recording(
        np.stack(counts),
        steps=np.stack([first, first + 1], axis=1),
        counted=True,
        source=f"vLLM statistics {path.name}",
        notes=tuple(notes),
    )


def _read_record(path: Path, place: str, record: dict[str, Any]) -> tuple[int, npt.NDArray[Any]]:
    """The step and the logical counts ``[M, E]`` of a record."""
    name = f"{place}: expert_load"
    physical = load_array(path, name, _field(path, place, record, "expert_load", list), (2,))
    phy2log = id_array(path, f"{place}: p2l_map", _field(path, place, record, "p2l_map", list), 2)
    step = _field(path, place, record, "step", int)
    if not -1 < step < 2**62:
        raise FormatError(path, f"{place}: step {str(step)[:20]} is no step number")
    return step, fold(path, name, physical, phy2log)


def _read_mapping(path: Path) -> PlacementRows:
    found = []
    for number, record in _lines(path):
        if record is None:
            raise FormatError(path, f"line {number} is cut short")
        if _is_kind(path, number, record, MAPPING):
            found.append((f"line {number}", record))
    if len(found) != 1:
        raise FormatError(path, f"must have one line with record_type {MAPPING!r}, has {len(found)}")
    place, record = found[0]
    table = _field(path, place, record, ASSIGNMENTS, dict)
    rows = {layer_number(path, f"{place}: {ASSIGNMENTS}", key): slots for key, slots in table.items()}
    if sorted(rows) != list(range(len(rows))) or len(rows) != len(table):
        raise FormatError(path, f"{place}: {ASSIGNMENTS} must have the layers 0 to {len(table) - 1}")
    for layer, slots in rows.items():
        if not isinstance(slots, list) or not all(
            type(slot) is int and -1 <= slot < MAX_SLOTS for slot in slots
        ):
            raise FormatError(
                path, f"{place}: {ASSIGNMENTS}[{layer}] must be a list of expert ids, -1 for none"
            )
    phy2log = id_array(path, f"{place}: {ASSIGNMENTS}", [rows[layer] for layer in range(len(rows))], 2)
    num_slots = _field(path, place, record, "num_slots", int)
    if num_slots != phy2log.shape[1]:
        raise FormatError(
            path, f"{place}: num_slots is {num_slots}, but layers have {phy2log.shape[1]} slots"
        )
    redundant = _field(path, place, record, "num_redundant_experts", int)
    if not -1 < redundant < num_slots or phy2log.max() >= num_slots - redundant:
        raise FormatError(
            path,
            f"{place}: {num_slots} slots less {redundant} redundant ones are too few for expert {phy2log.max()}",
        )
    return PlacementRows(phy2log, num_experts=num_slots - redundant)


def _encode_mapping(placement: Placement, suffix: str) -> bytes:
    record = {
        "record_type": MAPPING,
        "version": 1,
        "num_redundant_experts": placement.num_slots - placement.num_experts,
        "num_slots": placement.num_slots,
        ASSIGNMENTS: {str(layer): slots for layer, slots in enumerate(placement.phy2log.tolist())},
    }
    return (json.dumps(record) + "\n").encode()


HISTORY_LOADS = LoadFormat(
    "adrs",
    "ADRS or vLLM expert-load JSON with load_history",
    lambda peek: not peek.pickle and peek.has_key(HISTORY),
    _read_history,
)
STATS_LOADS = LoadFormat(
    "vllm", "vLLM statistics: JSON lines", lambda peek: _detect_lines(STATS, peek), _read_stats
)
PLACEMENT = PlacementFormat(
    "vllm",
    "vLLM initial mapping: JSON lines",
    (".jsonl", ".json"),
    lambda peek: _detect_lines(MAPPING, peek),
    _read_mapping,
    _encode_mapping,
    "moe",
)
