"""Any safetensors file as NumPy arrays, with the number types that NumPy lacks and what the library lets pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from .jsonstream import parse_json
from .source import check_plain

MAX_HEADER = 1 << 26
"""bytes of a header: half a million tensors"""


def _from_bfloat16(raw: bytes) -> npt.NDArray[Any]:
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)


def _from_e5m2(raw: bytes) -> npt.NDArray[Any]:
    # The upper half of a float16.
    return (np.frombuffer(raw, np.uint8).astype(np.uint16) << 8).view(np.float16).astype(np.float32)


def _from_e4m3(raw: bytes) -> npt.NDArray[Any]:
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    size[(code & 127) == 127] = np.nan
    values = np.where(code & 128, -size, size).astype(np.float32)
    return values[np.frombuffer(raw, np.uint8)]


# The types of OCP 8-bit floating point (OFP8), which PyTorch calls float8_e4m3fn and float8_e5m2.
WIDENED: dict[str, Callable[[bytes], npt.NDArray[Any]]] = {
    "BF16": _from_bfloat16,
    "F8_E4M3": _from_e4m3,
    "F8_E5M2": _from_e5m2,
}


def read_safetensors(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """The arrays and the metadata of a safetensors file; narrow floats become float32.

    Raises `FormatError` for broken files, and for a header with a key twice, of which the library takes the last.
    """
    from safetensors import SafetensorError, safe_open

    check_plain(path)
    header, start = _header(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {
                name: _widened(path, header[name], start)
                if header[name]["dtype"] in WIDENED
                else file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - it is no mapping
            }
    except OSError:
        raise
    except (SafetensorError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise FormatError(path, f"is not a whole safetensors file: {str(error)[:120]}") from None
    return arrays, metadata


def names_in(path: Path) -> set[str]:
    """Names of the arrays of a safetensors file, by its header alone. Raises `FormatError` for a broken one."""
    return set(_header(path)[0]) - {"__metadata__"}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and the byte behind it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MAX_HEADER:
            raise FormatError(path, f"is not a whole safetensors file: a header of {length} bytes")
        text = file.read(length)
    try:
        header = parse_json(path, text, "its header")
    except FormatError:
        raise
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise FormatError(path, "is not a whole safetensors file: its header is not JSON")
    return header, 8 + length


def _widened(path: Path, entry: dict[str, Any], start: int) -> npt.NDArray[Any]:
    """An array of a type that NumPy lacks; the library has checked its place and size."""
    first, last = entry["data_offsets"]
    with path.open("rb") as file:
        file.seek(start + first)
        flat = WIDENED[entry["dtype"]](file.read(last - first))
    return np.reshape(flat, entry["shape"])
