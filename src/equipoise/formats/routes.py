"""Token routes and pair counts: where recordings have them beside their loads, and Equipoise's own file of pairs.

Routes are in ``npz`` files with ``topk``, in SGLang's ``per_token`` recordings and in TensorRT-LLM's ``rank{r}_raw``
files. Pair counts are a safetensors file that `save_pairs` writes, or stand beside the loads of a recording of
`TraceWriter`, of Equipoise's own load file or of an npz file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, FormatError
from ..routes import PairCounts, Routes
from . import arrays, native, segments, sglang_records, torchfile, trtllm
from . import pairs as pair_tables
from .base import HEAD, LoadFormat, Peek, ReadOptions, id_array, model_layers, reading
from .output import write_file
from .safetensorsfile import names_in, read_safetensors
from .source import opened

IntArray = npt.NDArray[np.int64]
NONE = (
    "has no token routes: expected an npz file with topk, a folder with per_token records (SGLang) or "
    "rank{r}_raw.safetensors (TensorRT-LLM), or pair counts of Equipoise, beside loads or in a file of their own"
)
RAW = re.compile(r"rank(\d{1,6})_raw\.safetensors")
PAIRS = "pairs"


def load_routes(
    path: str | os.PathLike[str], *, num_experts: int | None = None, layers: Sequence[int] | None = None
) -> Routes | PairCounts:
    """Token routes of a recording, or the pair counts of a recording or of a file that `save_pairs` wrote.

    Parameters
    ----------
    path : an ``npz`` file with ``topk``, the folder of an SGLang ``per_token`` recording or of TensorRT-LLM
        statistics with ``rank{r}_raw.safetensors``, a file of pair counts, loads that have pair counts beside them,
        or ``-`` for standard input
    num_experts : logical experts per layer, where the file does not say
    layers : the model's numbers of the MoE layers that are wanted, where the file has more

    Raises
    ------
    FormatError
        if there are no routes in it, or they are broken
    FileAccessError
        if it cannot be read
    """
    with reading(Path(path)), opened(Path(path)) as where:
        found = _checked(where, num_experts, layers)
        if found is None:
            raise FormatError(where, NONE)
        return found


def own_routes(
    path: Path, *, num_experts: int | None = None, layers: Sequence[int] | None = None
) -> Routes | PairCounts | None:
    """What a load file tells in itself of where tokens went; ``None`` where that is nothing.

    Engines' folders are not looked into, for their routes are many: `load_routes` reads those that are asked for.
    """
    with reading(path):
        folder = path.is_dir()
        if not path.exists() or (folder and not segments.LOADS.detect(Peek(path, b""))):
            return None
        if not folder and not path.is_file():
            return None
        return _checked(path, num_experts, layers)


def save_pairs(pairs: PairCounts, path: str | os.PathLike[str]) -> None:
    """Write pair counts as safetensors; raises `FileAccessError` if the file cannot be written."""
    if Path(path).suffix != ".safetensors":
        raise ArgumentError(f"{path} must end in .safetensors: pair counts are written as that")
    header = {"layers": list(pairs.layers), "top_k": pairs.top_k}
    write_file(path, native.encode_own(PAIRS, {"counts": pairs.counts}, header, sealed=True))


def _checked(path: Path, num_experts: int | None, layers: Sequence[int] | None) -> Routes | PairCounts | None:
    try:
        found = _read(path, num_experts)
    except FormatError:
        raise
    except ArgumentError as error:
        raise FormatError(path, str(error)) from None
    return found if found is None or layers is None else _of_layers(path, found, tuple(layers))


def _read(path: Path, num_experts: int | None) -> Routes | PairCounts | None:
    if path.is_dir():
        if segments.LOADS.detect(Peek(path, b"")):
            return _beside_loads(path, segments.LOADS, any(map(_tells_pairs, segments.segment_files(path))))
        if any(RAW.fullmatch(file.name) for file in path.iterdir()):
            return _read_raw(path)
        return _read_per_token(path)
    with path.open("rb") as file:
        peek = Peek(path, file.read(HEAD))
    if native.is_kind(PAIRS, peek.head):
        return _read_pairs(path)
    if arrays.ROUTES.detect(peek):
        return Routes(*arrays.read_topk(path, num_experts))
    if native.LOADS.detect(peek):
        return _beside_loads(path, native.LOADS, _tells_pairs(path))
    return _beside_loads(path, arrays.LOADS, arrays.has_pairs(peek))


def _tells_pairs(path: Path) -> bool:
    """Whether a safetensors file says that it has pair counts; what is damaged or gone says nothing."""
    try:
        return pair_tables.NAME in names_in(path)
    except (FormatError, FileNotFoundError):
        return False


def _beside_loads(path: Path, form: LoadFormat, told: bool) -> PairCounts | None:
    """The pair counts that stand beside loads; ``told``: whether some are there, which spares reading the loads."""
    found = form.read(path, ReadOptions()) if told else None
    if found is None or found.pairs is None:
        return None
    counts = pair_tables.unpacked(found.pairs, found.counts.shape[2])
    return PairCounts(counts, found.top_k, layers=found.layers or ())


def _read_pairs(path: Path) -> PairCounts:
    held, header = native.read_own(path, PAIRS)
    layers: Any = header.get("layers")
    top_k: Any = header.get("top_k")
    numbered = isinstance(layers, list) and all(type(number) is int for number in layers)
    if "seal" not in header or "counts" not in held or not numbered:
        raise FormatError(path, "lacks its seal, its counts or the numbers of its layers")
    if top_k is not None and type(top_k) is not int:
        raise FormatError(path, f"'equipoise' field 'top_k' must be int, got {str(top_k)[:40]!r}")
    return PairCounts(held["counts"], top_k, layers=tuple(layers))


def _of_layers(path: Path, found: Routes | PairCounts, layers: tuple[int, ...]) -> Routes | PairCounts:
    """The layers that are wanted; a file that counts its layers has as many, or its rows are the model's layers."""
    if found.layers == layers or found.num_layers == len(layers):
        return found
    missing = sorted(set(layers) - set(found.layers))
    if missing:
        raise FormatError(path, f"has no routes of layer {missing[0]}, but of {found.num_layers} layers")
    return found.rows([found.layers.index(layer) for layer in layers])


