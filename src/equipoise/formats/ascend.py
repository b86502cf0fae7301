"""vllm-ascend: the JSON file of ``expert_map_path``, which counts MoE layers from 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, PlacementError
from ..placement import Placement
from ..topology import MAX_SLOTS
from .base import MAX_CELLS, PlacementFormat, PlacementRows, id_array
from .jsonstream import read_json

COUNT = "moe_layer_count"
LAYERS = "layer_list"


def _read(path: Path) -> PlacementRows:
    """The maps by position, as vllm-ascend's loader reads them; ids and counts may be missing, but not be wrong."""
    content = read_json(path)
    layers = _list(path, content, LAYERS, "")
    _agrees(path, content, COUNT, len(layers), f"the length of {LAYERS}")
    rows: list[list[list[int]]] = []
    for index, layer in enumerate(layers):
        place = f"{LAYERS}[{index}]"
        devices = _list(path, layer, "device_list", place)
        _agrees(path, layer, "layer_id", index, f"its place in {LAYERS}", place)
        _agrees(path, layer, "device_count", len(devices), "the length of its device_list", place)
        for number, device in enumerate(devices):
            where = f"{place}.device_list[{number}]"
            _agrees(path, device, "device_id", number, "its place in device_list", where)
            experts = _list(path, device, "device_expert", where)
            if not all(type(expert) is int and -1 <= expert < MAX_SLOTS for expert in experts):
                raise FormatError(path, f"{where}.device_expert must be expert ids")
        if rows and len(devices) != len(rows[0]):
            raise FormatError(path, f"{place} has {len(devices)} devices, the first layer {len(rows[0])}")
        rows.append([device["device_expert"] for device in devices])
    # A prediction layer may have fewer redundant slots than the others: what it lacks is empty.
    width = max(len(experts) for row in rows for experts in row)
    if len(rows) * len(rows[0]) * width > MAX_CELLS:
        raise FormatError(path, f"has up to {width} experts on a device: no plausible map")
    table = [[experts + [-1] * (width - len(experts)) for experts in row] for row in rows]
    phy2log = id_array(path, f"device_expert in {LAYERS}", table, 3)
    return PlacementRows(phy2log.reshape(len(rows), -1), num_ranks=len(rows[0]))


def _agrees(path: Path, value: Any, name: str, expected: int, what: str, place: str = "") -> None:
    """Raise `FormatError` if a field is there and is not what it must be."""
    found = value.get(name, expected) if isinstance(value, dict) else expected
    if found != expected or isinstance(found, bool):
        field = f"{place}.{name}" if place else name
        raise FormatError(path, f"{field} is {str(found)[:20]}, expected {expected}, {what}")


def _list(path: Path, value: Any, name: str, place: str) -> list[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list) or not found:
        raise FormatError(path, f"{place + '.' if place else ''}{name} must be a list that is not empty")
    return found


def _encode(placement: Placement, suffix: str) -> bytes:
    twins = placement.twins
    if twins.any():
        layer = int(np.argmax(twins > 0))
        rank = int(np.argmin(placement.holds[layer].sum(axis=1)))
        raise PlacementError(
            f"vllm-ascend refuses two replicas of one expert on a rank, as on rank {rank} of layer "
            f"{placement.layers[layer]}; plan with fewer slots, or with a policy that keeps replicas apart"
        )
    ranks = placement.phy2log.reshape(placement.num_layers, placement.num_ranks, -1).tolist()
    content = {
        COUNT: placement.num_layers,
        LAYERS: [
            {
                "layer_id": layer,
                "device_count": placement.num_ranks,
                "device_list": [
                    {"device_id": rank, "device_expert": experts} for rank, experts in enumerate(devices)
                ],
            }
            for layer, devices in enumerate(ranks)
        ],
    }
    return (json.dumps(content) + "\n").encode()


PLACEMENT = PlacementFormat(
    "vllm-ascend",
    "vllm-ascend expert_map_path: .json",
    (".json",),
    lambda peek: not peek.pickle and peek.has_key(COUNT, LAYERS),
    _read,
    _encode,
    "moe",
)
