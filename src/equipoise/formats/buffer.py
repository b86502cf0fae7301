"""What a writer of recordings holds before it is on the disk: windows, and how many of them make a segment."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from .segments import Segment

LEAST_SEGMENTS = 4
"""segments that a recording has room for at least, so that removing the oldest leaves most of it"""
HEADER_BYTES = 4096


class Window(NamedTuple):
    """A window of a recording."""

    counts: npt.NDArray[np.int64]
    first_step: int
    end_step: int
    phase: str | None
    batches: int | None


def windows_of(segment: Segment) -> list[Window]:
    """The windows of a segment that is taken up again."""
    windows = segment.windows
    assert windows.steps is not None
    nothing = (None,) * len(windows.counts)
    tags = windows.phases or nothing
    batches = nothing if windows.batches is None else windows.batches.tolist()
    return [
        Window(counts.astype(np.int64), first, end, tag, number)
        for counts, (first, end), tag, number in zip(
            windows.counts, windows.steps.tolist(), tags, batches, strict=True
        )
    ]


def fitting(segment_windows: int, max_bytes: int, shape: tuple[int, int], *, pairs: bool = False) -> int:
    """Windows of a segment, so that ``max_bytes`` has room for several segments whatever is counted.

    ``shape``: layers and experts. Raises `ArgumentError` where there is no room.
    """
    if segment_windows < 1:
        raise ArgumentError(f"segment_windows must be at least 1, got {segment_windows}")
    header = HEADER_BYTES + 12 * shape[0]
    if pairs:
        header += 4 * shape[0] * shape[1] * (shape[1] + 1)
    window = 8 * shape[0] * shape[1] + 64
    room = max_bytes // LEAST_SEGMENTS - header
    if room < window:
        least = LEAST_SEGMENTS * (header + window)
        raise ArgumentError(
            f"max_bytes must be at least {least} for {shape[0]} layers x {shape[1]} experts"
            f"{' and their pairs' if pairs else ''}, got {max_bytes}"
        )
    return min(segment_windows, room // window)
