"""Plain arrays ``[L, E]`` or ``[T, L, E]``: npy, npz, CSV and tensors; and token routes in npz.

An npz file holds ``counts`` (or a single array), with the model's layer numbers in ``layers`` and pair counts
``[L, E, E]`` in ``pairs`` if it likes; a ``.pt`` file the bare tensor. CSV files are read in
`equipoise.formats.texttable`. Token routes are an npz file with ``topk [L, tokens, k]`` (expert ids, -1 for none)
and, if it likes, ``num_experts``.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..routes import PairCounts
from ..trace import LoadTrace
from . import pairs as pair_tables
from . import texttable, torchfile
from .archive import ZIP, entries
from .base import MAX_CELLS, LoadFormat, Peek, ReadOptions, Recording, id_array, load_array
from .models import is_counted
from .source import check_plain

NPY = b"\x93NUMPY"
# Loads deflate to a fifth or so; what unpacks to a thousand times its size is no recording.
MAX_RATIO = 500
# The pickle of a tensor or a list; that of a dict begins otherwise. Old files begin with a number and a version.
BARE = re.compile(
    rb"(?s)\x80.(ctorch|\]|\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.(?!.*(logical|records)).*_rebuild_tensor)"
)
MAX_NPZ_DIRECTORY = 1 << 18
"""bytes of the directory of an npz file: thousands of arrays"""
MAX_EXPERTS = 1 << 20


def _members(peek: Peek) -> list[str]:
    """Names of the arrays of an npz file; none if it is something else."""
    return [name[:-4] for name in peek.names if name.endswith(".npy")]


def _detect_arrays(peek: Peek) -> bool:
    return (
        peek.head.startswith(NPY)
        or bool(_members(peek))
        or BARE.match(peek.pickle) is not None
        or texttable.detect(peek)
    )


def _read_arrays(path: Path, options: ReadOptions) -> Recording:
    check_plain(path)
    with path.open("rb") as file:
        head = file.read(8)
    layers, name, pairs = None, "the array", None
    if head.startswith(NPY):
        counts = _load_npy(path)
    elif head.startswith(ZIP) and not _is_torch_archive(path):
        arrays = _load_npz(path, "counts", "layers", pair_tables.NAME)
        others = [key for key in arrays if key != "layers"]
        if "counts" not in arrays and len(others) != 1:
            raise FormatError(path, f"has no array 'counts' and not just one: {', '.join(others)[:100]}")
        name = "counts" if "counts" in arrays else others[0]
        counts = arrays[name]
        if "layers" in arrays:
            layers = tuple(int(layer) for layer in id_array(path, "layers", arrays["layers"], 1))
        pairs = arrays.get(pair_tables.NAME) if "counts" in arrays else None
    elif torchfile.is_torch(head):
        counts, name = _load_tensor(path), "the tensor"
    else:
        counts, layers = texttable.read(path)
        name = "the table"
    loads = load_array(path, name, counts)
    _refuse_pattern(path, name, loads)
    if loads.ndim == 2:
        loads = loads[None]
    counted = layers is None or is_counted(layers, None)
    if pairs is not None:
        pairs = pair_tables.square(path, pairs, loads)
    return Recording(loads, layers=layers, counted=counted, source=f"array {path.name}", pairs=pairs)


def _is_torch_archive(path: Path) -> bool:
    return any(info.filename.endswith("/data.pkl") for info in entries(path))


def _load_tensor(path: Path) -> npt.NDArray[Any]:
    content = torchfile.load(path)
    if isinstance(content, (dict, str, int, float)) or content is None:
        raise FormatError(
            path,
            f"holds {torchfile.described(content)}: expected the bare tensor [L, E], a dict with "
            "'logical_count' (SGLang), or a folder of per_pass dumps",
        )
    return torchfile.numbers(path, "the tensor", content)


def _refuse_pattern(path: Path, name: str, loads: npt.NDArray[Any]) -> None:
    """Refuse a table that says with 0 and 1 which rank holds which expert, instead of counting tokens.

    Every layer has every expert somewhere in it, as a placement must. Windows of single tokens look different:
    most experts of a layer are in none of them, or some are in many.
    """
    if loads.ndim != 3 or loads.min() != 0 or loads.max() != 1 or len(loads) < 2:
        return
    held = loads.sum(axis=0)
    if held.min() >= 1:
        raise FormatError(
            path,
            f"{name} is {list(loads.shape)} of 0 and 1 with every expert of every layer in it: a placement pattern "
            "[ranks, layers, experts] rather than loads; plan from counts of tokens",
        )


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
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the system's word, and not about a place before the file
        problem = " ".join(str(error).split())[:100] or type(error).__name__
        problem = "holds Python objects, not numbers" if "allow_pickle" in problem else problem
        raise FormatError(path, f"is cut short or broken: {problem}") from None


def _check_header(stream: IO[bytes], size: int) -> None:
    """Refuse an npy header that claims another size than the file of ``size`` bytes has.

    More would take memory for it; with less, the rest would not be read and its check sum not compared.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    cells = math.prod(int(length) for length in shape)
    held = size - stream.tell()
    if cells > MAX_CELLS or cells * dtype.itemsize > held:
        raise ValueError(f"a header claims the shape {list(shape)}, more than the file holds")
    if cells * dtype.itemsize < held and not dtype.hasobject:
        raise ValueError(f"a header claims the shape {list(shape)}, less than the file holds")


