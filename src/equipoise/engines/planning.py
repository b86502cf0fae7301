"""Rank 0's part, whatever the engine: windows are remembered and recorded, and each question gets an answer."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from ..control import Balancer, Proposal
from ..control.metrics import Metrics
from ..errors import ArgumentError, EquipoiseError
from ..formats import load_placement
from ..placement import Placement, contiguous_placement
from ..plans.warmup import PlanKind
from ..topology import Topology
from .deadline import Deadline
from .log import decision_line
from .question import Question
from .recorder import Recorder
from .settings import STATIC, Settings, made_for_batches

_Key = tuple[str, int, int]


@dataclass
class _Model:
    """What is known of one model."""

    balancer: Balancer
    metrics: Metrics
    recorder: Recorder | None
    pending: deque[Question]
    """windows that the balancer has not seen yet"""
    placed: bool = False
    """whether the placement that was planned ahead has been handed out"""


class Planner:
    """Answers for all models of an engine. It neither raises nor outlives its deadline: serving goes on.

    Parameters
    ----------
    settings : what was asked for
    log : the engine's logger
    source : where recorded windows come from, in words
    """

    def __init__(self, settings: Settings, log: logging.Logger, source: str = "") -> None:
        self.settings = settings
        self._log = log
        self._source = source
        self._deadline = Deadline(settings.deadline_s)
        self._models: dict[_Key, _Model] = {}
        self._ahead: Placement | None = None

    def answer(self, question: Question) -> Proposal:
        """What to serve from now on. Whatever goes wrong is a reason to keep what is served."""
        begun = time.perf_counter()
        model: _Model | None = None
        try:
            model = self._model(question)
            proposal = self._answer(model, question)
            failed = False
        except Exception as error:
            known = isinstance(error, EquipoiseError)
            self._log.warning("equipoise could not plan: %s", error, exc_info=None if known else error)
            proposal, failed = Proposal(None, None, reason=f"keep: {error}"), True
        self._tell(model, question, proposal, failed, time.perf_counter() - begun)
        return Proposal(None, None, reason=proposal.reason) if self._observing else proposal

    def prepare(self, topology: Topology, num_layers: int, num_experts: int) -> bool:
        """Before serving: do once what answers will do, and read the placement that was planned ahead.

        Returns whether there is such a placement, to be served at once.

        Raises
        ------
        EquipoiseError
            if it cannot be read, or was made for another machine; if no balancer can be made of the settings
        """
        balancer = self.settings.balancer(topology, num_layers, num_experts)
        Metrics()  # imports the client of Prometheus
        if self.settings.policy != STATIC:
            self._rehearse(balancer)
        if self.settings.placement is None:
            return False
        self._ahead = load_placement(self.settings.placement, num_ranks=topology.num_ranks)
        found = (self._ahead.num_experts, self._ahead.num_ranks, self._ahead.num_slots)
        wanted = (num_experts, topology.num_ranks, topology.num_slots)
        if found != wanted:
            raise ArgumentError(
                f"{self.settings.placement} is for (experts, ranks, slots) = {found}, but served are {wanted}: "
                f"plan it with --ranks {topology.num_ranks} --redundant {topology.num_slots - num_experts}"
            )
        if self._ahead.split != "even":
            raise ArgumentError(made_for_batches(self.settings.placement))
        return not self._observing

    def _rehearse(self, balancer: Balancer) -> None:
        """Compile what plans of this shape use, and propose one, from loads of no meaning, that nobody gets."""
        topology, experts = balancer.topology, balancer.num_experts
        for windows in {1, min(2, self.settings.history)}:
            PlanKind(topology, experts, windows, policy=self.settings.policy, current=True).warm()
        served = contiguous_placement(balancer.num_layers, experts, topology.num_ranks, topology.num_slots)
        balancer.observe(np.random.default_rng(0).lognormal(size=(balancer.num_layers, experts)))
        balancer.propose(served)

    @property
    def _observing(self) -> bool:
        return self.settings.mode == "observe"

    @property
    def _stopped(self) -> bool:
        return self.settings.stop_file is not None and self.settings.stop_file.exists()

    def _model(self, question: Question) -> _Model:
        num_layers, num_experts = question.counts.shape
        key = (question.model, num_layers, num_experts)
        if key not in self._models:
            balancer = self.settings.balancer(question.topology, num_layers, num_experts)
            metrics = Metrics(question.model or "target")
            pending: deque[Question] = deque(maxlen=self.settings.history)
            self._models[key] = _Model(balancer, metrics, self._recorder(question.model, metrics), pending)
        return self._models[key]

    def _recorder(self, model: str, metrics: Metrics) -> Recorder | None:
        if self.settings.record is None:
            return None
        about = {
            "source": f"{self._source} {model}".strip(),
            "unit": self.settings.record_unit,
            "max_bytes": self.settings.record_max_bytes,
        }
        return Recorder(self.settings.record / model, about, metrics, self._log)

    def _answer(self, model: _Model, question: Question) -> Proposal:
        if question.fresh:
            model.pending.append(question)
            if model.recorder is not None:
                model.recorder.add(question)
        if self._stopped:
            return Proposal(None, None, reason=f"keep: {self.settings.stop_file} is there")
        if self._is_due(model, question):
            return self._planned_ahead(model, question)
        if question.early:
            reason = f"keep: the placement that was planned ahead is not for {len(question.counts)} layers"
            return Proposal(None, None, reason=reason)
        if self.settings.policy == STATIC and question.legal:
            return Proposal(None, None, reason="keep: the policy is static")
        return self._deadline.run(lambda: self._plan(model, question))

    def _is_due(self, model: _Model, question: Question) -> bool:
        """Whether it is time for the placement that was planned ahead, and it is one of this model's layers."""
        ahead, topology = self._ahead, question.topology
        if ahead is None or (model.placed and self.settings.policy != STATIC):
            return False
        wanted = (*question.counts.shape, topology.num_ranks, topology.num_slots)
        return (ahead.num_layers, ahead.num_experts, ahead.num_ranks, ahead.num_slots) == wanted

    def _planned_ahead(self, model: _Model, question: Question) -> Proposal:
        assert self._ahead is not None
        model.placed = True
        held = None if question.held is None else question.held.on(question.topology)
        if held is not None and np.array_equal(held.phy2log, self._ahead.phy2log):
            return Proposal(None, self._ahead, reason="keep: the placement that was planned ahead is served")
        moved = self._ahead.holds if held is None else self._ahead.moves_from(held)
        return Proposal(self._ahead, self._ahead, int(moved.sum()), reason="move: it was planned ahead")

    def _plan(self, model: _Model, question: Question) -> Proposal:
        """Runs in another thread, one at a time."""
        while model.pending:
            window = model.pending.popleft()
            whole = ((window.counts, window.steps),)
            for counts, steps in whole if model.balancer.windows else window.parts or whole:
                model.balancer.observe(counts, steps=float(steps))
        if question.legal and not question.counts.any():
            return Proposal(None, None, reason="keep: the window has no load")
        if model.balancer.topology != question.topology:
            model.balancer.change_topology(question.topology)
        return model.balancer.propose(question.held)

    def _tell(
        self, model: _Model | None, question: Question, proposal: Proposal, failed: bool, seconds: float
    ) -> None:
        """Say what was decided, in the log and in the metrics."""
        size, observing = question.expert_bytes, self._observing
        line = decision_line(
            proposal, part=question.model, expert_bytes=size, seconds=seconds, observing=observing
        )
        self._log.info("%s", line)
        if model is None:
            return
        state = "observing" if observing else "degraded" if failed else "balancing"
        model.metrics.enter("stopped" if self._stopped else state)
        if failed:
            model.metrics.failed()
        else:
            model.metrics.decided(proposal, expert_bytes=size, seconds=seconds, observing=observing)
