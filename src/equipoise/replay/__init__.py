"""Replay a trace: what a policy and its settings bring on loads that the plans have not seen."""

from __future__ import annotations

from .cost import CostModel, cost_model
from .engine import Replay, replay
from .forecast import FORECASTS
from .presets import ACCELERATORS, LINKS, MODELS, WEIGHT_BYTES
from .result import ForecastError, Replan, ReplayResult, ReplaySettings, Series, Summary

__all__ = [
    "ACCELERATORS",
    "FORECASTS",
    "LINKS",
    "MODELS",
    "WEIGHT_BYTES",
    "CostModel",
    "ForecastError",
    "Replan",
    "Replay",
    "ReplayResult",
    "ReplaySettings",
    "Series",
    "Summary",
    "cost_model",
    "replay",
]
