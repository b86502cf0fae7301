"""Load files and placement files of the engines: one module each, found by content or by name.

>>> from equipoise.formats import LOAD_FORMATS, PLACEMENT_FORMATS
>>> "sglang" in LOAD_FORMATS and "sglang" in PLACEMENT_FORMATS
True
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from ..errors import ArgumentError, FormatError, PlacementError
from ..placement import Placement, check_layers
from ..routes import PairCounts
from ..trace import LoadTrace
from . import arrays, ascend, native, segments, sglang, sglang_records, trtllm, vllm
from .base import (
    HEAD,
    LoadFormat,
    Peek,
    PlacementFormat,
    PlacementRows,
    Progress,
    ReadOptions,
    choose_rows,
    reading,
    to_placement,
)
from .hygiene import Finding, clean
from .models import is_counted, without_dense
from .output import write_file
from .source import opened, stranger

__all__ = [
    "LOAD_FORMATS",
    "PLACEMENT_FORMATS",
    "find_format",
    "is_placement",
    "load_placement",
    "load_trace",
    "load_writer",
    "placement_writer",
    "read_rows",
    "read_trace",
    "save_placement",
    "save_trace",
]

Format = TypeVar("Format", LoadFormat, PlacementFormat)


def _registry(formats: Iterable[Format]) -> Mapping[str, Format]:
    return MappingProxyType({found.name: found for found in formats})


MAX_LAYERS = 1 << 20

# The order matters: the first that recognises a file reads it.
LOAD_FORMATS: Mapping[str, LoadFormat] = _registry(
    [
        native.LOADS,
        segments.LOADS,
        sglang.LOADS,
        sglang_records.LOADS,
        trtllm.LOADS,
        vllm.HISTORY_LOADS,
        vllm.STATS_LOADS,
        arrays.ROUTES,
        arrays.LOADS,
    ]
)
PLACEMENT_FORMATS: Mapping[str, PlacementFormat] = _registry(
    [native.PLACEMENT, sglang.PLACEMENT, trtllm.PLACEMENT, ascend.PLACEMENT, vllm.PLACEMENT]
)


def load_trace(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    window_steps: int | None = None,
    window_tokens: int | None = None,
    num_experts: int | None = None,
    layers: Sequence[int] | None = None,
    num_model_layers: int | None = None,
    progress: Progress | None = None,
) -> LoadTrace:
    """Read recorded loads of any known engine.

    Parameters
    ----------
    path : a file, the folder of a recording (segments of `TraceWriter`, or one file per rank), or ``-`` for
        standard input; files may be compressed with gzip or Zstandard
    format : a name in `LOAD_FORMATS`; found from the content unless given
    window_steps : sum this many consecutive windows of the file into one
    window_tokens : length of a window in tokens; for token routes only
    num_experts : experts per layer; for token routes only, which do not show experts that were never hit
    layers : the model's numbers of the MoE layers. In files that have the model's numbers they choose the layers,
        so that SGLang's dense rows are left out; in files that count MoE layers they become the layers' names
    num_model_layers : layers of the whole model, where known and the file does not say
    progress : called with bytes done and bytes in all while a large file is read

    Returns
    -------
    The loads ``[T, L, E]``, without empty steps, in the order of time, with the model's own layer numbers where
    they are known. A layer without load stays unless ``layers`` or the shape of a known model says it is dense.

    Raises
    ------
    FormatError
        if the file does not hold what its format requires; names file and field
    FileAccessError
        if it cannot be read
    MissingDependencyError
        if an optional package is needed to read it
    """
    trace, _ = read_trace(
        path,
        format,
        window_tokens=window_tokens,
        num_experts=num_experts,
        layers=layers,
        num_model_layers=num_model_layers,
        progress=progress,
    )
    return trace if window_steps is None else trace.regroup(window_steps)


def read_trace(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    window_tokens: int | None = None,
    num_experts: int | None = None,
    layers: Sequence[int] | None = None,
    num_model_layers: int | None = None,
    progress: Progress | None = None,
) -> tuple[LoadTrace, list[Finding]]:
    """`load_trace`, and what was found and mended while reading."""
    wanted = _numbers(layers, num_model_layers)
    with reading(Path(path)), opened(Path(path)) as where:
        found = find_format(where, LOAD_FORMATS, format, "load")
        for name, value in (("window_tokens", window_tokens), ("num_experts", num_experts)):
            if value is not None and not found.counts_tokens:
                raise ArgumentError(f"{name} is for token routes, but {where} is {found.name!r}")
            if value is not None and not 0 < value < 1 << 31:
                raise ArgumentError(f"{name} must be positive, got {value}")
        recording = found.read(where, ReadOptions(window_tokens, num_experts, progress))
        return clean(where, recording, wanted, num_model_layers)


def _numbers(layers: Sequence[int] | None, num_model_layers: int | None) -> tuple[int, ...] | None:
    """Layer numbers that a caller gives, checked."""
    if num_model_layers is not None and not 0 < num_model_layers < MAX_LAYERS:
        raise ArgumentError(f"num_model_layers must be 1 to {MAX_LAYERS - 1}, got {num_model_layers}")
    if layers is None:
        return None
    if not len(layers):
        raise ArgumentError("layers must name at least one layer")
    return check_layers(layers, len(layers), num_model_layers)


def save_trace(
    trace: LoadTrace,
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    pairs: PairCounts | None = None,
) -> None:
    """Write loads, and pair counts beside them where they are known.

    ``format`` is a name in `LOAD_FORMATS` that can be written, ``equipoise`` by default.

    Raises `ArgumentError` for a format that cannot be written, or that does not tell batches from tokens, and for
    pairs of other layers or experts; `FileAccessError` if the file cannot be written.
    """
    found = load_writer(path, format)
    if trace.unit not in found.units:
        raise ArgumentError(
            f"{found.name!r} files count {' or '.join(found.units)}, and these loads count {trace.unit}: who reads "
            "the file would take one for the other; the format 'equipoise' (.safetensors) says what it counts"
        )
    if pairs is not None and (pairs.layers, pairs.num_experts) != (trace.layers, trace.num_experts):
        raise ArgumentError(f"pairs must be of the layers and experts of the loads: {pairs!r}, {trace!r}")
    assert found.encode is not None
    write_file(path, found.encode(trace, pairs))


def load_writer(path: str | os.PathLike[str], format: str | None = None) -> LoadFormat:
    """The format that `save_trace` would write; `ArgumentError` if there is none for this name and suffix."""
    writable = {name: found for name, found in LOAD_FORMATS.items() if found.encode is not None}
    name = _by_suffix(Path(path), writable, "equipoise") if format is None else format
    if name not in writable:
        raise ArgumentError(f"loads cannot be written as {name!r}; known are {', '.join(writable)}")
    _check_suffix(Path(path), writable[name])
    return writable[name]


def load_placement(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    num_ranks: int | None = None,
    layers: Sequence[int] | None = None,
    num_model_layers: int | None = None,
) -> Placement:
    """Read a placement of any known engine, for example the one that is served now.

    Parameters
    ----------
    path : the file, or ``-`` for standard input; it may be compressed with gzip or Zstandard
    format : a name in `PLACEMENT_FORMATS`; found from the content unless given
    num_ranks : EP ranks; needed where the file does not say (SGLang, TensorRT-LLM, vLLM)
    layers : the model's numbers of the MoE layers, as a trace has them in ``layers``. Files with the model's
        numbers (SGLang, TensorRT-LLM) then give only these layers, so that SGLang's dense rows are left out;
        in files that count MoE layers (Equipoise's, too, where their loads did) they become the names of the layers.
        Without it, the dense rows of a known model are left out where they hold the filling of dense rows
    num_model_layers : layers of the whole model, where known and the file does not say

    Raises
    ------
    FormatError
        if the file is not a legal placement, or contradicts the arguments
    FileAccessError
        if it cannot be read
    ArgumentError
        if ``num_ranks`` is needed and missing
    """
    wanted = _numbers(layers, num_model_layers)
    with reading(Path(path)), opened(Path(path)) as where:
        return to_placement(where, _rows(where, format, num_ranks, wanted, num_model_layers), num_ranks)


def read_rows(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    num_ranks: int | None = None,
    layers: Sequence[int] | None = None,
    num_model_layers: int | None = None,
) -> PlacementRows:
    """What a placement file holds, legal or not: slots may be empty (-1) and experts lost.

    The parameters are those of `load_placement`; ``num_ranks`` stands in where the file does not tell, and a file
    for another number of ranks is read as it is.

    Raises
    ------
    FormatError
        if the file is broken or lacks a layer
    FileAccessError
        if it cannot be read
    ArgumentError
        if ``num_ranks`` is needed and missing
    """
    wanted = _numbers(layers, num_model_layers)
    with reading(Path(path)), opened(Path(path)) as where:
        return _rows(where, format, num_ranks, wanted, num_model_layers)


def _rows(
    path: Path,
    format: str | None,
    num_ranks: int | None,
    layers: tuple[int, ...] | None,
    num_model_layers: int | None,
) -> PlacementRows:
    found = find_format(path, PLACEMENT_FORMATS, format, "placement")
    rows = found.read(path)
    if layers is None and rows.every_layer:
        rows = without_dense(rows)
    if layers is not None and found.counts == "both" and is_counted(rows.layers or (), rows.num_model_layers):
        # What keeps the numbers that it gets was given none: it may be the same layers under other names.
        rows = replace(rows, layers=None if len(layers) == len(rows.phy2log) else rows.layers)
    return choose_rows(path, rows, num_ranks, layers, num_model_layers)


def save_placement(placement: Placement, path: str | os.PathLike[str], format: str | None = None) -> None:
    """Write a placement in the form that an engine reads.

    Parameters
    ----------
    placement : what to write
    path : the file; replaced only when the whole new one is there
    format : a name in `PLACEMENT_FORMATS`; may be left out if the suffix of ``path`` tells

    Raises
    ------
    PlacementError
        if the engine would refuse the placement, or splits tokens in another way than it was made for; says why
    FileAccessError
        if the file cannot be written
    """
    found = placement_writer(path, format)
    check_split(found, placement.split)
    write_file(path, found.encode(placement, Path(path).suffix))


def placement_writer(path: str | os.PathLike[str], format: str | None = None) -> PlacementFormat:
    """The format that `save_placement` would write; `ArgumentError` if there is none for this name and suffix."""
    name = _by_suffix(Path(path), PLACEMENT_FORMATS, None) if format is None else format
    if name not in PLACEMENT_FORMATS:
        known = ", ".join(PLACEMENT_FORMATS)
        raise ArgumentError(f"unknown placement format {name!r}; known are {known}")
    _check_suffix(Path(path), PLACEMENT_FORMATS[name])
    return PLACEMENT_FORMATS[name]


def check_split(found: PlacementFormat, split: str) -> None:
    """Raise `PlacementError` if what reads this format does not serve with the split that a placement is made for."""
    if split not in found.splits:
        raise PlacementError(
            f"the placement is made for batches that are split by their load, but what reads {found.name!r} splits "
            "evenly, for which split='even' plans better; the format 'equipoise' keeps what it is made for"
        )


def is_placement(path: str | os.PathLike[str], format: str | None = None) -> bool:
    """Whether a file is a placement rather than loads; by its content, or by the name of its format.

    Raises `FormatError` if it is neither, `FileAccessError` if it cannot be read.
    """
    if format is not None and format not in LOAD_FORMATS and format not in PLACEMENT_FORMATS:
        known = ", ".join(dict.fromkeys([*LOAD_FORMATS, *PLACEMENT_FORMATS]))
        raise ArgumentError(f"unknown format {format!r}; known are {known}")
    if format is not None and (format in LOAD_FORMATS) != (format in PLACEMENT_FORMATS):
        return format in PLACEMENT_FORMATS
    with reading(Path(path)), opened(Path(path)) as where:
        peek = _peek(where)
        if any(found.detect(peek) for found in LOAD_FORMATS.values()):
            return False
        if any(found.detect(peek) for found in PLACEMENT_FORMATS.values()):
            return True
        problem = "is neither a load file nor a placement file that is known"
        hint = "" if format is not None else "; name its format (--from)"
        raise FormatError(where, stranger_in(peek) or problem + hint)


def _peek(path: Path) -> Peek:
    """The first bytes of a file, none of a folder; `FormatError` if the file is empty."""
    if path.is_dir():
        return Peek(path, b"")
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise FormatError(path, "is empty (0 bytes)")
    return Peek(path, head)


# Keys of files that people hand in by mistake, and what to do with them.
KEYS = (
    ("num_experts_per_token", "is the meta_info.json of a TensorRT-LLM recording: name the folder"),
    ("architectures", "is the config.json of a model, not loads that it served"),
    ("weight_map", "is the index of a model's weights, not loads that it served"),
    ("traceEvents", "is a profile of a run, not counts of tokens"),
)


def stranger_in(peek: Peek) -> str | None:
    """What a file is that no format recognises, in words; None where nothing tells."""
    if peek.path.is_dir():
        return (
            "is a folder without a recording: expected expert_distribution_recorder_*_{rank}.pt, or meta_info.json "
            "and rank{r}.safetensors; name a file in it if it is another one"
        )
    if peek.names == [] and peek.trouble is not None:
        return peek.trouble
    if peek.pickle:
        return (
            "is a file of torch.save, but no bare tensor, and without logical_count or per_pass records (SGLang) or "
            "physical_to_logical_map: a checkpoint?"
        )
    if peek.head[8:9] == b"{":
        if re.search(rb'"\d+_\d+":', peek.head):
            return "is one rank of a TensorRT-LLM recording: name the folder with the files of all ranks"
        return "is safetensors, but holds neither loads nor a placement that Equipoise wrote: weights?"
    found = next((words for key, words in KEYS if not peek.pickle and peek.has_key(key)), None)
    return found or stranger(peek.head)


def find_format(path: Path, formats: Mapping[str, Format], name: str | None, what: str) -> Format:
    """The format of a file: the one named, or the first that recognises it.

    Raises `ArgumentError` for an unknown name, `FormatError` if no format recognises the file and `OSError`
    if it cannot be opened.
    """
    if name is not None and name not in formats:
        raise ArgumentError(f"unknown {what} format {name!r}; known are {', '.join(formats)}")
    peek = _peek(path)
    if name is not None:
        return formats[name]
    for found in formats.values():
        if found.detect(peek):
            return found
    problem = stranger_in(peek) or (
        f"is no {what} file that is known; name its format (--from), one of {', '.join(formats)}"
    )
    others: Mapping[str, LoadFormat | PlacementFormat]
    other, others = ("placement", PLACEMENT_FORMATS) if what == "load" else ("load", LOAD_FORMATS)
    for candidate in others.values():
        if candidate.detect(peek):
            problem = f"is a {other} file ({candidate.description}), not a {what} file"
            break
    raise FormatError(path, problem)


def _by_suffix(path: Path, formats: Mapping[str, Format], default: str | None) -> str:
    names = [name for name, found in formats.items() if path.suffix in found.suffixes]
    if len(names) == 1:
        return names[0]
    if default is not None and not names:
        return default
    raise ArgumentError(
        f"the suffix of {path} does not tell the format; name one of {', '.join(names or formats)}"
    )


def _check_suffix(path: Path, found: LoadFormat | PlacementFormat) -> None:
    if path.suffix not in found.suffixes:
        raise ArgumentError(
            f"{path} must end in {' or '.join(found.suffixes)}: {found.name} recognises files by it"
        )
