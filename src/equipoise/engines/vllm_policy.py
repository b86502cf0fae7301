"""vLLM: its policy, asked on every rank and answered by rank 0."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import EquipoiseError
from ..placement import IntArray
from ..problem import Held
from ..topology import Topology
from .agreement import Status, added_up, all_agree, digest, word_of_rank_0
from .lead import Lead
from .question import Hits, Question
from .settings import Settings


class Groups:
    """What is asked of ``vllm.distributed.parallel_state``."""

    def __init__(self, parallel_state: Any) -> None:
        self._parallel_state = parallel_state

    @property
    def cpu(self) -> Any:
        """The group on the CPU that vLLM's balancer has for itself; ``None`` in a single process without groups."""
        try:
            return self._parallel_state.get_eplb_group().cpu_group
        except AssertionError:  # vLLM's own: not initialized
            return None

    @property
    def leads(self) -> bool:
        """Whether this is the rank that plans."""
        return self.cpu is None or self.cpu.rank() == 0

    @property
    def nodes(self) -> int:
        """Servers that the ranks are on."""
        return int(self._parallel_state.get_node_count())


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one call of the policy."""

    counts: Any
    """``[L, E]``, an array"""
    num_slots: int
    num_groups: int
    num_nodes: int
    num_ranks: int
    old: IntArray | None
    """``[L, R]``, or of more or fewer ranks; -1 for an empty slot"""

    @property
    def num_layers(self) -> int:
        """Layers ``L`` of the answer."""
        return int(self.counts.shape[0] if self.old is None else self.old.shape[0])

    @property
    def legal(self) -> bool:
        """Whether the old map can be served on: as many slots, none empty, no expert missing."""
        old = self.old
        if old is None or old.shape[1] != self.num_slots or old.min() < 0:
            return False
        known = int(self.counts.shape[1]) if self.counts.ndim == 2 else 0
        present = np.zeros((len(old), max(known, int(old.max()) + 1)), np.bool_)
        np.put_along_axis(present, old, True, axis=1)
        return bool(present.all())

    @property
    def mark(self) -> int:
        """What ranks have to agree about. Loads are not among it: those of rank 0 decide."""
        numbers = (self.num_slots, self.num_groups, self.num_nodes, self.num_ranks)
        old = () if self.old is None else (self.old.shape, self.old)
        return digest(self.counts.shape, numbers, *old)

    def topology(self) -> Topology:
        """The machine that these numbers mean, groups only where they divide the experts."""
        groups, nodes = self.num_groups, self.num_nodes
        groups = groups if groups > 0 and not self.counts.shape[1] % groups else 1
        nodes = nodes if nodes > 0 and not self.num_ranks % nodes else 1
        return Topology.from_slots(self.num_slots, self.num_ranks, nodes, groups)

    def held(self) -> Held | None:
        """What ranks hold. vLLM's ranks keep their numbers and slots where others join or leave."""
        if self.old is None:
            return None
        ranks = self.old.shape[1] // (self.num_slots // self.num_ranks)
        return Held(self.old, ranks, self.counts.shape[1])


@dataclass(frozen=True)
class About:
    """Which model a call of the policy is about, and what its window is."""

    model: str = ""
    steps: int = 1
    expert_bytes: int = 0
    hits: Hits | None = None


