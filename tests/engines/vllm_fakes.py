"""Stand-ins for what the plug-in touches of vLLM, with the signatures that its versions have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

# Read from the wheels: parameters of (policy, EplbState.add_model, EplbState.rearrange).
_POLICY = "weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None"
VERSIONS = {
    "0.29.0": (_POLICY, "model, model_config", "is_profile=False, rank_mapping=None"),
    "0.30.0": (_POLICY, "model, model_config", "is_profile=False, rank_mapping=None"),
    "0.31.0": (
        _POLICY,
        "model, model_config",
        "is_profile=False, rank_mapping=None, use_last_expert_load=False",
    ),
    "0.32.0": (
        _POLICY,
        "model, model_config, model_name=None",
        "is_profile=False, rank_mapping=None, use_last_expert_load=False",
    ),
    "0.33.0": (
        _POLICY,
        "model, model_config, model_name=None",
        "is_profile=False, rank_mapping=None, use_last_expert_load=False",
    ),
}


def model(layers: int = 2, experts: int = 8, slots: int = 12, ranks: int = 2, name: str = "toy") -> Any:
    """What `EplbState` keeps of a model."""
    old = torch.arange(slots).repeat(layers, 1) % experts
    weights = [[torch.zeros(slots // ranks, 4)] for _ in range(layers)]
    asked = SimpleNamespace(
        num_moe_layers=layers,
        num_logical_experts=experts,
        num_physical_experts=slots,
        num_local_physical_experts=slots // ranks,
        num_expert_groups=1,
        expert_weights=weights,
    )
    window = torch.ones(4, layers, slots, dtype=torch.int32)
    return SimpleNamespace(
        model=asked, model_name=name, physical_to_logical_map=old, expert_load_window=window
    )


class Engine:
    """One process of vLLM: modules as `replace` takes them, and a state that asks the policy as vLLM's does."""

    def __init__(self, version: str = "0.32.0", group: Any = None, **changed: str) -> None:
        policy, add_model, rearrange = VERSIONS[version]
        policy, add_model = changed.get("policy", policy), changed.get("add_model", add_model)
        rearrange = changed.get("rearrange", rearrange)
        space: dict[str, Any] = {"work": self._rearrange, "torch": torch}
        exec(_SOURCE.format(policy=policy, add_model=add_model, rearrange=rearrange), space)
        self.policy = SimpleNamespace(
            AbstractEplbPolicy=space["Abstract"],
            DefaultEplbPolicy=space["Default"],
            EPLB_POLICIES={"default": space["Default"]},
        )
        self.State = space["State"]
        self.parallel_state = SimpleNamespace(get_eplb_group=lambda: _group(group), get_node_count=lambda: 1)
        self.loads: dict[str, Any] = {}
        self.modes: list[bool] = []

    def _rearrange(self, state: Any) -> None:
        self.modes.append(state.is_async)
        for one in state.model_states.values():
            asked, old = one.model, one.physical_to_logical_map
            slots = asked.num_physical_experts
            ranks = slots // asked.num_local_physical_experts
            plan = self.policy.EPLB_POLICIES["default"].rebalance_experts
            one.physical_to_logical_map = plan(self.loads[one.model_name], slots, 1, 1, ranks, old)


def _group(group: Any) -> Any:
    assert group is not None
    return SimpleNamespace(cpu_group=group)


_SOURCE = """
class Abstract:
    @classmethod
    def rebalance_experts(cls, {policy}): ...

class Default(Abstract):
    calls = 0

    @classmethod
    def rebalance_experts(cls, {policy}):
        Default.calls += 1
        slots, experts = num_replicas, weight.shape[1]
        return (torch.arange(slots) % experts).flip(0).repeat(weight.shape[0], 1)

class State:
    def __init__(self, *, elastic=False, is_async=False):
        from types import SimpleNamespace
        self.model_states, self.is_async = dict(), is_async
        self.parallel_config = SimpleNamespace(enable_elastic_ep=elastic)
        self.expert_rearrangement_step_interval, self.expert_rearrangement_step = 16, 12

    def add_model(self, {add_model}):
        self.model_states[len(self.model_states)] = model

    def rearrange(self, {rearrange}):
        work(self)
"""
