"""When to move, and what moving costs: cost model, forecasts, the gate. Nothing here moves anything."""

from __future__ import annotations

from .balancer import Balancer, Proposal
from .cost import CostModel, cost_model
from .forecast import FORECASTS
from .gate import Gate
from .presets import ACCELERATORS, LINKS, MODELS, WEIGHT_BYTES

__all__ = [
    "ACCELERATORS",
    "FORECASTS",
    "LINKS",
    "MODELS",
    "WEIGHT_BYTES",
    "Balancer",
    "CostModel",
    "Gate",
    "Proposal",
    "cost_model",
]
