"""Files of ``torch.save``, read without running what is in them."""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, MissingDependencyError
from .archive import ZIP, check_torch
from .base import table
from .source import check_plain

PICKLE = b"\x80"
# A pickle holds names and shapes, not numbers; nested lists in place of tensors are for small tables.
FREE_PICKLE, PICKLE_PER_TENSOR = 1 << 20, 1 << 12
ITEM_SIZES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("HalfStorage", "ShortStorage", "BFloat16Storage"), 2),
    **dict.fromkeys(("CharStorage", "ByteStorage", "BoolStorage", "UntypedStorage"), 1),
    **dict.fromkeys(("QUInt8Storage", "QInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage"), 1),
    "ComplexDoubleStorage": 16,
}


def is_torch(head: bytes) -> bool:
    """Whether a file may be one of ``torch.save``, by its first bytes."""
    return head.startswith((ZIP, PICKLE))


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise MissingDependencyError(
            f"{path}: .pt files need PyTorch; install it with: pip install 'equipoise[torch]'"
        ) from None
    return torch


def load(path: Path) -> Any:
    """What ``torch.save`` wrote: tensors on the CPU in plain containers.

    Tensors of whatever accelerator become tensors on the CPU. Names, sizes and check sums of the archive are
    compared before torch sees it.

    Raises
    ------
    FormatError
        if the file is broken or its pickle asks for anything else; that is never run
    MissingDependencyError
        without PyTorch
    """
    check_plain(path)
    asked: set[str] = set()
    with path.open("rb") as file:
        zipped = file.read(4) == ZIP
    if zipped:
        asked = _check_pickle(path, check_torch(path))
    torch = _torch(path)
    try:
        with warnings.catch_warnings(), _npu_tensors(torch):
            warnings.simplefilter("ignore")  # about pickles that are refused below anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # the unpickler fails in many ways on broken input
        text = str(error)
        if "Unsupported" in text or "WeightsUnpickler" in text or "weights_only" in text:
            names = sorted(name for name in asked if not name.startswith(("torch.", "collections.")))
            wants = f" ({', '.join(names)[:80]})" if names else ""
            raise FormatError(
                path,
                f"its pickle asks for more than tensors and plain containers{wants}, so it was refused and not "
                "run; save tensors (of an accelerator: tensor.cpu()), numbers, strings, lists and dicts only",
            ) from None
        raise FormatError(path, f"is not a whole file of torch.save: {_first_line(text)}") from None


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["unreadable"])[0][:120]


class _Inert:
    """Stands for whatever a pickle names: nothing is imported and nothing run."""

    def __new__(cls, *args: Any, **more: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **more: Any) -> None:
        pass

    def __call__(self, *args: Any, **more: Any) -> _Inert:
        return _Inert()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    append = extend = add = __setstate__ = __init__


class _Storages(pickle.Unpickler):
    """Goes through a pickle for the storages that it names and how large it says they are."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.claims: list[tuple[str, int]] = []
        """the name of each storage and its bytes"""
        self.asked: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.asked.add(f"{module}.{name}")
        return type(name, (_Inert,), {})

    def persistent_load(self, pid: Any) -> Any:
        _, storage, key, _, count = pid
        self.claims.append((str(key), ITEM_SIZES[storage.__name__] * int(count)))
        return _Inert()


def _check_pickle(path: Path, sizes: dict[str, int]) -> set[str]:
    """Refuse a pickle that claims other sizes than the archive holds; the names that it asks for.

    torch believes the pickle, and hands back what lies behind a storage that is shorter.
    """
    names = [name for name in sizes if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise FormatError(path, "is an archive, but not one that torch.save wrote: it has no data.pkl")
    if sizes[names[0]] > FREE_PICKLE + PICKLE_PER_TENSOR * len(sizes):
        raise FormatError(
            path, f"has a pickle of {sizes[names[0]]} bytes for {len(sizes)} entries: no recording"
        )
    with zipfile.ZipFile(path) as archive:
        data = archive.read(names[0])
    root = names[0].removesuffix("data.pkl")
    found = _Storages(data)
    try:
        # The quick unpickler makes room for whatever place a pickle wants to remember something at.
        if any(
            isinstance(arg, int) and "PUT" in op.name and arg > len(data)
            for op, arg, _ in pickletools.genops(data)
        ):
            raise ValueError("a place far outside")
        found.load()
    except MemoryError:
        raise
    except Exception as error:
        raise FormatError(path, f"its pickle is broken: {_first_line(str(error))}") from None
    for key, size in found.claims:
        if sizes.get(f"{root}data/{key}") != size:
            raise FormatError(
                path, f"is broken: its pickle says {size} bytes of storage {key[:20]!r}, the archive not"
            )
    return found.asked


@contextlib.contextmanager
def _npu_tensors(torch: Any) -> Iterator[None]:
    """Lets torch rebuild what ``torch_npu`` saved, from storage, offset, size and stride, without ``torch_npu``."""

    def _rebuild_npu_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
        return torch._utils._rebuild_tensor(storage, offset, size, stride)

    _rebuild_npu_tensor.__module__ = "torch_npu.utils.storage"
    _rebuild_npu_tensor.__qualname__ = "_rebuild_npu_tensor"
    allowed = getattr(torch.serialization, "safe_globals", None)
    with allowed([_rebuild_npu_tensor]) if allowed is not None else contextlib.nullcontext():
        yield


def encode(content: dict[str, Any]) -> bytes:
    """``torch.save`` of plain containers whose NumPy arrays become tensors, as bytes."""
    torch = _torch(Path("writing"))
    buffer = io.BytesIO()
    torch.save({key: torch.from_numpy(np.array(value)) for key, value in content.items()}, buffer)
    return buffer.getvalue()


def numbers(path: Path, field: str, value: Any) -> npt.NDArray[Any]:
    """A tensor (or nested lists) from a file as a NumPy array; narrow floats become float32.

    Raises `FormatError` for anything else, and for a tensor that claims more numbers than the file holds.
    """
    torch = _torch(path)
    if isinstance(value, torch.Tensor):
        if value.device.type == "meta":
            raise FormatError(path, f"{field} is on the meta device: it has a shape and no numbers")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise FormatError(path, f"{field} must be a plain tensor, got {value.layout} on {value.device}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise FormatError(path, f"{field} claims the shape {list(value.shape)} but holds fewer numbers")
        try:
            if value.is_floating_point() and value.dtype not in (torch.float32, torch.float64):
                value = value.to(torch.float32)  # bfloat16 and float8 are not NumPy's
            return np.asarray(value.detach().numpy())
        except (TypeError, RuntimeError, ValueError):
            raise FormatError(path, f"{field} must be integers or floats, got {value.dtype}") from None
    if isinstance(value, list):
        return table(path, field, value)
    raise FormatError(path, f"{field} must be a tensor, got {type(value).__name__}")


def described(content: Any) -> str:
    """What was saved, in words: the keys of a dict, else the type."""
    if isinstance(content, dict):
        return "the keys " + (", ".join(str(key)[:30] for key in list(content)[:8]) or "(none)")
    return f"a {type(content).__name__}"
