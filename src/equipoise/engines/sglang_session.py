"""SGLang: its question for a plan, asked on every rank and answered by one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EquipoiseError
from ..placement import IntArray
from .agreement import Status, all_agree, digest, word_of_rank_0
from .layout import Layout
from .question import Question
from .settings import STATIC, Settings
from .sglang_engine import Engine, Shape, groups_on_nodes, windows_of

if TYPE_CHECKING:
    from .planning import Planner

Maps = tuple[Any, Any, Any]
"""``phy2log [L, R]``, ``log2phy [L, E, X]`` padded with -1, and ``logcnt [L, E]``, int64 tensors on the CPU"""


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one call of the algorithm."""

    tokens: Any
    """a tensor ``[passes, L, E]``"""
    num_slots: int
    num_ranks: int
    num_nodes: int
    num_groups: int

    @classmethod
    def of(
        cls,
        tokens: Any,
        num_slots: int,
        num_local_slots: int,
        num_groups: int | None,
        num_nodes: int,
        algorithm: Any,
    ) -> Call:
        """A call from SGLang's arguments."""
        groups = groups_on_nodes(num_groups, algorithm)
        return cls(tokens, num_slots, num_slots // num_local_slots, num_nodes, groups)


class Session:
    """What a process of SGLang knows of its balancer. All ranks have one; the planner of one rank does the planning.

    Parameters
    ----------
    settings : what was asked for
    log : where each decision goes
    engine : SGLang
    source : the engine and its version
    """

    def __init__(self, settings: Settings, log: logging.Logger, engine: Engine, source: str) -> None:
        self._settings, self._log, self._engine = settings, log, engine
        self._source = source
        self._made: Planner | None = None
        self._loaded: set[int] = set()

    def prepare(self, model_config: Any, get_model: Callable[[], Any]) -> None:
        """Serving is about to begin: warm up, and read what was planned ahead.

        Raises
        ------
        SystemExit
            on all ranks, if the settings do not fit this server, or the placement that was planned ahead does not
        """
        group, elastic = self._engine.group, self._engine.elastic is not None
        leads = group is None or group.rank() == 0
        shape = self._engine.meet(model_config, get_model)
        status = self._get_ready(shape) if leads else Status.KEEP
        # A rank that joins later is alone here, so with elastic ranks none must wait for others.
        if not elastic:
            status, _ = word_of_rank_0(group, status, np.zeros((0, 0), np.int64))
        if status is Status.FAILED:
            raise SystemExit("equipoise: what was asked for cannot be done: rank 0 has logged why")

    def answer(self, call: Call, own: Callable[[], Maps]) -> Maps:
        """The maps to serve, the same on all ranks, which all have to call this.

        Raises
        ------
        EquipoiseError
            on all ranks: the old map cannot be served on, and neither Equipoise nor the engine has another
        """
        serving = self._engine.serving
        if serving is None:
            return self._at_start(call, own)
        alive = self._engine.alive(call.num_ranks)
        phy2log = serving.physical_to_logical_map_cpu.numpy().astype(np.int64)
        layout = Layout(phy2log, alive, int(serving.num_logical_experts)).filled(self._dense(len(phy2log)))
        group = self._engine.group
        mark = digest(call.tokens.shape[1:], call.num_slots, call.num_ranks, alive, phy2log.shape, phy2log)
        agreed, legal = all_agree(group, mark, layout.legal)
        if not agreed:
            self._log.error(
                "equipoise: keep: ranks do not agree on what they serve, on its shape or on the ranks"
            )
            return self._kept(serving, layout) if legal else own()
        status, moved = Status.KEEP, np.zeros_like(phy2log)
        if group is None or group.rank() == layout.first:
            status, moved = self._lead(call, layout, legal, own)
        status, moved = word_of_rank_0(group, status, moved, source=layout.first)
        if status is Status.FAILED:
            raise EquipoiseError("there is no map that can be served: the rank that plans has logged why")
        if status is Status.KEEP:
            return self._kept(serving, layout)
        return _maps(Layout(moved, alive, layout.num_experts))

    @property
    def _planner(self) -> Planner:
        """Made where plans are made alone, and not before: it brings Numba."""
        if self._made is None:
            from .planning import Planner

            self._made = Planner(self._settings, self._log, self._source)
        return self._made

    def _get_ready(self, shape: Shape) -> Status:
        """Rank 0's preparations. It raises nothing, since the others wait for it."""
        try:
            slots = np.zeros((shape.num_layers, shape.num_slots), np.int64)
            layout = Layout(slots, np.ones(shape.num_ranks, np.bool_), shape.num_experts)
            topology = layout.topology(shape.num_nodes, shape.num_groups)
            self._planner.prepare(topology, shape.num_layers, shape.num_experts)
        except Exception as error:
            self._log.error("equipoise: %s", error, exc_info=not isinstance(error, EquipoiseError))
            return Status.FAILED
        return Status.KEEP

    def _at_start(self, call: Call, own: Callable[[], Maps]) -> Maps:
        """The first map, from recorded loads that the server was started with.

        Every rank makes it from the same file. No history, no budget and no clock have a part in it, so that all
        ranks come to the same plan.
        """
        if self._settings.mode == "observe" or self._settings.policy == STATIC:
            return own()
        windows = windows_of(call.tokens, 0, self._settings.history)
        rows = _loaded(windows)
        slots = np.full((call.tokens.shape[1], call.num_slots), -1)
        start = Layout(slots, np.ones(call.num_ranks, np.bool_), int(call.tokens.shape[2]))
        from ..plans.plan import plan

        try:
            loads = np.stack([counts[rows] for counts, _ in windows])
            topology = start.topology(call.num_nodes, call.num_groups)
            made = plan(loads, topology, self._settings.policy).placement
            return _maps(start.moved(made, rows).filled(list(range(len(start.phy2log)))))
        except EquipoiseError as error:
            self._log.warning("equipoise: SGLang's own plan is taken at the start: %s", error)
            return own()

    def _lead(
        self, call: Call, layout: Layout, legal: bool, own: Callable[[], Maps]
    ) -> tuple[Status, IntArray]:
        """The word of the rank that plans. It raises nothing, since the others wait for it."""
        moved = self._ask(call, layout, legal)
        if moved is not None:
            return Status.MOVE, moved.phy2log
        if legal:
            return Status.KEEP, layout.phy2log
        try:
            self._log.info("equipoise: SGLang's own plan is taken, for what is held cannot be served")
            phy2log = own()[0].cpu().numpy().astype(np.int64)
            return Status.ENGINE, phy2log.reshape(layout.phy2log.shape)
        except Exception:
            self._log.exception("equipoise: SGLang's own algorithm has no plan either")
            return Status.FAILED, layout.phy2log

    def _ask(self, call: Call, layout: Layout, legal: bool) -> Layout | None:
        """The layout to move to; ``None`` to move nothing."""
        try:
            windows = windows_of(call.tokens, self._engine.oldest, self._settings.history)
            self._loaded |= set(_loaded(windows))
            rows = sorted(self._loaded) or list(range(len(layout.phy2log)))
            question = Question(
                np.sum([counts[rows] for counts, _ in windows], axis=0),
                layout.topology(call.num_nodes, call.num_groups),
                layout.held(rows),
                legal,
                steps=sum(steps for _, steps in windows),
                parts=tuple((counts[rows], steps) for counts, steps in windows),
                expert_bytes=self._engine.expert_bytes,
            )
            placement = self._planner.answer(question).placement
            return None if placement is None else layout.moved(placement, rows)
        except Exception as error:
            self._log.warning("equipoise: keep: %s", error, exc_info=not isinstance(error, EquipoiseError))
            return None

    def _dense(self, num_layers: int) -> list[int]:
        """Layers without experts, and those of other stages of a pipeline, whose ranks are all there."""
        weights = self._engine.weights
        return [layer for layer in range(num_layers) if weights and layer not in weights]

    def _kept(self, serving: Any, layout: Layout) -> Maps:
        """What is served, as it is; of ranks that are gone no slot is offered any more."""
        if not layout.whole:
            return _maps(layout)
        return (
            serving.physical_to_logical_map_cpu.clone(),
            serving.logical_to_all_physical_map_cpu.clone(),
            serving.logical_to_all_physical_map_num_valid.cpu().clone(),
        )


def _loaded(windows: list[tuple[IntArray, int]]) -> list[int]:
    """Layers that have any load; the others are dense, and SGLang counts them all the same."""
    return [int(row) for row in np.flatnonzero(np.any([counts.any(axis=1) for counts, _ in windows], axis=0))]


def _maps(layout: Layout) -> Maps:
    import torch

    return (
        torch.from_numpy(np.array(layout.phy2log, dtype=np.int64, order="C")),
        torch.from_numpy(np.array(layout.log2phy(), dtype=np.int64, order="C")),
        torch.from_numpy(np.array(layout.logcnt(), dtype=np.int64, order="C")),
    )
