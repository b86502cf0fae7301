"""Files of ``torch.save``, read without running what is in them."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, MissingDependencyError

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
# The pickle of a dump holds names and shapes, not numbers: a few MB even for thousands of records.
MAX_PICKLE = 1 << 28


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise MissingDependencyError(
            f"{path}: .pt files need PyTorch; install it with: pip install 'equipoise[torch]'"
        ) from None
    return torch


def mentions(path: Path, head: bytes, words: tuple[bytes, ...]) -> bool:
    """Whether a file of ``torch.save`` has all these strings in its pickle; nothing is unpickled."""
    if head.startswith(PICKLE):
        return all(word in head for word in words)
    if not head.startswith(ZIP):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if not names or archive.getinfo(names[0]).file_size > MAX_PICKLE:
                return False
            pickle = archive.read(names[0])
    except Exception:  # a broken archive may fail in any way; it is then simply not recognised
        return False
    return all(word in pickle for word in words)


def load(path: Path) -> Any:
    """What ``torch.save`` wrote: tensors on the CPU in plain containers.

    Raises
    ------
    FormatError
        if the file is broken or its pickle asks for anything else; that is never run
    MissingDependencyError
        without PyTorch
    """
    torch = _torch(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are refused below anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler fails in many ways on broken input
        text = str(error)
        if "Unsupported" in text or "WeightsUnpickler" in text or "weights_only" in text:
            raise FormatError(
                path,
                "its pickle asks for more than tensors and plain containers, so it was refused and not run; "
                "save tensors, numbers, strings, lists and dicts only",
            ) from None
        raise FormatError(path, f"is not a whole file of torch.save: {_first_line(text)}") from None


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["unreadable"])[0][:120]


def save(path: Path, content: Any) -> None:
    """``torch.save`` of plain containers whose NumPy arrays become tensors."""
    torch = _torch(path)
    torch.save({key: torch.from_numpy(np.array(value)) for key, value in content.items()}, path)


def numbers(path: Path, field: str, value: Any) -> npt.NDArray[Any]:
    """A tensor (or nested lists) from a file as a NumPy array.

    Raises `FormatError` for anything else, and for a tensor that claims more numbers than the file holds.
    """
    torch = _torch(path)
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise FormatError(path, f"{field} must be a plain tensor, got {value.layout} on {value.device}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise FormatError(path, f"{field} claims the shape {list(value.shape)} but holds fewer numbers")
        try:
            return np.asarray(value.detach().numpy())
        except (TypeError, RuntimeError, ValueError):
            raise FormatError(path, f"{field} must be integers or floats, got {value.dtype}") from None
    if isinstance(value, list):
        try:
            return np.asarray(value)
        except (ValueError, OverflowError, TypeError, RuntimeError):
            raise FormatError(path, f"{field} is ragged: all rows need the same length") from None
    raise FormatError(path, f"{field} must be a tensor, got {type(value).__name__}")
