"""vllm-ascend's first model runner: a policy for its factory. The second one uses vLLM's balancer, and its plug-in.

There every rank plans by itself, in a process of its own, from loads that are the same everywhere. So what is planned
must follow from the calls alone: no clock has a part in it. Three rules hold for the answer, layer by layer, and the
runner throws a layer away that breaks one: every expert is somewhere, no rank holds an expert twice, and an expert
that stays on its rank stays in its slot.
"""

from __future__ import annotations

import inspect
import logging
import os
from dataclasses import replace as replaced
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..errors import EquipoiseError
from ..metrics import imbalance, rank_loads
from ..placement import IntArray, Placement
from ..topology import Topology
from .log import decision_line
from .settings import STATIC, SWITCHES, Settings

FACTORY = "vllm_ascend.eplb.core.policy.policy_factory"
SIGNATURES = (("policy_type",), ("policy_type", "config"))
"""parameters of ``PolicyFactory.generate_policy`` in the versions that are known"""


def register() -> None:
    """Let vllm-ascend's factory make policies of Equipoise, where that is installed and ``EQUIPOISE_VLLM=1``.

    An entry point of ``vllm.general_plugins``, which vLLM calls in each of its processes.

    Raises
    ------
    EquipoiseError
        if a setting is not valid, or the factory is another than those known; vLLM then stops
    """
    if os.environ.get(SWITCHES["vllm"], "") in ("", "0") or find_spec("vllm_ascend") is None:
        return
    if find_spec(FACTORY) is None:  # the second runner alone
        return
    from importlib import import_module

    replace(import_module(FACTORY).PolicyFactory, Settings.from_environment(os.environ))


def replace(factory: Any, settings: Settings) -> None:
    """Let this class make policies that plan with Equipoise; a second time it does nothing."""
    own = factory.generate_policy
    if getattr(own, "equipoise", False):
        return
    found = tuple(inspect.signature(own).parameters)
    if found not in SIGNATURES:
        known = " or ".join(f"({', '.join(names)})" for names in SIGNATURES)
        raise EquipoiseError(
            f"vllm-ascend's generate_policy takes ({', '.join(found)}), but known is {known}: install another "
            f"version of vllm-ascend or of equipoise, or unset {SWITCHES['vllm']}"
        )
    settings = replaced(settings, origins={})  # which cannot be sent to another process

    def generate_policy(policy_type: Any, *config: Any) -> AscendPolicy:
        return AscendPolicy(own(policy_type, *config), settings)

    generate_policy.equipoise = True  # type: ignore[attr-defined]
    factory.generate_policy = staticmethod(generate_policy)


class AscendPolicy:
    """What the first runner of vllm-ascend asks for a plan. It raises nothing: the runner's process would end.

    Parameters
    ----------
    own : the policy that the factory would have made, asked where ranks join or leave
    settings : what was asked for
    """

    def __init__(self, own: Any, settings: Settings) -> None:
        self._own, self._settings = own, settings
        self._balancer: Any = None
        self._scaling = False

    def set_new_ep_size(self, new_ep_size: int) -> None:
        """Ranks will join or leave: the next plan is for so many, and the runner's own policy makes it."""
        self._own.set_new_ep_size(new_ep_size)
        self._scaling = True

    def rebalance_experts(self, current_expert_table: Any, expert_workload: Any) -> tuple[int, IntArray, Any]:
        """Whether the table changes, its layers in the order of what they gain, and the new table.

        Parameters
        ----------
        current_expert_table : ``[L, P, S]``, the expert of each slot of each rank
        expert_workload : ``[L, P, S]``, tokens of each slot, or ``[W, L, P, S]`` in stages
        """
        if self._scaling:
            self._scaling = False
            return self._own.rebalance_experts(current_expert_table, expert_workload)  # type: ignore[no-any-return]
        log = logging.getLogger("vllm.equipoise")
        try:
            table = np.array(current_expert_table, dtype=np.int64)
            return self._plan(table, np.array(expert_workload, dtype=np.float64), log)
        except Exception as error:
            log.warning("equipoise decision=keep reason=%r", str(error) or type(error).__name__)
            layers = np.arange(len(current_expert_table))
            return 0, layers, current_expert_table

    def _plan(self, table: IntArray, workload: Any, log: logging.Logger) -> tuple[int, IntArray, IntArray]:
        layers, ranks, slots = table.shape
        current = Placement(table.reshape(layers, -1), ranks, int(table.max()) + 1)
        windows = [_expert_loads(current, stage) for stage in workload.reshape(-1, layers, ranks * slots)]
        balancer = self._balancer_for(current)
        for window in windows:
            balancer.observe(window)
        if self._settings.policy == STATIC or self._stopped():
            return 0, np.arange(layers), table
        proposal = balancer.propose(current)
        observing = self._settings.mode == "observe"
        log.info("%s", decision_line(proposal, observing=observing))
        if proposal.placement is None or observing:
            return 0, np.arange(layers), table
        planned = proposal.placement.phy2log.reshape(table.shape)
        moved = np.stack([_by_the_rules(old, new) for old, new in zip(table, planned, strict=True)])
        order = _by_gain(np.stack(windows), current, moved)
        return int((moved != table).any()), order, moved

    def _balancer_for(self, current: Placement) -> Any:
        """The balancer of these layers and experts, told of the ranks that there are now."""
        topology = Topology(current.num_ranks, current.slots_per_rank)
        known = self._balancer
        if known is None or (known.num_layers, known.num_experts) != (
            current.num_layers,
            current.num_experts,
        ):
            self._balancer = self._settings.balancer(topology, current.num_layers, current.num_experts)
        elif known.topology != topology:
            known.change_topology(topology)
        return self._balancer

    def _stopped(self) -> bool:
        return self._settings.stop_file is not None and self._settings.stop_file.exists()


def _expert_loads(placement: Placement, slot_loads: Any) -> Any:
    """Loads ``[L, E]`` of experts from those of their slots ``[L, R]``."""
    loads = np.zeros((placement.num_layers, placement.num_experts))
    np.add.at(loads, (np.arange(placement.num_layers)[:, None], placement.phy2log), slot_loads)
    return loads


def _by_the_rules(old: IntArray, new: IntArray) -> IntArray:
    """A layer ``[P, S]`` planned anew, with what stays on a rank in its old slot; the old one if there are twins."""
    if any(len(np.unique(row)) < len(row) for row in new):
        return old
    layer: IntArray = old.copy()
    for rank, (before, after) in enumerate(zip(old, new, strict=True)):
        layer[rank, ~np.isin(before, after)] = after[~np.isin(after, before)]
    return layer


def _by_gain(windows: Any, current: Placement, moved: IntArray) -> IntArray:
    """Layers, those first whose imbalance falls most."""
    after = Placement(moved.reshape(current.phy2log.shape), current.num_ranks, current.num_experts)
    gains = imbalance(rank_loads(windows, current)) - imbalance(rank_loads(windows, after))
    order: IntArray = np.argsort(-gains.mean(axis=0), kind="stable")
    return order
