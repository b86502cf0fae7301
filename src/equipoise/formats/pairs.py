"""Pair counts in load files: the upper triangles of their symmetric tables, all windows of a file together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, FormatError
from ..routes import PairCounts
from .base import load_array

NAME = "pairs"
"""the array in Equipoise's own files and in npz files"""


def packed(counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Upper triangles ``[L, E * (E + 1) / 2]`` of symmetric counts ``[L, E, E]``, row by row, in the fewest bytes."""
    first, second = np.triu_indices(counts.shape[1])
    return narrowest(counts[:, first, second])


def narrowest(counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Counts in the integers of the fewest bytes that hold them; floats as they are."""
    return counts.astype(np.min_scalar_type(counts.max())) if counts.dtype.kind in "iu" else counts


def unpacked(upper: npt.NDArray[Any], num_experts: int) -> npt.NDArray[Any]:
    """Symmetric counts ``[L, E, E]`` of their upper triangles."""
    first, second = np.triu_indices(num_experts)
    kind = np.float64 if upper.dtype.kind == "f" else np.int64
    counts = np.empty((len(upper), num_experts, num_experts), kind)
    counts[:, first, second] = upper
    counts[:, second, first] = upper
    return counts


def checked(path: Path, upper: npt.NDArray[Any], counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Triangles of a file with loads ``counts [T, M, E]``; `FormatError` where they are none of these loads."""
    num_layers, num_experts = counts.shape[1:]
    wanted = (num_layers, num_experts * (num_experts + 1) // 2)
    if upper.shape != wanted:
        raise FormatError(
            path,
            f"{NAME} must be [layers, experts * (experts + 1) / 2] = {list(wanted)}, got {list(upper.shape)}",
        )
    load_array(path, NAME, upper, (2,))
    return upper


def square(path: Path, table: npt.NDArray[Any], counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same from whole tables ``[M, E, E]``, which have to be those of pair counts."""
    num_layers, num_experts = counts.shape[-2:]
    if table.shape != (num_layers, num_experts, num_experts):
        wanted = [num_layers, num_experts, num_experts]
        raise FormatError(
            path, f"{NAME} must be [layers, experts, experts] = {wanted}, got {list(table.shape)}"
        )
    load_array(path, NAME, table, (3,))
    try:
        return packed(PairCounts(table).counts)
    except ArgumentError as error:
        raise FormatError(path, str(error)) from None
