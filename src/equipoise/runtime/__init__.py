"""Experts that move while a model serves, on torch.distributed: what engines without a balancer of their own need.

Names are imported on first use: most of them need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError

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


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError(
            f"{__name__}.{name} needs torch: pip install 'equipoise[torch]'"
        ) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
