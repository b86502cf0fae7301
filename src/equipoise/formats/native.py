"""Equipoise's own files: loads and placements as safetensors with a JSON header; nothing is lost.

One metadata entry ``equipoise`` holds a JSON object with ``kind`` (``load`` or ``placement``), ``version``
and everything that is not an array.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..placement import Placement
from ..trace import LoadTrace
from .base import (
    LoadFormat,
    Peek,
    PlacementFormat,
    PlacementRows,
    ReadOptions,
    Recording,
    id_array,
    load_array,
)
from .jsonstream import parse_json
from .models import is_counted
from .safetensorsfile import read_safetensors

VERSION = 1
LIMIT = 1 << 31
"""no layer, expert, rank or top-k of a model comes near it"""


def encode_own(kind: str, arrays: dict[str, npt.NDArray[Any]], header: dict[str, Any]) -> bytes:
    from safetensors.numpy import save

    text = json.dumps({"kind": kind, "version": VERSION, **header})
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {"equipoise": text})


def read_own(path: Path, kind: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    arrays, metadata = read_safetensors(path)
    try:
        header = parse_json(path, metadata["equipoise"], "its metadata entry 'equipoise'")
    except KeyError:
        raise FormatError(path, "is safetensors, but has no metadata entry 'equipoise'") from None
    except FormatError:
        raise
    except (ValueError, RecursionError):
        raise FormatError(path, "its metadata entry 'equipoise' is not JSON") from None
    if not isinstance(header, dict) or header.get("kind") != kind:
        found = header.get("kind") if isinstance(header, dict) else header
        raise FormatError(path, f"'equipoise' says kind {str(found)[:40]!r}, expected {kind!r}")
    if header.get("version") != VERSION:
        raise FormatError(
            path, f"has version {str(header.get('version'))[:40]}; this Equipoise reads version {VERSION}"
        )
    return arrays, header


def _detect(kind: str, peek: Peek) -> bool:
    head = peek.head
    return head[8:9] == b"{" and b'"equipoise"' in head and rf"\"kind\": \"{kind}\"".encode() in head


def _field(path: Path, header: dict[str, Any], name: str, kind: type) -> Any:
    value = header.get(name)
    unfit = not isinstance(value, kind) or (isinstance(value, int) and not 0 < value < LIMIT)
    if value is not None and (unfit or isinstance(value, bool)):
        raise FormatError(
            path, f"'equipoise' field {name!r} must be {kind.__name__}, got {str(value)[:40]!r}"
        )
    return value


def _layers(path: Path, header: dict[str, Any]) -> tuple[int, ...] | None:
    values = _field(path, header, "layers", list)
    if values is None:
        return None
    if not all(type(value) is int and 0 <= value < LIMIT for value in values):
        raise FormatError(path, "'equipoise' field 'layers' must be layer numbers")
    return tuple(values)


def _array(path: Path, arrays: dict[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    if name not in arrays:
        raise FormatError(path, f"has no array {name!r}; it has {', '.join(arrays) or 'none'}")
    return arrays[name]


def _read_loads(path: Path, options: ReadOptions) -> Recording:
    arrays, header = read_own(path, "load")
    counts = _array(path, arrays, "counts")
    load_array(path, "counts", counts, (3,))
    phases = _field(path, header, "phases", list)
    layers = _layers(path, header)
    num_model_layers = _field(path, header, "num_model_layers", int)
    return Recording(
        counts,
        layers=layers,
        num_model_layers=num_model_layers,
        counted=is_counted(layers or (), num_model_layers),
        steps=id_array(path, "steps", _array(path, arrays, "steps"), 2),
        phases=None if phases is None else tuple(str(phase) for phase in phases),
        top_k=_field(path, header, "top_k", int),
        source=_field(path, header, "source", str) or "",
        exact=True,
    )


def _encode_loads(trace: LoadTrace) -> bytes:
    assert trace.steps is not None
    header = {
        "layers": list(trace.layers),
        "num_model_layers": trace.num_model_layers,
        "phases": None if trace.phases is None else list(trace.phases),
        "top_k": trace.top_k,
        "source": trace.source,
    }
    return encode_own("load", {"counts": trace.counts, "steps": trace.steps}, header)


def _read_placement(path: Path) -> PlacementRows:
    arrays, header = read_own(path, "placement")
    for name in ("num_ranks", "num_experts"):
        if _field(path, header, name, int) is None:
            raise FormatError(path, f"'equipoise' lacks the field {name!r}")
    return PlacementRows(
        id_array(path, "phy2log", _array(path, arrays, "phy2log"), 2),
        num_ranks=header["num_ranks"],
        num_experts=header["num_experts"],
        layers=_layers(path, header),
        num_model_layers=_field(path, header, "num_model_layers", int),
    )


def _encode_placement(placement: Placement, suffix: str) -> bytes:
    header = {
        "num_ranks": placement.num_ranks,
        "num_experts": placement.num_experts,
        "layers": list(placement.layers),
        "num_model_layers": placement.num_model_layers,
    }
    return encode_own("placement", {"phy2log": placement.phy2log}, header)


LOADS = LoadFormat(
    "equipoise",
    "Equipoise load trace: .safetensors",
    lambda peek: _detect("load", peek),
    _read_loads,
    _encode_loads,
    (".safetensors",),
)
PLACEMENT = PlacementFormat(
    "equipoise",
    "Equipoise placement: .safetensors",
    (".safetensors",),
    lambda peek: _detect("placement", peek),
    _read_placement,
    _encode_placement,
)
