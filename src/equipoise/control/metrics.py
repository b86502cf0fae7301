"""Counters and gauges for Prometheus, in the process that decides: a handful of series for each model.

There is no series for a layer or an expert: 60 layers times 72 ranks would be thousands. Without the package
``prometheus_client`` everything here does nothing. Engines whose workers are processes of their own collect them
through files (``PROMETHEUS_MULTIPROC_DIR``); gauges then show the value that was set last.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .balancer import Proposal

_log = logging.getLogger("equipoise")
STATES = ("observing", "balancing", "degraded", "stopped")


class Metrics:
    """What is counted of the decisions about one model.

    Parameters
    ----------
    part : which model of the engine; the only label beside those named below
    registry : where the series go; the default one of ``prometheus_client`` unless given
    """

    def __init__(self, part: str = "target", registry: Any = None) -> None:
        self._part = part
        self._series = _series(registry)

    def decided(
        self, proposal: Proposal, *, expert_bytes: int = 0, seconds: float = 0.0, observing: bool = False
    ) -> None:
        """Count a decision; ``seconds`` is how long it took to plan, moves count only where they are made."""
        moved = not proposal.keep and not observing
        self._at("equipoise_decisions_total", decision="move" if not proposal.keep else "keep").inc()
        self._at("equipoise_plan_seconds").observe(seconds)
        for kind, value in (("now", proposal.imbalance_now), ("planned", proposal.imbalance_planned)):
            if value is not None:
                self._at("equipoise_imbalance", kind=kind).set(value)
        if moved:
            self._at("equipoise_moves_total").inc(proposal.moves)
            self._at("equipoise_moved_bytes_total").inc(proposal.moves * expert_bytes)

    def failed(self) -> None:
        """Count a decision that could not be made in time, or at all."""
        self._at("equipoise_decisions_total", decision="failed").inc()

    def committed(self, seconds: float) -> None:
        """Count a layer whose experts moved, from its first round to its commit."""
        self._at("equipoise_layer_commit_seconds").observe(seconds)

    def held_up(self, seconds: float) -> None:
        """Count a pass that waited for so long while experts moved before it."""
        self._at("equipoise_move_pause_seconds").observe(seconds)

    def lost(self, experts: int) -> None:
        """Tell how many experts, over all layers, no rank holds."""
        self._at("equipoise_lost_experts").set(experts)

    def unwritten(self, windows: int) -> None:
        """Tell how many windows of the recording could not be written so far."""
        self._at("equipoise_unwritten_windows").set(windows)

    def enter(self, state: str) -> None:
        """Tell which of `STATES` this model is in."""
        for name in STATES:
            self._at("equipoise_state", state=name).set(name == state)

    def _at(self, name: str, **labels: str) -> Any:
        return _NOTHING if self._series is None else self._series[name].labels(part=self._part, **labels)


class _Nothing:
    """Takes whatever a series is told."""

    def inc(self, amount: float = 1.0) -> None:
        pass

    set = observe = inc


_NOTHING = _Nothing()


@lru_cache(maxsize=8)
def _series(registry: Any) -> dict[str, Any] | None:
    """The series in a registry, made once; ``None`` where there is no Prometheus client, or it refuses them."""
    try:
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram
    except ImportError:
        return None
    where: dict[str, Any] = {"registry": REGISTRY if registry is None else registry}
    latest: dict[str, Any] = {**where, "multiprocess_mode": "mostrecent"}
    buckets = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    pauses = (0.0003, 0.001, 0.003, *buckets)  # beside passes that take milliseconds
    part = ["part"]
    try:
        return {
            "equipoise_state": Gauge(
                "equipoise_state", "1 for the state it is in", [*part, "state"], **latest
            ),
            "equipoise_decisions_total": Counter(
                "equipoise_decisions", "Decisions, by what came of them", [*part, "decision"], **where
            ),
            "equipoise_imbalance": Gauge(
                "equipoise_imbalance",
                "Largest rank load over the mean, mean of layers",
                [*part, "kind"],
                **latest,
            ),
            "equipoise_moves_total": Counter("equipoise_moves", "Experts that ranks fetched", part, **where),
            "equipoise_moved_bytes_total": Counter("equipoise_moved_bytes", "Bytes of those", part, **where),
            "equipoise_plan_seconds": Histogram(
                "equipoise_plan_seconds", "Time of planning", part, buckets=buckets, **where
            ),
            "equipoise_layer_commit_seconds": Histogram(
                "equipoise_layer_commit_seconds", "Time of moving a layer", part, buckets=buckets, **where
            ),
            "equipoise_move_pause_seconds": Histogram(
                "equipoise_move_pause_seconds",
                "Time that moves held up a pass",
                part,
                buckets=pauses,
                **where,
            ),
            "equipoise_lost_experts": Gauge(
                "equipoise_lost_experts", "Experts that no rank holds", part, **latest
            ),
            "equipoise_unwritten_windows": Gauge(
                "equipoise_unwritten_windows", "Windows that could not be recorded", part, **latest
            ),
        }
    except (ValueError, TypeError) as error:  # names that are taken, or a client without these arguments
        _log.warning("equipoise counts nothing for Prometheus: %s", error)
        return None
