"""SGLang: its question for a plan, asked on every rank and answered by one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import EquipoiseError
from ..placement import IntArray
from ..topology import Topology
from .agreement import Status, all_agree, digest, word_of_rank_0
from .layout import Layout
from .lead import Lead
from .question import Hits, Question
from .settings import STATIC, Settings
from .sglang_engine import Engine, Shape, groups_on_nodes, hits_of, windows_of

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
        self._lead = Lead(settings, log, source)
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
        status = self._lead.get_ready(lambda: self._served(shape)) if leads else Status.KEEP
        # A rank that joins later is alone here, so with elastic ranks none must wait for others.
        if not elastic:
            status = self._rehearse(status, self._layout(shape.num_ranks))
        if status is Status.FAILED:
            raise SystemExit("equipoise: what was asked for cannot be done: rank 0 has logged why")

    def _rehearse(self, status: Status, layout: Layout) -> Status:
        """Rank 0's status, told as plans will be: the first plan then meets nothing that is slower the first time."""
        group = self._engine.group
        agreed, legal = all_agree(group, digest(layout.phy2log.shape, layout.phy2log), layout.legal)
        alike = agreed and legal  # else there are no maps of one size to send
        told = layout.phy2log if alike else np.zeros((0, 0), np.int64)
        status, phy2log = word_of_rank_0(group, status, told)
        if alike:
            _maps(replace(layout, phy2log=phy2log))
        return status

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
        layout = self._layout(call.num_ranks)
        phy2log, alive = layout.phy2log, layout.alive
        layout = layout.filled(self._dense(len(phy2log)))
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
            status, moved = self._lead.word(
                lambda: self._ask(call, layout, legal),
                layout.phy2log,
                legal,
                lambda: _phy2log(own(), layout),
            )
        status, moved = word_of_rank_0(group, status, moved, source=layout.first)
        if status is Status.FAILED:
            raise EquipoiseError("there is no map that can be served: the rank that plans has logged why")
        if status is Status.KEEP:
            return self._kept(serving, layout)
        return _maps(Layout(moved, alive, layout.num_experts))

    def _served(self, shape: Shape) -> tuple[Topology, int, int]:
        """The machine, layers and experts that plans will be made for."""
        slots = np.zeros((shape.num_layers, shape.num_slots), np.int64)
        layout = Layout(slots, np.ones(shape.num_ranks, np.bool_), shape.num_experts)
        return layout.topology(shape.num_nodes, shape.num_groups), shape.num_layers, shape.num_experts

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

    def _ask(self, call: Call, layout: Layout, legal: bool) -> IntArray | None:
        """The map to move to; ``None`` to move nothing."""
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
            hits=self._hits(call, rows),
        )
        placement = self._lead.planner.answer(question).placement
        return None if placement is None else layout.moved(placement, rows).phy2log

    def _hits(self, call: Call, rows: list[int]) -> Hits | None:
        """In how many passes the experts of these layers were hit, where that is recorded."""
        if not self._settings.records_batches:
            return None
        found = hits_of(call.tokens)
        return replace(found, counts=found.counts[rows])

    def _layout(self, num_ranks: int) -> Layout:
        """What is served."""
        serving = self._engine.serving
        phy2log = serving.physical_to_logical_map_cpu.numpy().astype(np.int64)
        return Layout(phy2log, self._engine.alive(num_ranks), int(serving.num_logical_experts))

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


def _phy2log(maps: Maps, layout: Layout) -> IntArray:
    """The first of SGLang's own maps, as an array like that of a layout."""
    phy2log = maps[0].cpu().numpy().astype(np.int64)
    return np.asarray(phy2log.reshape(layout.phy2log.shape))


def _maps(layout: Layout) -> Maps:
    import torch

    return (
        torch.from_numpy(np.array(layout.phy2log, dtype=np.int64, order="C")),
        torch.from_numpy(np.array(layout.log2phy(), dtype=np.int64, order="C")),
        torch.from_numpy(np.array(layout.logcnt(), dtype=np.int64, order="C")),
    )
