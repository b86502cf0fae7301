"""SGLang's recorder, manager and updater on gloo ranks, with a router imitated by the maps that are served.

The engine's code is the real one, of the installed wheel; what stands in: the model (a few tensors for each expert,
filled with a number that names it), its router, and the packages of `stand_ins`.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import stand_ins

os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
os.environ["SGLANG_EXPERT_LOCATION_UPDATER_CANARY"] = "1"  # the updater checks itself, too
stand_ins.install()

import numpy as np  # noqa: E402
import sglang.srt.elastic_ep.elastic_ep as elastic  # noqa: E402
import sglang.srt.eplb.eplb_algorithms as algorithms  # noqa: E402
import sglang.srt.eplb.eplb_manager as managers  # noqa: E402
import sglang.srt.eplb.expert_distribution as recorders  # noqa: E402
import sglang.srt.eplb.expert_location as locations  # noqa: E402
import sglang.srt.eplb.expert_location_updater as updaters  # noqa: E402
import sglang.srt.model_executor.model_runner_components.moe_ep_setup  # noqa: E402, F401  # the model runner has it
import sglang.srt.plugins as plugins  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
from sglang.srt.distributed import parallel_state  # noqa: E402
from sglang.srt.runtime_context import get_context  # noqa: E402

WIDTHS = (24, 3)
"""of the tensors of an expert"""
TOKENS, TOP_K = 512, 4


@dataclass(frozen=True)
class Server:
    """What is served, by how many ranks."""

    ranks: int
    layers: int = 6
    experts: int = 32
    slots_per_rank: int = 20
    dense: int = 1
    """layers at the start that have no experts"""
    passes: int = 8
    """between two plans, all of them recorded"""
    layers_per_chunk: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """of the server, beside these"""

    @property
    def slots(self) -> int:
        return self.ranks * self.slots_per_rank


@dataclass
class Run:
    """One rank of a server."""

    server: Server
    rank: int
    weights: dict[int, list[torch.Tensor]]
    manager: Any
    recorder: Any
    popularity: torch.Tensor
    """``[L, E]``, by which tokens choose experts"""
    logical: list[np.ndarray] = field(default_factory=list)
    """``[L, E]`` of each pass, of all ranks together"""
    planned: list[np.ndarray] = field(default_factory=list)
    """``[L, R]`` of each map that the updater was given"""

    @property
    def phy2log(self) -> np.ndarray:
        """``[L, R]`` as it is served."""
        return locations.get_global_expert_location_metadata().physical_to_logical_map_cpu.numpy().copy()

    def forward(self, step: int) -> None:
        """One pass: tokens choose experts, the maps choose slots; then the manager's turn."""
        counts = np.zeros((self.server.layers, self.server.experts), np.int64)
        batch = SimpleNamespace(forward_mode=SimpleNamespace(value=1), global_num_tokens_cpu=None)
        with self.recorder.with_forward_pass(step, batch):
            for layer in range(self.server.dense, self.server.layers):
                with self.recorder.with_current_layer(layer):
                    # The same choices whatever is served: a generator for each step, layer and rank.
                    draw = torch.Generator().manual_seed(1000 * (1000 * step + layer) + self.rank)
                    chosen = torch.multinomial(
                        self.popularity[layer].expand(TOKENS, -1), TOP_K, generator=draw
                    )
                    maps = locations.get_global_expert_location_metadata()
                    slots, valid = (
                        maps.logical_to_all_physical_map[layer],
                        maps.logical_to_all_physical_map_num_valid,
                    )
                    nth = torch.randint(0, 1 << 16, chosen.shape, generator=draw) % valid[layer][chosen]
                    self.recorder.on_select_experts(topk_ids=slots[chosen, nth])
                    counts[layer] = np.bincount(chosen.ravel(), minlength=self.server.experts)
        total = torch.from_numpy(counts)
        dist.all_reduce(total)
        self.logical.append(total.numpy())
        self.manager.on_forward_pass_end()

    def check_weights(self) -> None:
        """Every slot of this rank holds the weights of the expert that the map says, of all layers that have any."""
        ours = self.phy2log[:, self.rank * self.server.slots_per_rank :][:, : self.server.slots_per_rank]
        for layer, tensors in self.weights.items():
            for number, tensor in enumerate(tensors):
                wanted = torch.from_numpy(ours[layer] * 1000.0 + layer * 10 + number).float()
                assert (tensor == wanted[:, None]).all(), (self.rank, layer, number)


