"""vllm-ascend: the JSON file of ``expert_map_path``, which counts MoE layers from 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, PlacementError
from ..placement import Placement
from .base import PlacementFormat, PlacementRows, id_array, json_with
from .jsonstream import read_json

COUNT = "moe_layer_count"
LAYERS = "layer_list"


def _read(path: Path) -> PlacementRows:
    content = read_json(path)
    layers = _list(path, content, LAYERS, "")
    if content.get(COUNT) != len(layers):
        raise FormatError(path, f"{COUNT} is {str(content.get(COUNT))[:20]}, but {LAYERS} has {len(layers)}")
    rows = []
    for index, layer in enumerate(layers):
        place = f"{LAYERS}[{index}]"
        devices = _list(path, layer, "device_list", place)
        if layer.get("layer_id") != index:
            raise FormatError(
                path, f"{place}.layer_id is {str(layer.get('layer_id'))[:20]}, expected {index}"
            )
        if layer.get("device_count") != len(devices):
            raise FormatError(path, f"{place}.device_count is not the length of its device_list")
        for number, device in enumerate(devices):
            _list(path, device, "device_expert", f"{place}.device_list[{number}]")
            if device.get("device_id") != number:
                raise FormatError(path, f"{place}.device_list[{number}].device_id must be {number}")
        rows.append([device["device_expert"] for device in devices])
    table = id_array(path, f"device_expert in {LAYERS}", rows, 3)
    return PlacementRows(table.reshape(len(table), -1), num_ranks=table.shape[1])


def _list(path: Path, value: Any, name: str, place: str) -> list[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list) or not found:
        raise FormatError(path, f"{place + '.' if place else ''}{name} must be a list that is not empty")
    return found


def _write(placement: Placement, path: Path) -> None:
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
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


PLACEMENT = PlacementFormat(
    "vllm-ascend",
    "vllm-ascend expert_map_path: .json",
    (".json",),
    lambda path, head: json_with(head, COUNT),
    _read,
    _write,
)
