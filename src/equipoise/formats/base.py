"""What a reader of loads and a reader or writer of placements is, and what they share."""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, FileAccessError, FormatError
from ..placement import Placement, check_layers
from ..routes import PairCounts
from ..trace import LoadTrace, check_loads
from .archive import ZIP, entries

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all while a large file is read."""

HEAD = 1 << 16
"""Bytes from the start of a file that a format sees to recognise it."""

PICKLE = b"\x80"
MAX_PICKLE = 1 << 26
"""Bytes of a pickle that are looked at to recognise a file."""

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
    num_model_layers, steps, phases, top_k, source, unit, batches : as in `LoadTrace`
    every_layer : whether the rows are all hidden layers of the model, so that dense ones are rows without load
    counted : whether the file counts its layers from 0 and does not know the model's numbers
    ring : whether the steps come from a ring buffer, whose unused rows are zero
    exact : whether to keep everything as it is, as for a trace that was cleaned before it was written
    pairs : ``[M, E * (E + 1) / 2]``, pair counts of all steps together, see `equipoise.formats.pairs`
    notes : what the reader already had to decide, in words
    """

    counts: npt.NDArray[Any]
    layers: tuple[int, ...] | None = None
    num_model_layers: int | None = None
    steps: npt.NDArray[np.int64] | None = None
    phases: tuple[str, ...] | None = None
    top_k: int | None = None
    source: str = ""
    every_layer: bool = False
    counted: bool = False
    ring: bool = False
    exact: bool = False
    pairs: npt.NDArray[Any] | None = None
    notes: tuple[str, ...] = ()
    unit: str = "tokens"
    batches: npt.NDArray[np.int64] | None = None


class Peek:
    """What a format sees of a file to recognise it. Nothing here raises on strange input.

    Parameters
    ----------
    path : the file or folder
    head : the first bytes of a file, none of a folder
    """

    def __init__(self, path: Path, head: bytes) -> None:
        self.path = path
        self.head = head
        self.trouble: str | None = None
        """what is wrong with a ZIP archive, once `names` was asked for"""

    @cached_property
    def names(self) -> list[str]:
        """Names of the entries of a ZIP archive; none if it is something else or broken."""
        if not self.head.startswith(ZIP):
            return []
        try:
            return [info.filename for info in entries(self.path)]
        except FormatError as error:
            self.trouble = error.problem
        except OSError:
            pass
        return []

    @cached_property
    def pickle(self) -> bytes:
        """The pickle of a file of ``torch.save``, not run; empty if there is none."""
        if self.head.startswith(PICKLE):
            return self.head
        name = next((name for name in self.names if name.endswith("data.pkl")), None)
        if name is None:
            return b""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(name) as file:
                return file.read(MAX_PICKLE)
        except Exception:  # a broken archive may fail in any way; it is then simply not recognised
            return b""

    def has_key(self, *keys: str) -> bool:
        """Whether it begins like a JSON object with one of these keys, or is a pickle with all these strings."""
        text = self.head.lstrip(b"\xef\xbb\xbf \t\r\n")
        if text.startswith(b"{"):
            return any(re.search(rb'"%s"\s*:' % key.encode(), text) for key in keys)
        return bool(self.pickle) and all(key.encode() in self.pickle for key in keys)


@dataclass(frozen=True)
class LoadFormat:
    """A kind of load file: how it is recognised, read and (for some) written.

    ``detect(peek)`` must not raise on strange input; ``read(path, options)`` returns a recording or raises
    `FormatError`; ``encode(trace, pairs)`` gives the bytes of a file. `OSError` is translated by the caller.
    """

    name: str
    description: str
    detect: Callable[[Peek], bool]
    read: Callable[[Path, ReadOptions], Recording]
    encode: Callable[[LoadTrace, PairCounts | None], bytes] | None = None
    suffixes: tuple[str, ...] = ()
    counts_tokens: bool = False
    """whether it records single tokens, so that ``window_tokens`` and ``num_experts`` make sense"""
    units: tuple[str, ...] = ("tokens",)
    """what counts that are written so may be of: who reads the file takes them for that"""


