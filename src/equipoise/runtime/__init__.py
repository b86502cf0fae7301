"""Experts that move while a model serves, on torch.distributed: what engines without a balancer of their own need.

Names are imported on first use: most of them need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import on_first_use

if TYPE_CHECKING:
    from .counter import LoadCounter
    from .executor import Executor
    from .live import LiveBalancer
    from .maps import LiveMaps
    from .pace import Pace, State
    from .transfer import TransferPlan, transfer_plan
    from .transport import TorchTransport, Transport, TransportError
    from .weights import ExpertWeights

_LAZY = {
    "Executor": "executor",
    "ExpertWeights": "weights",
    "LiveBalancer": "live",
    "LiveMaps": "maps",
    "LoadCounter": "counter",
    "Pace": "pace",
    "State": "pace",
    "TorchTransport": "transport",
    "TransferPlan": "transfer",
    "Transport": "transport",
    "TransportError": "transport",
    "transfer_plan": "transfer",
}

__all__ = [
    "Executor",
    "ExpertWeights",
    "LiveBalancer",
    "LiveMaps",
    "LoadCounter",
    "Pace",
    "State",
    "TorchTransport",
    "TransferPlan",
    "Transport",
    "TransportError",
    "transfer_plan",
]


__getattr__, __dir__ = on_first_use(__name__, _LAZY, __all__)