class Session:
    """What a process of vLLM knows of its balancer. All ranks have one; the planner of rank 0 does the planning.

    Parameters
    ----------
    settings : what was asked for
    log : vLLM's logger
    groups : vLLM's process groups
    source : the engine and its version
    """

    def __init__(self, settings: Settings, log: logging.Logger, groups: Groups, source: str) -> None:
        self._log, self._groups, self._batches = log, groups, settings.records_batches
        self._lead = Lead(settings, log, source)
        self._abouts: list[About] = []
        self._hits: list[Any] = []
        self._turn = 0
        self._profile = self._repeated = self._ahead = self._early = False

    def prepare(self, state: Any) -> None:
        """A model has been loaded: warm up on rank 0, and see to it that what was planned ahead is served soon.

        Raises
        ------
        EquipoiseError
            on all ranks, if the settings do not fit this model, or the placement that was planned ahead does not
        """
        model = list(state.model_states.values())[-1].model
        status = self._lead.get_ready(lambda: self._served(model)) if self._groups.leads else Status.KEEP
        # A rank that joins later is alone here, so what it does must not depend on the others.
        if not state.parallel_config.enable_elastic_ep:
            status, _ = word_of_rank_0(self._groups.cpu, status, np.zeros((0, 0), np.int64))
        if status is Status.FAILED:
            raise EquipoiseError("what was asked for cannot be done: rank 0 has logged why")
        if status is Status.MOVE and not state.parallel_config.enable_elastic_ep:
            self._ahead = True
            # vLLM counts up from three quarters of the interval; this way the first pass ends with it.
            state.expert_rearrangement_step = max(0, state.expert_rearrangement_step_interval - 1)

    def begin(self, state: Any, profile: bool, repeated: bool) -> None:
        """The policy is about to be called, once for each model and in this order.

        ``profile``: nothing will be moved, whatever it says. ``repeated``: loads are those of the last time.
        """
        self._profile, self._repeated, self._early, self._turn = profile, repeated, False, 0
        models = list(state.model_states.values())
        if self._groups.leads:
            names = [_name(index, model) if len(models) > 1 else "" for index, model in enumerate(models)]
            self._abouts = [
                About(name, _steps(model), _bytes(model)) for name, model in zip(names, models, strict=True)
            ]
        known = self._batches and not profile and not repeated
        self._hits = [self._hits_here(model) for model in models] if known else []

    def _hits_here(self, model: Any) -> Any:
        """What this rank adds to the hits of all: nothing where it cannot count them, for the others wait for it."""
        try:
            return _hits(model)
        except Exception as error:  # memory that is short, say
            self._log.warning("equipoise: hit batches are not counted here: %s", error)
            return _no_hits(model)

    def at_once(self, profile: bool) -> bool:
        """Whether this rearrangement has to be done when it returns: the first one, of what was planned ahead."""
        if profile or not self._ahead:
            return False
        self._ahead, self._early = False, True
        return True

    def answer(self, call: Call, engines_own: Callable[[], IntArray]) -> IntArray:
        """The map to serve, the same on all ranks, which all have to call this.

        Raises
        ------
        EquipoiseError
            on all ranks: the old map cannot be served on, and neither Equipoise nor the engine has another
        """
        group = self._groups.cpu
        turn, self._turn = self._turn, self._turn + 1
        hits = self._hits[turn] if turn < len(self._hits) else None
        agreed, legal = all_agree(group, call.mark + (hits is not None), call.legal)
        if not agreed:
            self._log.error(
                "equipoise: keep: ranks do not agree on what they serve, on its shape or on the ranks"
            )
            return call.old if legal and call.old is not None else engines_own()
        about = self._abouts[turn] if turn < len(self._abouts) else About()
        if hits is not None:
            about = replace(about, hits=_of_all(added_up(group, hits), call.counts.shape))
        status, phy2log = Status.KEEP, np.zeros((call.num_layers, call.num_slots), np.int64)
        if self._groups.leads:
            status, phy2log = self._lead.word(
                lambda: self._ask(call, legal, about), phy2log, legal, engines_own
            )
        status, phy2log = word_of_rank_0(group, status, phy2log)
        if status is Status.FAILED:
            raise EquipoiseError("there is no map that can be served: rank 0 has logged why")
        return call.old if status is Status.KEEP and call.old is not None else phy2log

    def _served(self, model: Any) -> tuple[Topology, int, int]:
        """The machine, layers and experts that plans will be made for."""
        slots = model.num_physical_experts
        ranks = slots // model.num_local_physical_experts
        counts = np.zeros((model.num_moe_layers, model.num_logical_experts), np.int64)
        call = Call(counts, slots, model.num_expert_groups, self._groups.nodes, ranks, None)
        return call.topology(), *counts.shape

    def _ask(self, call: Call, legal: bool, about: About) -> IntArray | None:
        """The map to move to; ``None`` to move nothing."""
        if self._profile:
            return None
        question = Question(
            call.counts,
            call.topology(),
            call.held(),
            legal,
            model=about.model,
            fresh=not self._repeated and not self._early,
            early=self._early,
            steps=about.steps,
            expert_bytes=about.expert_bytes,
            hits=about.hits,
        )
        placement = self._lead.planner.answer(question).placement
        return None if placement is None else placement.phy2log


def policy_class(default: Any, session: Session) -> Any:
    """The class that stands in for vLLM's default policy, made from it."""
    import torch

    class EquipoisePolicy(default):  # type: ignore[misc]
        """vLLM's interface to what `Session` answers."""

        equipoise = True

        @classmethod
        def rebalance_experts(
            cls,
            weight: Any,
            num_replicas: int,
            num_groups: int,
            num_nodes: int,
            num_ranks: int,
            old_global_expert_indices: Any = None,
        ) -> Any:
            """The logical expert of every slot: int64 ``[L, R]`` on the CPU, the caller's own."""
            shape = (num_replicas, num_groups, num_nodes, num_ranks)
            old = old_global_expert_indices
            held = None if old is None else old.cpu().numpy().astype(np.int64)

            def engines_own() -> IntArray:
                made = super(EquipoisePolicy, cls).rebalance_experts(weight, *shape, old)
                return np.asarray(made.cpu().numpy(), dtype=np.int64)

            phy2log = session.answer(Call(weight.cpu().numpy(), *shape, held), engines_own)
            return torch.from_numpy(np.array(phy2log, dtype=np.int64, order="C"))

    return EquipoisePolicy


def _name(index: int, model: Any) -> str:
    """A name for one of several models, which may be of one checkpoint: a word that may be part of a path."""
    return f"{index}-{re.sub(r'[^A-Za-z0-9._-]+', '-', str(model.model_name))[-60:]}"


def _steps(model: Any) -> int:
    """Forward passes that the window of a model has, as this rank counted them."""
    window = model.expert_load_window
    return max(1, int((window != 0).flatten(1).any(1).sum()))


def _hits(model: Any) -> Any:
    """In how many passes of its window a model's experts were hit by tokens of this rank, and the passes.

    An int64 tensor ``[L * E + 1]`` on the CPU. Replicas count as their expert.
    """
    import torch

    window, table = model.expert_load_window, model.physical_to_logical_map
    experts = model.model.num_logical_experts
    expert = table.masked_fill(table < 0, experts).long().expand_as(window)
    tokens = window.new_zeros(*window.shape[:2], experts + 1).scatter_add_(2, expert, window)[:, :, :-1]
    passes = (window != 0).flatten(1).any(1).sum()
    return torch.cat([(tokens > 0).sum(dim=0).flatten(), passes[None]]).cpu()


def _no_hits(model: Any) -> Any:
    import torch

    return torch.zeros(model.model.num_moe_layers * model.model.num_logical_experts + 1, dtype=torch.int64)


def _of_all(numbers: IntArray, shape: tuple[int, int]) -> Hits:
    """The hits of all ranks together, each of which has batches of its own."""
    return Hits(numbers[:-1].reshape(shape), max(1, int(numbers[-1])))


def _bytes(model: Any) -> int:
    """Weights of one expert of one layer, all its tensors together."""
    return sum(int(weight[0].nbytes) for weight in model.model.expert_weights[0])
