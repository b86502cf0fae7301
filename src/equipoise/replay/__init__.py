"""Replay a trace: what a policy and its settings bring on loads that the plans have not seen."""

from __future__ import annotations

from .engine import Replay, replay
from .result import ForecastError, Replan, ReplayResult, ReplaySettings, Series, Summary

__all__ = [
    "ForecastError",
    "Replan",
    "Replay",
    "ReplayResult",
    "ReplaySettings",
    "Series",
    "Summary",
    "replay",
]
