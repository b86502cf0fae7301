"""Plain arrays ``[L, E]`` or ``[T, L, E]``: npy, npz and CSV; and token routes in npz.

A CSV file has a row per layer and a column per expert; an empty line starts the next window. An npz file
holds ``counts`` (or a single array), with the model's layer numbers in ``layers`` if it likes. Token routes
are an npz file with ``topk [L, tokens, k]`` (expert ids, -1 for none) and, if it likes, ``num_experts``.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..trace import LoadTrace
from .base import MAX_CELLS, LoadFormat, ReadOptions, Recording, id_array, load_array
from .torchfile import ZIP

NPY = b"\x93NUMPY"
# Loads deflate to a fifth or so; what unpacks to a thousand times its size is no recording.
MAX_RATIO = 500
CSV = re.compile(rb"(\xef\xbb\xbf)?[-0-9.][0-9.,;eE+\-\s]*")


def _members(path: Path, head: bytes) -> list[str]:
    """Names of the arrays of an npz file; none if it is something else."""
    if not head.startswith(ZIP):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # a broken archive may fail in any way; it is then simply not recognised
        return []
    return [name[:-4] for name in names if name.endswith(".npy")]


def _detect_arrays(path: Path, head: bytes) -> bool:
    if head.startswith(NPY) or _members(path, head):
        return True
    commas = CSV.fullmatch(head) is not None and b"," in head.split(b"\n", 1)[0]
    return commas or (path.suffix == ".csv" and b"\x00" not in head)


def _read_arrays(path: Path, options: ReadOptions) -> Recording:
    head = path.open("rb").read(8)
    layers = None
    if head.startswith(NPY):
        counts, name = _load_npy(path), "the array"
    elif head.startswith(ZIP):
        arrays = _load_npz(path, "counts", "layers")
        others = [key for key in arrays if key != "layers"]
        if "counts" not in arrays and len(others) != 1:
            raise FormatError(path, f"has no array 'counts' and not just one: {', '.join(others)[:100]}")
        name = "counts" if "counts" in arrays else others[0]
        counts = arrays[name]
        if "layers" in arrays:
            layers = tuple(int(layer) for layer in id_array(path, "layers", arrays["layers"], 1))
    else:
        counts, name = _load_csv(path), "the table"
    loads = load_array(path, name, counts)
    if loads.ndim == 2:
        loads = loads[None]
    return Recording(loads, layers=layers, source=f"array {path.name}")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turns what NumPy, zipfile and zlib say about broken input, which is many things, into `FormatError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers that are refused or understood anyway
            yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's word, not a parser's
            raise
        problem = " ".join(str(error).split())[:100] or type(error).__name__
        problem = "holds Python objects, not numbers" if "allow_pickle" in problem else problem
        raise FormatError(path, f"is cut short or broken: {problem}") from None


def _check_header(stream: IO[bytes], size: int) -> None:
    """Refuse an npy header that claims more than the ``size`` bytes behind it, before memory is taken for it."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    cells = math.prod(int(length) for length in shape)
    if cells > MAX_CELLS or cells * dtype.itemsize > size:
        raise ValueError(f"a header claims the shape {list(shape)}, more than the file holds")


def _load_npy(path: Path) -> npt.NDArray[Any]:
    with _whole(path):
        with path.open("rb") as file:
            _check_header(file, path.stat().st_size)
        return np.asarray(np.load(path, allow_pickle=False))


