"""What a reader of loads and a reader or writer of placements is, and what they share."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, FileAccessError, FormatError
from ..placement import Placement, check_layers
from ..trace import LoadTrace, check_loads

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all while a large file is read."""

HEAD = 1 << 16
"""Bytes from the start of a file that a format sees to recognise it."""

MAX_CELLS = 1 << 30
"""Numbers in one array; what claims more is refused before memory is taken for it."""

MAX_TOTAL = 2.0**62
"""Sum of all loads of a file: sums of integers stay exact, and those of floats finite."""


@dataclass(frozen=True)
class ReadOptions:
    """What a reader of loads may be told.

    Parameters
    ----------
    window_tokens : length of a window in tokens, for recordings of single tokens
    num_experts : experts per layer, for recordings that only show those that were hit
    progress : called now and then while a large file is read
    """

    window_tokens: int | None = None
    num_experts: int | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Recording:
    """What a load file holds, before hygiene: every layer and step of it, in the order of the file.

    Parameters
    ----------
    counts : ``[S, M, E]``, already checked with `load_array`
    layers : the model's numbers of the ``M`` layers; 0, 1, ... unless given
    num_model_layers, steps, phases, top_k, source : as in `LoadTrace`
    ring : whether the steps come from a ring buffer, whose unused rows are zero
    exact : whether to keep everything as it is, as for a trace that was cleaned before it was written
    notes : what the reader already had to decide, in words
    """

    counts: npt.NDArray[Any]
    layers: tuple[int, ...] | None = None
    num_model_layers: int | None = None
    steps: npt.NDArray[np.int64] | None = None
    phases: tuple[str, ...] | None = None
    top_k: int | None = None
    source: str = ""
    ring: bool = False
    exact: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadFormat:
    """A kind of load file: how it is recognised, read and (for some) written.

    ``detect(path, head)`` sees the first bytes of a file (nothing of a folder) and must not raise on strange
    input; ``read(path, options)`` returns a recording or raises `FormatError`. `OSError` is translated by the
    caller.
    """

    name: str
    description: str
    detect: Callable[[Path, bytes], bool]
    read: Callable[[Path, ReadOptions], Recording]
    write: Callable[[LoadTrace, Path], None] | None = None
    suffixes: tuple[str, ...] = ()
    counts_tokens: bool = False
    """whether it records single tokens, so that ``window_tokens`` and ``num_experts`` make sense"""


@dataclass(frozen=True)
class PlacementRows:
    """What a placement file says: the slots of some layers, and what it tells about ranks and layer numbers.

    Parameters
    ----------
    phy2log : ``[M, R]``
    num_ranks : where the file tells
    num_experts : where the file tells; else the largest expert plus one
    layers : the model's layer numbers where the file has them; None if it only counts MoE layers
    num_model_layers : where the file tells
    """

    phy2log: npt.NDArray[np.int64]
    num_ranks: int | None = None
    num_experts: int | None = None
    layers: tuple[int, ...] | None = None
    num_model_layers: int | None = None


@dataclass(frozen=True)
class PlacementFormat:
    """A kind of placement file.

    ``write(placement, path)`` writes to a temporary file whose final name has one of ``suffixes``, and raises
    `PlacementError` for what the engine would refuse.
    """

    name: str
    description: str
    suffixes: tuple[str, ...]
    detect: Callable[[Path, bytes], bool]
    read: Callable[[Path], PlacementRows]
    write: Callable[[Placement, Path], None]


def load_array(path: Path, field: str, values: Any, dimensions: tuple[int, ...] = (2, 3)) -> npt.NDArray[Any]:
    """Loads from a file, checked: finite, not negative, not empty, whole numbers as int64.

    Raises `FormatError` naming the field and the place in it.
    """
    try:
        if isinstance(values, np.ndarray) and values.size > MAX_CELLS:
            raise ArgumentError(f"{field} claims the shape {list(values.shape)}, beyond {MAX_CELLS} numbers")
        array = check_loads(values, field, dimensions)
        if not array.sum(dtype=np.float64) < MAX_TOTAL:
            raise ArgumentError(f"{field} adds up to more than can be counted")
    except (ArgumentError, OverflowError, TypeError) as error:
        raise FormatError(path, str(error)) from None
    if array.dtype.kind == "f":
        # Engines that average or dump through floats write 12.0 for twelve tokens.
        whole = array.max() < 2**53 and bool((array == np.floor(array)).all())
        return array.astype(np.int64) if whole else array
    return array