@dataclass(frozen=True)
class PlacementRows:
    """What a placement file says: the slots of some layers, and what it tells about ranks and layer numbers.

    Parameters
    ----------
    phy2log : ``[M, R]``; -1 for a slot without an expert
    num_ranks : where the file tells
    num_experts : where the file tells; else the largest expert plus one
    layers : the model's layer numbers where the file has them; None if it only counts MoE layers
    num_model_layers : where the file tells
    every_layer : whether the rows are all hidden layers of the model, dense ones filled with something
    split : that the placement was made for, see `Placement`
    """

    phy2log: npt.NDArray[np.int64]
    num_ranks: int | None = None
    num_experts: int | None = None
    layers: tuple[int, ...] | None = None
    num_model_layers: int | None = None
    every_layer: bool = False
    split: str = "even"


@dataclass(frozen=True)
class PlacementFormat:
    """A kind of placement file.

    ``encode(placement, suffix)`` gives the bytes of a file whose name ends in one of ``suffixes``, and raises
    `PlacementError` for what the engine would refuse.
    """

    name: str
    description: str
    suffixes: tuple[str, ...]
    detect: Callable[[Peek], bool]
    read: Callable[[Path], PlacementRows]
    encode: Callable[[Placement, str], bytes]
    counts: Literal["model", "moe", "both"] = "both"
    """whether its layer numbers are the model's, or MoE layers counted from 0; ``both`` if it keeps what it gets"""
    splits: tuple[str, ...] = ("even",)
    """for which splits a placement may be made that is written so: those that who reads it serves with"""


def load_array(path: Path, field: str, values: Any, dimensions: tuple[int, ...] = (2, 3)) -> npt.NDArray[Any]:
    """Loads from a file, checked: finite, not negative, not empty, whole numbers as int64.

    Raises `FormatError` naming the field and the place in it.
    """
    try:
        values = table(path, field, values)
        if values.size > MAX_CELLS:
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


class Blocks:
    """A list of arrays of one shape that does not keep thousands of small ones."""

    SIZE = 1024

    def __init__(self) -> None:
        self._whole: list[npt.NDArray[Any]] = []
        self._parts: list[npt.NDArray[Any]] = []

    def append(self, part: npt.NDArray[Any]) -> None:
        """Add an array, of the shape of those before."""
        self._parts.append(part)
        if len(self._parts) == self.SIZE:
            self._whole.append(np.stack(self._parts))
            self._parts = []

    def __len__(self) -> int:
        return len(self._whole) * self.SIZE + len(self._parts)

    def stacked(self) -> npt.NDArray[Any]:
        """All of them along a new first axis."""
        return np.concatenate([*self._whole, np.stack(self._parts)] if self._parts else self._whole)


def table(path: Path, field: str, values: Any) -> npt.NDArray[Any]:
    """Nested lists from a file as an array; `FormatError` if they are ragged or hold true or false."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError, TypeError, RuntimeError):
        raise FormatError(path, f"{field} is ragged: all rows need the same length") from None
    # NumPy takes true for 1 where numbers stand beside it.
    if array.dtype == np.bool_ or (isinstance(values, list) and _has_booleans(values)):
        raise FormatError(path, f"{field} holds true or false, which are no counts")
    return array


def _has_booleans(values: list[Any]) -> bool:
    if values and isinstance(values[0], list):
        return any(_has_booleans(part) for part in values if isinstance(part, list))
    return bool in set(map(type, values))


def id_array(path: Path, field: str, values: Any, dimensions: int) -> npt.NDArray[np.int64]:
    """Expert ids (or other integers) from a file as int64, of the given number of axes and not empty."""
    array = table(path, field, values)
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

    ``E`` is the largest expert of the map plus one. Slots of -1 are empty and have no load.
    """
    if physical.shape != phy2log.shape:
        raise FormatError(
            path,
            f"{field} has the shape {list(physical.shape)}, its map {list(phy2log.shape)}: they must agree",
        )
    num_layers, num_slots = phy2log.shape
    if phy2log.min() < -1 or phy2log.max() >= num_slots:
        bad = phy2log[(phy2log < -1) | (phy2log >= num_slots)][0]
        raise FormatError(path, f"the map of {field} has expert {bad}, expected 0 to {num_slots - 1}")
    if physical[phy2log == -1].any():
        raise FormatError(path, f"{field} has load in slots that its map calls empty (-1)")
    logical = np.zeros((num_layers, int(phy2log.max()) + 2), dtype=physical.dtype)
    np.add.at(logical, (np.arange(num_layers)[:, None], phy2log), physical)
    return logical[:, :-1]  # empty slots went to the last column