def _load_npz(path: Path, wanted: str, more: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays ``wanted`` and ``more`` where they are there; all arrays if ``wanted`` is not."""
    with _whole(path), np.load(path, allow_pickle=False) as file:
        for info in file.zip.infolist():
            if info.file_size > max(1 << 24, MAX_RATIO * info.compress_size):
                raise ValueError(f"{info.filename} unpacks to {info.file_size} bytes, no plausible recording")
        names = (
            [name for name in (wanted, more) if name in file.files] if wanted in file.files else file.files
        )
        for name in names:
            with file.zip.open(name + ".npy") as stream:
                _check_header(stream, file.zip.getinfo(name + ".npy").file_size)
        return {name: np.asarray(file[name]) for name in names}


def _load_csv(path: Path) -> npt.NDArray[Any]:
    """The windows of a CSV file: rows of numbers, an empty line between windows."""
    windows: list[list[npt.NDArray[Any]]] = [[]]
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not text:
                windows.append([])
                continue
            row = _row(text.replace(b";", b",").split(b","))
            if row is None:
                found = text[:40].decode("ascii", "replace")
                raise FormatError(path, f"line {number} must be numbers between commas, got {found!r}")
            if windows[0] and row.shape != windows[0][0].shape:
                raise FormatError(
                    path, f"line {number} has {len(row)} numbers, the first {len(windows[0][0])}"
                )
            windows[-1].append(row)
    windows = [window for window in windows if window]
    for number, window in enumerate(windows):
        if len(window) != len(windows[0]):
            raise FormatError(path, f"window {number} has {len(window)} rows, the first {len(windows[0])}")
    if not windows:
        raise FormatError(path, "holds no numbers")
    return np.array(windows)


def _row(fields: list[bytes]) -> npt.NDArray[Any] | None:
    for kind in (np.int64, np.float64):
        try:
            return np.array(fields).astype(kind)
        except (ValueError, OverflowError):
            continue
    return None


def _write_npz(trace: LoadTrace, path: Path) -> None:
    np.savez_compressed(path, counts=trace.counts, layers=np.array(trace.layers))


def _detect_routes(path: Path, head: bytes) -> bool:
    return "topk" in _members(path, head)


def _read_routes(path: Path, options: ReadOptions) -> Recording:
    arrays = _load_npz(path, "topk", "num_experts")
    if "topk" not in arrays:
        raise FormatError(path, f"has no array 'topk'; it has {', '.join(arrays)[:100] or 'none'}")
    topk = arrays["topk"]
    if topk.dtype.kind not in "iu" or topk.ndim != 3 or 0 in topk.shape:
        raise FormatError(path, f"topk must be integers [L, tokens, k], got {topk.dtype} {list(topk.shape)}")
    num_layers, num_tokens, top_k = topk.shape
    num_experts = int(topk.max()) + 1
    if options.num_experts is not None:
        num_experts = options.num_experts
    elif (
        "num_experts" in arrays
        and arrays["num_experts"].size == 1
        and arrays["num_experts"].dtype.kind in "iu"
    ):
        num_experts = int(arrays["num_experts"].reshape(-1)[0])
    low, high = int(topk.min()), int(topk.max())
    if low < -1 or high >= num_experts or high < 0:
        raise FormatError(
            path, f"topk has expert {low if low < -1 else high}, experts are 0 to {num_experts - 1}"
        )
    size = options.window_tokens or num_tokens
    if size > num_tokens:
        raise FormatError(path, f"holds {num_tokens} tokens, fewer than a window of {size}")
    windows = num_tokens // size
    if windows * num_layers * num_experts > MAX_CELLS:
        raise FormatError(path, f"gives [{windows}, {num_layers}, {num_experts}] counts, too many for memory")
    counts = np.zeros((windows, num_layers, num_experts), dtype=np.int64)
    for window in range(windows):
        part = topk[:, window * size : (window + 1) * size].reshape(num_layers, -1).astype(np.int64)
        # Expert -1 stands for none: it is counted in a column of its own and left out.
        keys = part + 1 + np.arange(num_layers)[:, None] * (num_experts + 1)
        table = np.bincount(keys.ravel(), minlength=num_layers * (num_experts + 1))
        counts[window] = table.reshape(num_layers, -1)[:, 1:]
    rest = num_tokens - windows * size
    notes = (f"{rest} tokens after the last whole window of {size} left out",) if rest else ()
    return Recording(counts, top_k=top_k, source=f"token routes {path.name}", notes=notes)


LOADS = LoadFormat(
    "array",
    "plain [L, E] or [T, L, E]: .npy, .npz (counts), .csv",
    _detect_arrays,
    _read_arrays,
    _write_npz,
    (".npz",),
)
ROUTES = LoadFormat(
    "routes", "token routes: .npz with topk [L, tokens, k]", _detect_routes, _read_routes, counts_tokens=True
)
