"""The Balancer, driven beside a model that serves: count, plan, move a few layers a step, survive."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from time import monotonic

import numpy as np

from ..control.balancer import Balancer, Proposal
from ..control.metrics import Metrics
from ..errors import EquipoiseError
from ..placement import IntArray, Placement
from ..plans.warmup import TransferKind
from ..problem import Held
from ..topology import Topology
from .counter import LoadCounter
from .executor import Executor, Reload
from .lead import hand_round
from .maps import LiveMaps
from .membership import Counted, Reduction, agree, digest, meet
from .pace import Answer, Pace, Recorder, State
from .planner import Planner, words
from .setup import Setup, check_parts
from .transfer import transfer_plan
from .transport import Transport, TransportError
from .weights import ExpertWeights
from .witness import Witness

_log = logging.getLogger("equipoise")
QUESTIONS = 4
"""after a plan within a deadline, where all ranks wait for it"""


class LiveBalancer:
    """Records, plans, moves and commits, in step on all ranks: call `step` after every forward pass.

    Whatever fails, slots hold what the maps say and serving goes on: `state` is ``degraded`` then, `reason` says why.

    Parameters
    ----------
    balancer : of every rank, made alike; that of rank 0 plans, in a thread
    weights : the expert tensors of this rank
    transport : a group of its own
    placement : what the ranks hold; ``None`` on a rank that holds nothing yet and joins with `recover`
    pace : when things happen
    max_ranks : most ranks that there will be; those of ``transport`` unless given
    unit, pairs_every : what is counted, the same on all ranks, see `LoadCounter`. Plans are made from counts of
        ``unit``; pairs are for the recording
    reload : loads an expert that no rank holds into a slot's stage (layer, slot, expert); see `ExpertWeights.staged`
    recorder : gets the windows of rank 0; once it raises, that is logged and it gets no more
    metrics : are told of decisions and moves on rank 0, and of states on any rank that has some

    Attributes
    ----------
    counter : hand it the router's choices, see `LoadCounter`
    maps : what the router reads, see `LiveMaps`
    state, reason : what it does now, and why
    """

    def __init__(
        self,
        balancer: Balancer,
        weights: ExpertWeights,
        transport: Transport,
        placement: Placement | None,
        *,
        pace: Pace | None = None,
        max_ranks: int | None = None,
        unit: str = "tokens",
        pairs_every: int | None = None,
        reload: Reload | None = None,
        recorder: Recorder | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        num_layers, num_experts = balancer.num_layers, balancer.num_experts
        check_parts(balancer, weights, unit)
        TransferKind().warm()  # no server waits for a compiler in the middle of a move
        self.pace = Pace() if pace is None else pace
        self.weights, self.transport = weights, transport
        self.reload, self._witness = reload, Witness(recorder, metrics)
        most = (max_ranks or transport.num_ranks) * weights.slots_per_rank
        self.counter = LoadCounter(
            num_layers, num_experts, weights.device, unit=unit, pairs_every=pairs_every
        )
        self.maps = LiveMaps(num_layers, num_experts, most, weights.device)
        self._setup = Setup(weights, self.maps, self.pace, self.counter)
        self._planner = Planner(balancer)
        self._topology = balancer.topology
        self._members = transport.members
        self._step, self._since, self._asked, self._recorded = 0, 0, 0, 0
        self._pending: list[int] = []
        self._target: Placement | None = None
        self._window: IntArray | None = None
        self._reduction: Reduction | None = None
        self._steps = 1  # of the window that is added up
        self._joining = placement is None
        nothing = np.full((num_layers, transport.num_ranks * weights.slots_per_rank), -1, np.int64)
        self.executor = Executor(weights, transport, nothing if placement is None else placement.phy2log)
        self.state, self.reason = State.RECORDING, "serving"
        if placement is None:
            self.state, self.reason = State.DEGRADED, "this rank joins: recover() brings it in"
            return
        self._setup.check(self._topology, transport)
        balancer.commit(placement)
        self._show_all()

    @property
    def held(self) -> Held:
        """What the ranks hold now."""
        return Held(self.executor.phy2log, len(self._members), self._planner.balancer.num_experts)

    def slots_of(self, layer: int) -> dict[int, list[int]]:
        """The slots of this rank that hold each expert of a layer now: where new weights belong."""
        found: dict[int, list[int]] = {}
        name = self.transport.members[self.transport.rank]
        rows = self.executor.phy2log[layer].reshape(len(self._members), -1)
        row = rows[self._members.index(name)] if name in self._members else np.zeros(0, np.int64)
        for slot, expert in enumerate(row.tolist()):
            if expert >= 0:
                found.setdefault(expert, []).append(slot)
        return found

    def step(self, record: bool = True) -> State:
        """Call it on all ranks after every forward pass; ``record`` is false for passes whose load does not count.

        Raises nothing that another rank, or the policy, caused. What goes wrong on this rank alone, such as memory
        that is short, is raised here, after the others have been told.
        """
        self.counter.end_pass(record)
        self._recorded += record
        if self.state not in (State.PAUSED, State.DEGRADED):
            self._step += 1
            with self._guarded():
                self.transport.check()
                turn = {State.REDUCING: self._reduce, State.PLANNING: self._ask, State.MOVING: self._move}
                turn.get(self.state, self._record)()
        return self.state

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Change weights inside: nothing moves, and `slots_of` says where they belong. All ranks enter together.

        Raises
        ------
        EquipoiseError
            if ranks failed, before or on the way in
        """
        before = self.state
        if before is not State.DEGRADED:
            with self._guarded():
                self._agree()
        if self.state is State.DEGRADED:
            raise EquipoiseError(f"cannot pause, {self.reason}: recover first")
        self.state = State.PAUSED
        try:
            yield
        finally:
            if self.state is State.PAUSED:  # not where `recover` was called inside
                self.state = before
            with self._guarded():
                self._agree()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the balancer of this rank, once it does not plan; `Balancer.restore` reads it."""
        self._planner.save(path)

    def recover(self, transport: Transport, topology: Topology, *, limit_s: float = 120.0) -> bool:
        """Go on with other ranks: those that are left, and those that join. All of them call it together.

        Returns whether every expert has a place again and serving can go on.

        Parameters
        ----------
        transport : to the ranks that there are now, in a new group
        topology : of these ranks
        limit_s : time for the plan, the same on all ranks

        Raises
        ------
        ArgumentError
            if the topology does not fit the transport, the slots or the experts, or is larger than ``max_ranks``
        """
        self._setup.check(topology, transport)
        self._planner.give_up()  # what is planned still is for the ranks before
        if transport is not self.transport:  # a rank that joins has no other
            self.transport.abort()  # whoever still waits in the group before
            self.transport = transport
        with self._guarded():
            questions = max(1, round(limit_s / transport.deadline_s * QUESTIONS))
            setup = np.append(self._setup.numbers(topology), questions)
            met = meet(transport, self.executor, self._members, self._joining, setup)
            self._members = transport.members
            self.executor = Executor(self.weights, transport, met.held)
            self.executor.versions[:] = met.versions
            self._topology, self._joining, self._pending, self._reduction = topology, False, [], None
            self._step = self._since = 0
            self._show_all()
            self._planner.change_topology(topology)
            self._replace(questions)
        return self.state is not State.DEGRADED

    def _replace(self, questions: int) -> None:
        """Plan for the ranks that there are, ask so many times for the plan, and move everything."""
        pause = self.transport.deadline_s / QUESTIONS
        started, answer = self.transport.rank != 0, Answer.LATER
        for _ in range(questions):
            started = started or self._planner.start(
                self.held, blind=True
            )  # one that was given up may still be planning
            answer = self._told(pause)
            if answer is not Answer.LATER:
                break
        while answer is Answer.MOVE and self._pending:
            self._move_layer(self._pending.pop(0))
        if answer is Answer.LATER:
            self._tell(None)
        lost = int(self.held.lost.sum())
        if self.held.complete:
            self._finish("recovered")
        else:
            self._degrade(
                f"{lost} experts are lost" if lost else "slots are empty, and there is no plan for them"
            )

    def _record(self) -> None:
        self._since += 1
        if self._since < self.pace.interval:
            return
        counted = Counted(self.counter.take(), self._recorded, self.counter.take_pairs())
        self._reduction = Reduction(self.transport, counted, digest(*self._common()))
        self._steps, self._recorded = max(1, self._recorded), 0
        self._enter(State.REDUCING, "a window is added up")

    def _reduce(self) -> None:
        """Look whether ranks failed; after ``ask_every`` passes, on all ranks alike, take the sums."""
        assert self._reduction is not None
        self._since += 1
        if self._since < self.pace.ask_every:
            self._reduction.done()
            return
        counted = self._reduction.result()
        self._window = np.asarray(counted.loads.numpy())
        self._reduction = None
        self._planner.observe(self._window, self._steps)
        if self.transport.rank == 0:
            self._witness.record(self._window, self._steps, **counted.beside(self.counter.unit))
            self._planner.start(self.held)
        self._enter(State.PLANNING, "a plan is made")

    def _ask(self) -> None:
        self._since += 1
        if self._since % self.pace.ask_every:
            return
        self._asked += 1
        answer = self._told(0.0)
        late = answer is Answer.LATER and self._asked >= self.pace.patience
        if late:
            self._tell(None)
        if answer is Answer.MOVE:
            self._enter(State.MOVING, "experts move")
        elif late or answer is not Answer.LATER:
            self._planner.give_up()
            self._enter(State.RECORDING, "serving")

    def _told(self, wait_s: float) -> Answer:
        """What rank 0 has to tell; with `MOVE` the target and the order of layers are set."""
        mine = self._planner.answer(wait_s) if self.transport.rank == 0 else None
        if mine is not None:
            self._tell(mine)
        word = hand_round(self.transport, mine, self.held, self._topology, self._window)
        if word.answer is Answer.MOVE:
            self._target, self._pending = word.target, list(word.order)
        return word.answer

    def _move(self) -> None:
        start = monotonic()
        try:
            for _ in range(min(self.pace.layers_per_step, len(self._pending))):
                self._move_layer(self._pending.pop(0))
        finally:  # a rank that hangs holds a pass up most
            if self.transport.rank == 0:
                self._witness.count(lambda metrics: metrics.held_up(monotonic() - start))
        if not self._pending:
            self._finish("serving")

    def _move_layer(self, layer: int) -> None:
        assert self._target is not None
        one = transfer_plan(self.held.layers([layer]), self._target.layer(layer), self._topology).layers[0]
        row = self._target.phy2log[layer]
        start = monotonic()
        if self.executor.move(replace(one, layer=layer), row, self.reload):
            self.maps.commit(layer, row)
            if self.transport.rank == 0:
                self._witness.count(lambda metrics: metrics.committed(monotonic() - start))

    def _finish(self, reason: str) -> None:
        held = self.held
        if held.complete:
            self._planner.commit(Placement(held.phy2log, held.num_ranks, held.num_experts))
        self._enter(State.RECORDING, reason)

    def _agree(self) -> None:
        agree(self.transport, *self._common())

    def _common(self) -> tuple[IntArray, ...]:
        """What must be the same on all ranks."""
        setup = self._setup.numbers(self._topology)
        return np.append(setup, self._step), self.executor.phy2log, self.executor.versions

    def _tell(self, answer: Proposal | BaseException | None) -> None:
        """Tell log and metrics of rank 0 what came of a plan; ``None`` for one that took too long."""
        if self.transport.rank != 0:
            return
        _log.info("equipoise: %s", words(answer))
        size, seconds = self.weights.expert_bytes(0), self._planner.seconds
        if isinstance(answer, Proposal):
            self._witness.count(lambda metrics: metrics.decided(answer, expert_bytes=size, seconds=seconds))
        else:
            self._witness.count(lambda metrics: metrics.failed())

    def _enter(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self._since, self._asked = 0, 0
        self._witness.entered(state, int(self.held.lost.sum()))

    def _show_all(self) -> None:
        for layer, row in enumerate(self.executor.phy2log):
            self.maps.commit(layer, row)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Whatever goes wrong inside, all ranks learn of it, and nothing moves any more."""
        try:
            yield
        except TransportError as error:
            self._degrade(str(error))
        except BaseException as error:
            self._degrade(f"{type(error).__name__} on this rank")
            raise

    def _degrade(self, reason: str) -> None:
        self.transport.abort()
        self._enter(State.DEGRADED, reason)
        self._pending, self._reduction = [], None
        self._planner.give_up()
        self._show_all()  # an executor that rolled forward is ahead of the maps
        _log.warning("equipoise is degraded, serving goes on with the maps that are committed: %s", reason)
