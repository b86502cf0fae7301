"""Load files and placement files of the engines: one module each, found by content or by name.

>>> from equipoise.formats import LOAD_FORMATS, PLACEMENT_FORMATS
>>> "sglang" in LOAD_FORMATS and "sglang" in PLACEMENT_FORMATS
True
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from ..errors import ArgumentError, FormatError
from ..placement import Placement
from ..trace import LoadTrace
from . import arrays, ascend, native, sglang, sglang_records, trtllm, vllm
from .base import (
    HEAD,
    LoadFormat,
    PlacementFormat,
    Progress,
    ReadOptions,
    atomic_output,
    reading,
    to_placement,
)
from .hygiene import Finding, clean

__all__ = [
    "LOAD_FORMATS",
    "PLACEMENT_FORMATS",
    "find_format",
    "is_placement",
    "load_placement",
    "load_trace",
    "read_trace",
    "save_placement",
    "save_trace",
]

Format = TypeVar("Format", LoadFormat, PlacementFormat)


def _registry(formats: Iterable[Format]) -> Mapping[str, Format]:
    return MappingProxyType({found.name: found for found in formats})


# The order matters: the first that recognises a file reads it.
LOAD_FORMATS: Mapping[str, LoadFormat] = _registry(
    [
        native.LOADS,
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
    progress: Progress | None = None,
) -> LoadTrace:
    """Read recorded loads of any known engine.

    Parameters
    ----------
    path : a file, or the folder of a recording that has one file per rank
    format : a name in `LOAD_FORMATS`; found from the content unless given
    window_steps : sum this many consecutive windows of the file into one
    window_tokens : length of a window in tokens; for token routes only
    num_experts : experts per layer; for token routes only, which do not show experts that were never hit
    progress : called with bytes done and bytes in all while a large file is read

    Returns
    -------
    The loads ``[T, L, E]``, without dense layers and empty steps, in the order of time, with the model's own
    layer numbers.

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
        path, format, window_tokens=window_tokens, num_experts=num_experts, progress=progress
    )
    return trace if window_steps is None else trace.regroup(window_steps)


def read_trace(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    window_tokens: int | None = None,
    num_experts: int | None = None,
    progress: Progress | None = None,
) -> tuple[LoadTrace, list[Finding]]:
    """`load_trace`, and what was found and mended while reading."""
    where = Path(path)
    with reading(where):
        found = find_format(where, LOAD_FORMATS, format, "load")
        for name, value in (("window_tokens", window_tokens), ("num_experts", num_experts)):
            if value is not None and not found.counts_tokens:
                raise ArgumentError(f"{name} is for token routes, but {where} is {found.name!r}")
            if value is not None and not 0 < value < 1 << 31:
                raise ArgumentError(f"{name} must be positive, got {value}")
        return clean(where, found.read(where, ReadOptions(window_tokens, num_experts, progress)))


def save_trace(trace: LoadTrace, path: str | os.PathLike[str], format: str | None = None) -> None:
    """Write loads; ``format`` is a name in `LOAD_FORMATS` that can be written, ``equipoise`` by default.

    Raises `ArgumentError` for a format that cannot be written and `FileAccessError` if the file cannot be.
    """
    writable = {name: found for name, found in LOAD_FORMATS.items() if found.write is not None}
    where = Path(path)
    name = _by_suffix(where, writable, "equipoise") if format is None else format
    if name not in writable:
        raise ArgumentError(f"loads cannot be written as {name!r}; known are {', '.join(writable)}")
    _check_suffix(where, writable[name])
    write = writable[name].write
    assert write is not None
    with atomic_output(where) as temporary:
        write(trace, temporary)


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
    path : the file
    format : a name in `PLACEMENT_FORMATS`; found from the content unless given
    num_ranks : EP ranks; needed where the file does not say (SGLang, TensorRT-LLM, vLLM)
    layers : the model's numbers of the MoE layers, as a trace has them in ``layers``. Files with the model's
        numbers (SGLang, TensorRT-LLM) then give only these layers, so that SGLang's dense rows are left out;
        in files that count MoE layers they become the names of the layers
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
    where = Path(path)
    with reading(where):
        found = find_format(where, PLACEMENT_FORMATS, format, "placement")
        rows = found.read(where)
        wanted = None if layers is None else tuple(int(layer) for layer in layers)
        return to_placement(where, rows, num_ranks, wanted, num_model_layers)


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
        if the engine would refuse the placement; says why
    FileAccessError
        if the file cannot be written
    """
    where = Path(path)
    name = _by_suffix(where, PLACEMENT_FORMATS, None) if format is None else format
    if name not in PLACEMENT_FORMATS:
        known = ", ".join(PLACEMENT_FORMATS)
        raise ArgumentError(f"unknown placement format {name!r}; known are {known}")
    _check_suffix(where, PLACEMENT_FORMATS[name])
    with atomic_output(where) as temporary:
        PLACEMENT_FORMATS[name].write(placement, temporary)


def is_placement(path: str | os.PathLike[str], format: str | None = None) -> bool:
    """Whether a file is a placement rather than loads; by its content, or by the name of its format.

    Raises `FormatError` if it is neither, `FileAccessError` if it cannot be read.
    """
    where = Path(path)
    if format is not None and format not in LOAD_FORMATS and format not in PLACEMENT_FORMATS:
        known = ", ".join(dict.fromkeys([*LOAD_FORMATS, *PLACEMENT_FORMATS]))
        raise ArgumentError(f"unknown format {format!r}; known are {known}")
    if format is not None and (format in LOAD_FORMATS) != (format in PLACEMENT_FORMATS):
        return format in PLACEMENT_FORMATS
    with reading(where):
        head = _head(where)
        if any(found.detect(where, head) for found in LOAD_FORMATS.values()):
            return False
        if any(found.detect(where, head) for found in PLACEMENT_FORMATS.values()):
            return True
    raise FormatError(where, "is neither a load file nor a placement file that is known; name it with --from")


def _head(path: Path) -> bytes:
    """The first bytes of a file, none of a folder; `FormatError` if the file is empty."""
    if path.is_dir():
        return b""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        raise FormatError(path, "is empty (0 bytes)")
    return head


def find_format(path: Path, formats: Mapping[str, Format], name: str | None, what: str) -> Format:
    """The format of a file: the one named, or the first that recognises it.

    Raises `ArgumentError` for an unknown name, `FormatError` if no format recognises the file and `OSError`
    if it cannot be opened.
    """
    if name is not None and name not in formats:
        raise ArgumentError(f"unknown {what} format {name!r}; known are {', '.join(formats)}")
    head = _head(path)
    if name is not None:
        return formats[name]
    for found in formats.values():
        if found.detect(path, head):
            return found
    problem = f"is no {what} file that is known; name its format (--from), one of {', '.join(formats)}"
    others: Mapping[str, LoadFormat | PlacementFormat]
    other, others = ("placement", PLACEMENT_FORMATS) if what == "load" else ("load", LOAD_FORMATS)
    for stranger in others.values():
        if stranger.detect(path, head):
            problem = f"is a {other} file ({stranger.description}), not a {what} file"
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
