"""A stand-in for the parts of SGLang 0.5.23 that the plug-in touches: its signatures, as recorded, and little else.

For machines without SGLang. ``tests/engines/sglang`` runs the real one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from types import SimpleNamespace
from typing import Any

import torch


class EplbAlgorithm(Enum):
    deepseek = auto()
    deepseek_hierarchical = auto()


@dataclass
class ExpertLocationMetadata:
    physical_to_logical_map: torch.Tensor
    physical_to_logical_map_cpu: torch.Tensor
    logical_to_all_physical_map: torch.Tensor
    logical_to_all_physical_map_cpu: torch.Tensor
    logical_to_all_physical_map_num_valid: torch.Tensor
    ep_size: int
    logical_to_rank_dispatch_physical_map: torch.Tensor | None = None

    @property
    def num_layers(self) -> int:
        return self.physical_to_logical_map.shape[0]

    @property
    def num_physical_experts(self) -> int:
        return self.physical_to_logical_map.shape[1]

    @property
    def num_logical_experts(self) -> int:
        return self.logical_to_all_physical_map.shape[1]

    @staticmethod
    def init_by_eplb(model_config, logical_count, *, use_flat_topology=False):
        eplb_algorithms = model_config
        return eplb_algorithms.rebalance_experts(tokens_per_expert=logical_count)


@dataclass
class ElasticEPState:
    active_ranks: torch.Tensor | None
    has_scaled: bool = False


def own_plan(
    tokens_per_expert: torch.Tensor,
    num_physical_experts: int,
    num_local_physical_experts: int,
    num_groups: int | None,
    num_nodes: int,
    algorithm: EplbAlgorithm,
):
    """Any legal map: experts in order, backwards."""
    layers, experts = tokens_per_expert.shape[1:]
    row = torch.arange(num_physical_experts).flip(0) % experts
    return row.repeat(layers, 1), None, None


own_plan.__module__ = "sglang.srt.eplb.eplb_algorithms"


class Fake:
    """SGLang's modules, and what they hold: the map that is served, elastic ranks, a group."""

    def __init__(self, phy2log: Any = None, num_experts: int = 0, ranks: int = 2, group: Any = None) -> None:
        self.elastic: ElasticEPState | None = None
        self.cursor = 0
        self.serving = None if phy2log is None else metadata_of(torch.as_tensor(phy2log), num_experts, ranks)
        fake = self

        class EPLBManager:
            def __init__(
                self,
                *,
                model_config,
                get_model,
                get_expert_location_updater,
                get_expert_backup_client,
                get_weight_updater,
            ):
                self.made = True

            def _compute_expert_location_metadata(self, logical_count, *, broadcast_over_world):
                pass

        class ElasticEPStateManager:
            @classmethod
            def instance(cls):
                return fake.elastic

        class ModelConfigForExpertLocation:
            @staticmethod
            def from_model_config(model_config):
                return SimpleNamespace(num_groups=None)

        def compute_algorithm(raw_algorithm, num_groups, num_nodes):
            return EplbAlgorithm.deepseek

        def get_global_expert_location_metadata():
            return fake.serving

        def get_global_expert_distribution_recorder():
            buffer = SimpleNamespace(_curr_index=fake.cursor)
            return SimpleNamespace(
                _accumulator=SimpleNamespace(_global_physical_count_of_buffered_step=buffer)
            )

        def get_parallel():
            return SimpleNamespace(world_group=SimpleNamespace(cpu_group=group), nnodes=1)

        def get_exec():
            return SimpleNamespace(moe=SimpleNamespace(eplb_algorithm="auto"))

        self.eplb_algorithms = SimpleNamespace(
            rebalance_experts=own_plan, compute_algorithm=compute_algorithm, EplbAlgorithm=EplbAlgorithm
        )
        self.eplb_manager = SimpleNamespace(EPLBManager=EPLBManager)
        self.expert_location = SimpleNamespace(
            ExpertLocationMetadata=ExpertLocationMetadata,
            ModelConfigForExpertLocation=ModelConfigForExpertLocation,
            get_global_expert_location_metadata=get_global_expert_location_metadata,
        )
        self.expert_distribution = SimpleNamespace(
            get_global_expert_distribution_recorder=get_global_expert_distribution_recorder
        )
        self.elastic_ep = SimpleNamespace(
            ElasticEPStateManager=ElasticEPStateManager, ElasticEPState=ElasticEPState
        )
        self.runtime_context = SimpleNamespace(get_parallel=get_parallel, get_exec=get_exec)

    def ask(self, tokens: Any, slots: int, ranks: int, groups: int | None = None, nodes: int = 1) -> Any:
        """Ask for a plan as `init_by_eplb` does."""
        return self.eplb_algorithms.rebalance_experts(
            tokens_per_expert=torch.as_tensor(tokens),
            num_physical_experts=slots,
            num_local_physical_experts=slots // ranks,
            num_groups=groups,
            num_nodes=nodes,
            algorithm=EplbAlgorithm.deepseek,
        )


def metadata_of(phy2log: torch.Tensor, num_experts: int, ranks: int) -> ExpertLocationMetadata:
    """What SGLang makes of a map."""
    layers, slots = phy2log.shape
    log2phy = torch.full((layers, num_experts, slots), -1)
    for layer in range(layers):
        for expert in range(num_experts):
            found = (phy2log[layer] == expert).nonzero().ravel()
            log2phy[layer, expert, : len(found)] = found
    valid = (log2phy >= 0).sum(dim=2)
    return ExpertLocationMetadata(phy2log.clone(), phy2log.clone(), log2phy, log2phy.clone(), valid, ranks)
