"""Benchmark protocols for policies that are written, or evolved, as programs with ``rebalance_experts``."""

from __future__ import annotations

from .process import Limits
from .protocols import PROTOCOLS
from .score import Score, drifting_trace, score_program
from .setting import Setting, setting_for

__all__ = ["PROTOCOLS", "Limits", "Score", "Setting", "drifting_trace", "score_program", "setting_for"]