def _load_npy(path: Path) -> npt.NDArray[Any]:
    with _whole(path):
        with path.open("rb") as file:
            _check_header(file, path.stat().st_size)
        return np.asarray(np.load(path, allow_pickle=False))


def _load_npz(path: Path, wanted: str, *more: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays ``wanted`` and ``more`` where they are there; all arrays if ``wanted`` is not."""
    check_plain(path)
    infos = entries(path, MAX_NPZ_DIRECTORY)
    for info in infos:
        if info.file_size > max(1 << 24, MAX_RATIO * info.compress_size):
            raise FormatError(
                path, f"{info.filename[:40]} unpacks to {info.file_size} bytes, no plausible recording"
            )
        if not info.filename.endswith(".npy"):
            raise FormatError(
                path, f"holds {info.filename[:40]!r}, which is no array: damaged, or no npz file"
            )
    with _whole(path), np.load(path, allow_pickle=False) as file:
        for info in infos:
            file.zip.open(info).close()  # compares the name with the one beside the data
        names = [name for name in (wanted, *more) if name in file.files]
        if wanted not in names:
            names = file.files
            if len(names) > 2:
                raise ValueError(f"no array {wanted!r} among the {len(names)} arrays {', '.join(names[:8])}")
        for name in names:
            with file.zip.open(name + ".npy") as stream:
                _check_header(stream, file.zip.getinfo(name + ".npy").file_size)
        return {name: np.asarray(file[name]) for name in names}


def _encode_npz(trace: LoadTrace, pairs: PairCounts | None) -> bytes:
    buffer = io.BytesIO()
    found: dict[str, Any] = {"counts": trace.counts, "layers": np.array(trace.layers)}
    if pairs is not None:
        found[pair_tables.NAME] = pair_tables.narrowest(pairs.counts)
    np.savez_compressed(buffer, **found)
    return buffer.getvalue()


def has_pairs(peek: Peek) -> bool:
    """Whether an npz file of loads has pair counts beside them."""
    return {"counts", pair_tables.NAME} <= set(_members(peek))


def _detect_routes(peek: Peek) -> bool:
    return "topk" in _members(peek)


def read_topk(path: Path, num_experts: int | None) -> tuple[npt.NDArray[Any], int]:
    """Token routes ``[L, tokens, k]`` of an npz file, and experts per layer.

    ``num_experts`` is what the caller says, else the file, else the largest expert and one.
    """
    arrays = _load_npz(path, "topk", "num_experts")
    if "topk" not in arrays:
        raise FormatError(path, f"has no array 'topk'; it has {', '.join(arrays)[:100] or 'none'}")
    topk = arrays["topk"]
    if topk.dtype.kind not in "iu" or topk.ndim != 3 or 0 in topk.shape:
        raise FormatError(path, f"topk must be integers [L, tokens, k], got {topk.dtype} {list(topk.shape)}")
    told = arrays.get("num_experts")
    if num_experts is None and told is not None and told.size == 1 and told.dtype.kind in "iu":
        num_experts = int(told.reshape(-1)[0])
    if num_experts is None:
        num_experts = int(topk.max()) + 1
    if num_experts > MAX_EXPERTS:
        raise FormatError(path, f"has {num_experts} experts a layer, more than any model")
    low, high = int(topk.min()), int(topk.max())
    if low < -1 or high >= num_experts or high < 0:
        raise FormatError(
            path, f"topk has expert {low if low < -1 else high}, experts are 0 to {num_experts - 1}"
        )
    return topk, num_experts


def _read_routes(path: Path, options: ReadOptions) -> Recording:
    topk, num_experts = read_topk(path, options.num_experts)
    num_layers, num_tokens, top_k = topk.shape
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
    return Recording(counts, top_k=top_k, counted=True, source=f"token routes {path.name}", notes=notes)


LOADS = LoadFormat(
    "array",
    "plain [L, E] or [T, L, E]: .npy, .npz (counts), .csv, .pt with a bare tensor",
    _detect_arrays,
    _read_arrays,
    _encode_npz,
    (".npz",),
)
ROUTES = LoadFormat(
    "routes", "token routes: .npz with topk [L, tokens, k]", _detect_routes, _read_routes, counts_tokens=True
)