def layer_number(path: Path, field: str, key: Any) -> int:
    """A layer number written as an integer or as its digits (JSON keys are strings)."""
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10:
        return int(key)
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < 10**9:
        return key
    raise FormatError(path, f"{field} must be a layer number, got {str(key)[:40]!r}")


def choose_rows(
    path: Path,
    rows: PlacementRows,
    num_ranks: int | None,
    layers: tuple[int, ...] | None,
    num_model_layers: int | None,
) -> PlacementRows:
    """The rows of the MoE layers that are wanted, with what the file left open filled in; slots may be empty.

    Raises
    ------
    FormatError
        if the file lacks a layer
    ArgumentError
        if the file does not tell the number of ranks and the caller does not either
    """
    ranks = rows.num_ranks if rows.num_ranks is not None else num_ranks
    if ranks is None:
        raise ArgumentError(
            f"{path} does not say how many ranks its {rows.phy2log.shape[1]} slots are on: give num_ranks (--ranks)"
        )
    phy2log, numbers = rows.phy2log, rows.layers
    if numbers is not None and len(numbers) != len(phy2log):
        raise FormatError(path, f"names {len(numbers)} layers, but has slots of {len(phy2log)}")
    if layers is not None and numbers is not None:
        missing = sorted(set(layers) - set(numbers))
        if missing:
            raise FormatError(path, f"has no layer {missing[0]}; it has {ranges(numbers)}")
        position = {layer: row for row, layer in enumerate(numbers)}
        phy2log = phy2log[[position[layer] for layer in layers]]
    elif layers is not None and len(layers) != len(phy2log):
        raise FormatError(path, f"holds {len(phy2log)} MoE layers, but {len(layers)} are asked for")
    experts = rows.num_experts if rows.num_experts is not None else int(phy2log.max()) + 1
    total = rows.num_model_layers if num_model_layers is None else num_model_layers
    wanted = layers if layers is not None else numbers
    return PlacementRows(phy2log, ranks, experts, wanted, total, split=rows.split)


def to_placement(path: Path, rows: PlacementRows, num_ranks: int | None) -> Placement:
    """The rows of a file as a placement; ``num_ranks`` is what the caller expects, None if he expects nothing.

    Raises `FormatError` if they are no legal placement of that many ranks.
    """
    phy2log, ranks, experts = rows.phy2log, rows.num_ranks, rows.num_experts
    assert ranks is not None
    assert experts is not None
    if num_ranks is not None and num_ranks != ranks:
        raise FormatError(path, f"is for {ranks} ranks, but num_ranks={num_ranks} is asked for")
    empty = int((phy2log == -1).sum())
    if empty:
        lost = sum(experts - len(set(row) - {-1}) for row in phy2log.tolist())
        raise FormatError(
            path,
            f"has {empty} of {phy2log.size} slots without an expert (-1)"
            + (f" and lacks {lost} experts" if lost else "")
            + ": not a whole placement",
        )
    if not 0 < experts <= phy2log.shape[1]:
        raise FormatError(path, f"has {phy2log.shape[1]} slots a layer, too few for {experts} experts")
    try:
        return Placement(
            phy2log,
            ranks,
            experts,
            layers=rows.layers or (),
            num_model_layers=rows.num_model_layers,
            split=rows.split,
        )
    except ArgumentError as error:
        raise FormatError(path, str(error)) from None


def ranges(numbers: tuple[int, ...]) -> str:
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