def _read_per_token(path: Path) -> Routes:
    """SGLang: physical ids of each rank's tokens, pass after pass, through the map that the file ends with."""
    parts, ranks, experts = [], [], 0
    for file, rank in sglang_records.files_of_ranks(path):
        content = torchfile.load(file)
        if not isinstance(content, dict) or not isinstance(content.get("records"), list):
            raise FormatError(file, "must be a dict with 'records'")
        name = sglang_records.MAP
        phy2log = id_array(file, name, torchfile.numbers(file, name, content.get(name)), 2)
        experts = max(experts, int(phy2log.max()) + 1)
        for topk in _topk_of_records(file, content["records"]):
            parts.append(_to_logical(file, topk, phy2log))
            ranks.append(np.full(topk.shape[1], rank))
    if not parts:
        raise FormatError(
            path, f"has no {sglang_records.TOPK!r}: SGLang records tokens in its mode per_token alone"
        )
    topk = _joined(path, parts)
    some = np.flatnonzero((topk >= 0).any(axis=(1, 2)))  # dense layers have no experts
    return Routes(topk[some], experts, np.concatenate(ranks), layers=tuple(some.tolist()))


def _topk_of_records(file: Path, records: list[Any]) -> Iterator[IntArray]:
    for index, record in enumerate(records):
        if isinstance(record, dict) and sglang_records.TOPK in record:
            name = f"records[{index}][{sglang_records.TOPK!r}]"
            numbers = torchfile.numbers(file, name, record[sglang_records.TOPK])
            if numbers.size:
                yield id_array(file, name, numbers, 3)


def _to_logical(file: Path, topk: IntArray, phy2log: IntArray) -> IntArray:
    if len(topk) != len(phy2log) or topk.min() < -1 or topk.max() >= phy2log.shape[1]:
        raise FormatError(
            file,
            f"{sglang_records.TOPK} has {len(topk)} layers and ids {topk.min()} to {topk.max()}, its map "
            f"{list(phy2log.shape)} layers and slots",
        )
    padded = np.hstack([phy2log, np.full((len(phy2log), 1), -1)])  # -1, no expert, reads the last column
    return np.asarray(padded[np.arange(len(topk))[:, None, None], topk])


def _joined(path: Path, parts: list[IntArray]) -> IntArray:
    """Tokens of many records in a row, as wide as the widest."""
    if len({len(part) for part in parts}) > 1:
        raise FormatError(path, "has records of different numbers of layers")
    width = max(part.shape[2] for part in parts)
    wide = [np.pad(part, ((0, 0), (0, 0), (0, width - part.shape[2])), constant_values=-1) for part in parts]
    return np.concatenate(wide, axis=1)


def _read_raw(path: Path) -> Routes:
    """TensorRT-LLM: experts of each rank's tokens, iteration by iteration; those without some layer are left out."""
    num_experts, _ = trtllm.read_meta(path / trtllm.META)
    files = {int(found[1]): file for file in path.iterdir() if (found := RAW.fullmatch(file.name))}
    tables = {rank: _raw_tables(file) for rank, file in sorted(files.items())}
    layers = sorted({layer for table in tables.values() for _, layer in table})
    parts, ranks = [], []
    for rank, table in tables.items():
        for iteration in sorted({number for number, _ in table}):
            rows = [table[iteration, layer] for layer in layers if (iteration, layer) in table]
            if len(rows) == len(layers) and len({row.shape for row in rows}) == 1:
                parts.append(np.stack(rows))
                ranks.append(np.full(parts[-1].shape[1], rank))
    if not parts:
        raise FormatError(path, "has no iteration of which a rank recorded the tokens of all layers")
    numbers = model_layers(path, tuple(layers), "the keys of rank{r}_raw.safetensors")
    return Routes(_joined(path, parts), num_experts, np.concatenate(ranks), layers=numbers)


def _raw_tables(file: Path) -> dict[tuple[int, int], IntArray]:
    """``[tokens, k]`` by iteration and layer."""
    found = {}
    for key, array in read_safetensors(file)[0].items():
        match = trtllm.KEY.fullmatch(key)
        if match is None:
            raise FormatError(file, f"has the key {key[:40]!r}, expected '{{iteration}}_{{layer}}'")
        if array.size:
            found[int(match[1]), int(match[2])] = id_array(file, key, array, 2)
    return found
