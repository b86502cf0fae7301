"""Benchmark protocols for policies that are written, or evolved, as programs with ``rebalance_experts``."""

from __future__ import annotations

from .process import Limits
from .protocols import PROTOCOLS
from .score import Score, score_program

__all__ = ["PROTOCOLS", "Limits", "Score", "score_program"]
