"""The recorded routing that comes with the package; `data/card.json` says how it was made."""

from __future__ import annotations

from pathlib import Path

from ..formats import load_trace
from ..trace import LoadTrace

DATA = Path(__file__).parent / "data"
PARTS = ("domains", "stream")


def recorded_trace(part: str = "stream") -> LoadTrace:
    """Loads ``[T, 8, 64]`` of the byte-level model of `equipoise.demo.model`, in windows of 4,096 tokens.

    Parameters
    ----------
    part : "stream", text whose kind changes, or "domains", one kind after the other; the phase of a window names
        its kind

    Examples
    --------
    >>> recorded_trace().counts.shape[1:]
    (8, 64)
    """
    return load_trace(DATA / f"byte_moe_{part}.safetensors")
