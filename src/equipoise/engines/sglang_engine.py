"""SGLang: what is asked of it, behind names of our own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..placement import BoolArray, IntArray
from .question import Hits


@dataclass(frozen=True)
class Shape:
    """What a server has been started with."""

    num_layers: int
    """layers with experts, as far as the model's configuration tells them from dense ones"""
    num_experts: int
    num_slots: int
    num_ranks: int
    num_nodes: int
    num_groups: int


class Engine:
    """What is asked of SGLang's modules, which are handed in under their names."""

    def __init__(self, modules: Any) -> None:
        self._modules = modules
        self._get_model: Callable[[], Any] | None = None

    @property
    def serving(self) -> Any:
        """The `ExpertLocationMetadata` that is served; ``None`` while the server starts."""
        return self._modules.expert_location.get_global_expert_location_metadata()

    @property
    def elastic(self) -> Any:
        """The state of elastic expert parallelism; ``None`` where that is off."""
        return self._modules.elastic_ep.ElasticEPStateManager.instance()

    @property
    def group(self) -> Any:
        """The group of all ranks on the CPU; ``None`` where this rank plans alone.

        Once ranks have joined, SGLang asks rank 0 alone, and a collective of ours would wait for ever.
        """
        import torch.distributed as dist

        if not dist.is_initialized() or (self.elastic is not None and self.elastic.has_scaled):
            return None
        return self._modules.runtime_context.get_parallel().world_group.cpu_group

    def alive(self, num_ranks: int) -> BoolArray:
        """Whether each rank ``[P]`` is there. SGLang keeps room for ranks that may join later; they do not count."""
        state = self.elastic
        if state is None or state.active_ranks is None:
            return np.ones(num_ranks, np.bool_)
        return np.asarray(state.active_ranks[:num_ranks].cpu().numpy() != 0)

    @property
    def oldest(self) -> int:
        """Where in the recorder's rows time begins.

        Its buffer is circular: the row that would be written next is the oldest, or an empty one before the oldest.
        """
        recorder = self._modules.expert_distribution.get_global_expert_distribution_recorder()
        buffer = getattr(
            getattr(recorder, "_accumulator", None), "_global_physical_count_of_buffered_step", None
        )
        return int(getattr(buffer, "_curr_index", 0))

    def meet(self, model_config: Any, get_model: Callable[[], Any]) -> Shape:
        """What is to be served; the model itself comes later."""
        self._get_model = get_model
        serving = self.serving
        dense = getattr(getattr(model_config, "hf_config", None), "first_k_dense_replace", 0) or 0
        nodes = int(self._modules.runtime_context.get_parallel().nnodes)
        groups = self._modules.expert_location.ModelConfigForExpertLocation.from_model_config(
            model_config
        ).num_groups
        raw = self._modules.runtime_context.get_exec().moe.eplb_algorithm
        algorithm = self._modules.eplb_algorithms.compute_algorithm(raw, groups, nodes)
        return Shape(
            num_layers=int(serving.num_layers) - dense,
            num_experts=int(serving.num_logical_experts),
            num_slots=int(serving.num_physical_experts),
            num_ranks=int(serving.ep_size),
            num_nodes=nodes,
            num_groups=groups_on_nodes(groups, algorithm),
        )

    @property
    def weights(self) -> dict[int, list[Any]]:
        """The tensors of experts of each layer that has any, by its number; empty while there is no model."""
        return {} if self._get_model is None else self._get_model().routed_experts_weights_of_layer

    @property
    def expert_bytes(self) -> int:
        """Weights of one expert of one layer, all its tensors together; 0 where that is not known."""
        return sum(int(weight[0].nbytes) for weight in next(iter(self.weights.values()), []))


def groups_on_nodes(num_groups: int | None, algorithm: Any) -> int:
    """Groups of experts, where this algorithm of SGLang's keeps them on nodes: those with that in their name."""
    return num_groups if num_groups and algorithm.name.endswith("hierarchical") else 1


def hits_of(tokens: Any) -> Hits:
    """In how many of the recorded passes experts were hit, by a token of any rank: a pass counts all ranks.

    Parameters
    ----------
    tokens : a tensor ``[passes, L, E]`` of counts, wherever it lives; a pass without tokens is none
    """
    hit = tokens > 0
    counts = hit.sum(dim=0).cpu().numpy().astype(np.int64)
    return Hits(counts, max(1, int(hit.flatten(1).any(dim=1).sum())))


def windows_of(tokens: Any, oldest: int, parts: int) -> list[tuple[IntArray, int]]:
    """The recorded passes as ``parts`` windows of about as many tokens each, oldest first, with their passes.

    A pass without tokens is none: a row of the buffer that nothing was written to since it was emptied, or an idle
    pass. Windows are fewer where passes are.

    Parameters
    ----------
    tokens : a tensor ``[passes, L, E]`` of counts, wherever it lives
    oldest : the row that time begins with
    """
    totals = tokens.sum(dim=(1, 2)).cpu().numpy().astype(np.float64)
    order = np.roll(np.arange(len(totals)), -oldest)
    order = order[totals[order] != 0]  # NaN stays, to be refused
    if not len(order):
        return [(np.zeros(tuple(tokens.shape[1:]), np.int64), 1)]
    halfway = np.cumsum(totals[order]) - totals[order] / 2
    share = (
        halfway / totals.sum() if np.isfinite(totals).all() and totals.min() >= 0 else np.zeros(len(order))
    )
    part = np.minimum((share * parts).astype(np.int64), parts - 1)
    numbers = np.unique(part)
    return [
        (tokens[order[part == k].tolist()].sum(dim=0).cpu().numpy(), int((part == k).sum())) for k in numbers
    ]