def id_array(path: Path, field: str, values: Any, dimensions: int) -> npt.NDArray[np.int64]:
    """Expert ids (or other integers) from a file as int64, of the given number of axes and not empty."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError, TypeError):  # ragged nested lists
        raise FormatError(path, f"{field} is ragged: all rows need the same length") from None
    if array.dtype.kind not in "iu":
        raise FormatError(path, f"{field} must be integers, got {array.dtype}")
    if array.ndim != dimensions or 0 in array.shape:
        raise FormatError(path, f"{field} must have {dimensions} axes, none empty, got {list(array.shape)}")
    if array.size > MAX_CELLS:
        raise FormatError(path, f"{field} claims the shape {list(array.shape)}, beyond {MAX_CELLS} numbers")
    return array.astype(np.int64)


def fold(
    path: Path, field: str, physical: npt.NDArray[Any], phy2log: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """Loads of slots ``[M, R]`` added up to loads of logical experts ``[M, E]`` through ``phy2log [M, R]``.

    ``E`` is the largest expert of the map plus one: every expert has a slot.
    """
    if physical.shape != phy2log.shape:
        raise FormatError(
            path,
            f"{field} has the shape {list(physical.shape)}, its map {list(phy2log.shape)}: they must agree",
        )
    num_layers, num_slots = phy2log.shape
    if phy2log.min() < 0 or phy2log.max() >= num_slots:
        bad = phy2log[(phy2log < 0) | (phy2log >= num_slots)][0]
        raise FormatError(path, f"the map of {field} has expert {bad}, expected 0 to {num_slots - 1}")
    logical = np.zeros((num_layers, int(phy2log.max()) + 1), dtype=physical.dtype)
    np.add.at(logical, (np.arange(num_layers)[:, None], phy2log), physical)
    return logical


def json_with(head: bytes, key: str) -> bool:
    """Whether the start of a file is that of a JSON object with this key."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return text.startswith(b"{") and re.search(rb'"%s"\s*:' % key.encode(), text) is not None


def layer_number(path: Path, field: str, key: Any) -> int:
    """A layer number written as an integer or as its digits (JSON keys are strings)."""
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10:
        return int(key)
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < 10**9:
        return key
    raise FormatError(path, f"{field} must be a layer number, got {str(key)[:40]!r}")


def to_placement(
    path: Path,
    rows: PlacementRows,
    num_ranks: int | None,
    layers: tuple[int, ...] | None,
    num_model_layers: int | None,
) -> Placement:
    """The placement of the MoE layers that are wanted, with what the file left open filled in.

    Raises
    ------
    FormatError
        if the file is no legal placement, or contradicts what the caller says
    ArgumentError
        if the file does not tell the number of ranks and the caller does not either
    """
    if num_ranks is None and rows.num_ranks is None:
        raise ArgumentError(
            f"{path} does not say how many ranks its {rows.phy2log.shape[1]} slots are on: give num_ranks (--ranks)"
        )
    if num_ranks is not None and rows.num_ranks is not None and num_ranks != rows.num_ranks:
        raise FormatError(path, f"is for {rows.num_ranks} ranks, but num_ranks={num_ranks} is asked for")
    phy2log, numbers = rows.phy2log, rows.layers
    if layers is not None and numbers is not None:
        missing = sorted(set(layers) - set(numbers))
        if missing:
            raise FormatError(path, f"has no layer {missing[0]}; it has {_ranges(numbers)}")
        position = {layer: row for row, layer in enumerate(numbers)}
        phy2log = phy2log[[position[layer] for layer in layers]]
    elif layers is not None and len(layers) != len(phy2log):
        raise FormatError(path, f"holds {len(phy2log)} MoE layers, but {len(layers)} are asked for")
    numbers = layers if layers is not None else numbers
    experts = rows.num_experts if rows.num_experts is not None else int(rows.phy2log.max()) + 1
    if not 0 < experts <= phy2log.shape[1]:
        raise FormatError(path, f"has {phy2log.shape[1]} slots a layer, too few for {experts} experts")
    total = rows.num_model_layers if num_model_layers is None else num_model_layers
    ranks = rows.num_ranks if rows.num_ranks is not None else num_ranks
    assert ranks is not None
    try:
        return Placement(phy2log, ranks, experts, layers=numbers or (), num_model_layers=total)
    except ArgumentError as error:
        raise FormatError(path, str(error)) from None


def _ranges(numbers: tuple[int, ...]) -> str:
    """Layer numbers in words: "3 to 60" if they are contiguous."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    shown = ", ".join(str(number) for number in numbers[:12])
    return shown + (", ..." if len(numbers) > 12 else "")


def model_layers(path: Path, layers: tuple[int, ...], field: str) -> tuple[int, ...]:
    """Layer numbers as `check_layers` wants them, with errors that name the file and field."""
    try:
        return check_layers(layers, len(layers), None)
    except ArgumentError as error:
        raise FormatError(path, f"{field}: {error}") from None


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what the system says about a file into `FileAccessError`, and too large into `FormatError`."""
    try:
        yield
    except FileAccessError:
        raise
    except FileNotFoundError as error:
        raise FileAccessError(error.filename or path, "does not exist") from None
    except OSError as error:
        raise FileAccessError(path, f"cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise FormatError(path, "needs more memory than there is; regroup or cut it first") from None


@contextlib.contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """A path to write to that becomes ``path`` only if the block succeeds: no half-written files.

    Raises `FileAccessError` if the folder cannot be written.
    """
    try:
        if path.is_dir():
            raise FileAccessError(path, "is a folder; name a file to write")
        # The suffix stays last: writers choose between .json and .pt by it.
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except FileNotFoundError:
        raise FileAccessError(path, f"the folder {path.parent} does not exist") from None
    except FileAccessError:
        raise
    except OSError as error:
        raise FileAccessError(path, f"cannot be written: {error.strerror or error}") from None
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes files private; an engine may run as another user
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, FileAccessError):
            raise
        raise FileAccessError(path, f"cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