def weights_of(server: Server, rank: int, phy2log: np.ndarray) -> dict[int, list[torch.Tensor]]:
    """The tensors of a rank's slots, each filled with a number that names its layer, expert and tensor."""
    ours = phy2log[:, rank * server.slots_per_rank :][:, : server.slots_per_rank]
    return {
        layer: [
            torch.from_numpy(ours[layer] * 1000.0 + layer * 10 + number).float()[:, None].repeat(1, width)
            for number, width in enumerate(WIDTHS)
        ]
        for layer in range(server.dense, server.layers)
    }


def serve(server: Server, job: Callable[[Run], Any], environment: dict[str, str]) -> list[Any]:
    """What ``job`` returns on each rank of a server; an error of any rank is one here."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _rank, (server, job, environment, folder), nprocs=server.ranks, start_method="fork"
        )
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(server.ranks)]


def _rank(
    rank: int, server: Server, job: Callable[[Run], Any], environment: dict[str, str], folder: str
) -> None:
    try:
        torch.set_num_threads(1)
        torch.cpu.empty_cache = lambda: None  # SGLang asks every device for it; the CPU has none
        os.environ.update(environment)
        store = dist.FileStore(f"{folder}/store", server.ranks)
        limit = timedelta(seconds=60)  # what hangs is to fail
        dist.init_process_group("gloo", store=store, rank=rank, world_size=server.ranks, timeout=limit)
        with _context(server, rank):
            torch.save(job(_start(server, rank)), f"{folder}/{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        raise


def _context(server: Server, rank: int) -> Any:
    from contextlib import ExitStack

    stack = ExitStack()
    options = {
        "device": "cpu",
        "tp_size": server.ranks,
        "ep_size": server.ranks,
        "ep_num_redundant_experts": server.slots - server.experts,
        "enable_eplb": True,
        "eplb_algorithm": "auto",
        "eplb_rebalance_num_iterations": server.passes,
        "eplb_rebalance_layers_per_chunk": server.layers_per_chunk,
        "expert_distribution_recorder_mode": "stat",
        "expert_distribution_recorder_buffer_size": server.passes,
        "ep_dispatch_algorithm": "dynamic",
        **server.options,
    }
    stack.enter_context(get_context().override_server_args(**options))
    stack.enter_context(
        get_context().parallel.override(
            tp_rank=rank, moe_ep_rank=rank, attn_tp_rank=rank, attn_tp_size=server.ranks, nnodes=1
        )
    )
    world = parallel_state.init_world_group(list(range(server.ranks)), rank, "gloo")
    stack.enter_context(get_context().parallel.override(world_group=world))
    return stack


def _start(server: Server, rank: int) -> Run:
    """As SGLang's model runner does it: plug-ins, the first map, the recorder, the manager, the model."""
    plugins.load_plugins()
    config = locations.ModelConfigForExpertLocation(
        num_layers=server.layers, num_logical_experts=server.experts, num_groups=None
    )
    locations.ModelConfigForExpertLocation.from_model_config = staticmethod(lambda model_config: config)
    first = locations.ExpertLocationMetadata.init_trivial(None, moe_ep_rank=rank)
    locations.set_global_expert_location_metadata(first)
    recorder = recorders.ExpertDistributionRecorder.init_new(first, rank=rank)
    recorders.set_global_expert_distribution_recorder(recorder)
    weights = weights_of(server, rank, first.physical_to_logical_map_cpu.numpy())
    model = SimpleNamespace(routed_experts_weights_of_layer=weights)
    updater = updaters.ExpertLocationUpdater()
    planned: list[np.ndarray] = []
    update = updater.update

    def told(weights: Any, new: Any, **options: Any) -> Any:
        planned.append(new.physical_to_logical_map_cpu.numpy().copy())
        return update(weights, new, **options)

    updater.update = told
    manager = managers.EPLBManager(
        model_config=None,
        get_model=lambda: model,
        get_expert_location_updater=lambda: updater,
        get_expert_backup_client=lambda: None,
        get_weight_updater=lambda: SimpleNamespace(update_weights_from_disk=None),
    )
    popularity = torch.randn(server.layers, server.experts, generator=torch.Generator().manual_seed(5)).mul(
        1.2
    )
    return Run(server, rank, weights, manager, recorder, popularity.exp(), planned=planned)


__all__ = ["Run", "Server", "algorithms", "elastic", "locations", "managers", "plugins", "recorders", "serve"]
