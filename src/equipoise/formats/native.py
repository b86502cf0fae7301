"""Equipoise's own files: loads and placements as safetensors with a JSON header; nothing is lost.

One metadata entry ``equipoise`` holds a JSON object with ``kind`` (``load`` or ``placement``), ``version``
and everything that is not an array. Files that lie about for long on the disks of servers are sealed: their
``seal`` is a SHA-256 over everything else, since safetensors has no check sum of its own.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..placement import SPLITS, Placement
from ..routes import PairCounts
from ..trace import UNITS, LoadTrace
from . import pairs as pair_tables
from .base import (
    LoadFormat,
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
MAX_WINDOWS = 10**12
"""windows of one recording: a window each microsecond for eleven days"""


def encode_own(
    kind: str, arrays: dict[str, npt.NDArray[Any]], header: dict[str, Any], *, sealed: bool = False
) -> bytes:
    """The bytes of a file of a kind; a sealed one is refused by `read_own` if a bit of it has changed."""
    from safetensors.numpy import save

    if sealed:
        header = {**header, "seal": _seal(arrays, header)}
    text = json.dumps({"kind": kind, "version": VERSION, **header})
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {"equipoise": text})


def _seal(arrays: dict[str, npt.NDArray[Any]], header: dict[str, Any]) -> str:
    own = {name: value for name, value in header.items() if name not in ("kind", "version", "seal")}
    total = hashlib.sha256(json.dumps(own, sort_keys=True).encode())
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        total.update(np.ascontiguousarray(arrays[name]).data)
    return total.hexdigest()


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
    if "seal" in header and header["seal"] != _seal(arrays, header):
        raise FormatError(path, "is damaged: its content does not match its seal")
    return arrays, header


def is_kind(kind: str, head: bytes) -> bool:
    """Whether a file that begins with ``head`` is one of Equipoise's of a kind."""
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
    return _recording(path, *read_own(path, "load"))


def read_segment(path: Path) -> tuple[Recording, int, int]:
    """A segment of a recording, the number of its first window, and how many before it could not be written.

    Raises `FormatError` for what is damaged or no segment.
    """
    arrays, header = read_own(path, "load")
    place = _field(path, header, "segment", dict) or {}
    first, unwritten = place.get("first_window"), place.get("unwritten")
    if "seal" not in header or not (_is_number(first) and _is_number(unwritten)):
        raise FormatError(path, "is no segment of a recording: 'equipoise' has no such fields as it needs")
    return _recording(path, arrays, header), first, unwritten


def _is_number(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < MAX_WINDOWS


def _recording(path: Path, arrays: dict[str, npt.NDArray[Any]], header: dict[str, Any]) -> Recording:
    counts = _array(path, arrays, "counts")
    load_array(path, "counts", counts, (3,))
    phases = _field(path, header, "phases", list)
    layers = _layers(path, header)
    num_model_layers = _field(path, header, "num_model_layers", int)
    pairs = arrays.get(pair_tables.NAME)
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
        pairs=None if pairs is None else pair_tables.checked(path, pairs, counts),
        **_unit(path, arrays, header),
    )


def _unit(path: Path, arrays: dict[str, npt.NDArray[Any]], header: dict[str, Any]) -> dict[str, Any]:
    """What is counted, and of how many batches; files of tokens say neither."""
    unit = _one_of(path, header, "unit", UNITS)
    if unit == "tokens":
        return {}
    batches = id_array(path, "batches", _array(path, arrays, "batches"), 1)
    if len(batches) != len(arrays["counts"]):
        raise FormatError(
            path, f"has batches of {len(batches)} windows, but counts of {len(arrays['counts'])}"
        )
    return {"unit": unit, "batches": batches}


def _encode_loads(trace: LoadTrace, pairs: PairCounts | None) -> bytes:
    return encode_own("load", *_parts(trace, None if pairs is None else pairs.counts))


def encode_segment(
    trace: LoadTrace, first_window: int, unwritten: int, pairs: npt.NDArray[np.int64] | None = None
) -> bytes:
    """The bytes of a segment: a load file whose counts take as few bytes as they can, with a check sum.

    ``pairs``: pair counts ``[L, E, E]`` of its windows together, where they are counted.
    """
    arrays, header = _parts(trace, pairs)
    arrays["counts"] = trace.counts.astype(np.min_scalar_type(trace.counts.max()))
    header["segment"] = {"first_window": first_window, "unwritten": unwritten}
    return encode_own("load", arrays, header, sealed=True)


def _parts(
    trace: LoadTrace, pairs: npt.NDArray[Any] | None
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """The arrays and the header of a load file; ``pairs [L, E, E]``."""
    assert trace.steps is not None
    header = {
        "layers": list(trace.layers),
        "num_model_layers": trace.num_model_layers,
        "phases": None if trace.phases is None else list(trace.phases),
        "top_k": trace.top_k,
        "source": trace.source,
    }
    arrays = {"counts": trace.counts, "steps": trace.steps}
    if trace.batches is not None:
        header["unit"], arrays["batches"] = trace.unit, trace.batches
    if pairs is not None:
        arrays[pair_tables.NAME] = pair_tables.packed(pairs)
    return arrays, header


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
        split=_one_of(path, header, "split", SPLITS),
    )


def _one_of(path: Path, header: dict[str, Any], name: str, known: tuple[str, ...]) -> str:
    """One of the words that a field may be; the first where it is not there."""
    found = _field(path, header, name, str) or known[0]
    if found not in known:
        raise FormatError(
            path, f"'equipoise' field {name!r} must be {' or '.join(known)}, got {found[:40]!r}"
        )
    return str(found)


def _encode_placement(placement: Placement, suffix: str) -> bytes:
    header = {
        "num_ranks": placement.num_ranks,
        "num_experts": placement.num_experts,
        "layers": list(placement.layers),
        "num_model_layers": placement.num_model_layers,
    }
    if placement.split != "even":
        header["split"] = placement.split
    return encode_own("placement", {"phy2log": placement.phy2log}, header)


LOADS = LoadFormat(
    "equipoise",
    "Equipoise load trace: .safetensors",
    lambda peek: is_kind("load", peek.head),
    _read_loads,
    _encode_loads,
    (".safetensors",),
    units=UNITS,
)
PLACEMENT = PlacementFormat(
    "equipoise",
    "Equipoise placement: .safetensors",
    (".safetensors",),
    lambda peek: is_kind("placement", peek.head),
    _read_placement,
    _encode_placement,
    splits=SPLITS,
)
