"""vLLM's own `EplbState` loop and executor on gloo ranks, with the plug-in loaded through its entry point.

Only in the virtual environment of ``make test-engines-vllm``. A model of numbers stands in for the layers: the
weights of a slot say which expert they are, and the router's counts are drawn. State, counters, collectives, maps,
the asynchronous worker and the transfer of weights are vLLM's.
"""

from __future__ import annotations

import os
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

os.environ.update(EQUIPOISE_VLLM="1", TEST_CPU_SHIM="1", OMP_NUM_THREADS="1")
os.environ["EQUIPOISE_MAX_MOVES"] = "10%"

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from vllm.plugins import load_general_plugins

load_general_plugins()

import vllm.distributed.eplb.eplb_state as es
import vllm.distributed.parallel_state as ps
from vllm.config import ParallelConfig, VllmConfig, set_current_vllm_config
from vllm.distributed.eplb.eplb_communicator import TorchDistNcclEplbCommunicator
from vllm.distributed.eplb.policy import EPLB_POLICIES, DefaultEplbPolicy
from vllm.distributed.eplb.rebalance_execute import rearrange_expert_weights_inplace

import equipoise as eq
from equipoise.engines.settings import Settings
from equipoise.engines.vllm_hooks import install

HIDDEN = (64, 8)


def groups(rank: int, world: int, port: str) -> None:
    """vLLM's groups; their addresses come from the group that the test has made."""
    with set_current_vllm_config(VllmConfig()):
        ps.init_distributed_environment(
            world_size=world, rank=rank, local_rank=rank, distributed_init_method=port, backend="gloo"
        )
        everyone = [list(range(world))]
        ps._EP = ps.init_model_parallel_group(everyone, rank, "gloo", group_name="ep")
        ps._EPLB = ps.init_model_parallel_group(everyone, rank, "gloo", group_name="eplb")


def weight(layer: int, expert: int, tensor: int, hidden: int) -> torch.Tensor:
    return torch.full((hidden,), float(expert * 1000 + layer * 10 + tensor))


def fill(phy2log: Any, rank: int, slots: int) -> list[list[torch.Tensor]]:
    return [
        [
            torch.stack([weight(layer, int(e), t, h) for e in row[rank * slots : (rank + 1) * slots]])
            for t, h in enumerate(HIDDEN)
        ]
        for layer, row in enumerate(phy2log)
    ]


def assert_weights(weights: Any, phy2log: Any, rank: int, slots: int) -> None:
    for layer, tensors in enumerate(weights):
        for t, held in enumerate(tensors):
            wanted = phy2log[layer, rank * slots : (rank + 1) * slots] * 1000 + layer * 10 + t
            assert (held == wanted[:, None]).all(), (rank, layer, t)


class Toy:
    """What `EplbState` needs of a model."""

    num_expert_groups = 1

    def __init__(self, layers: int, experts: int, slots: int, rank: int, world: int) -> None:
        self.num_routed_experts = self.num_logical_experts = experts
        self.num_redundant_experts, self.num_physical_experts = slots - experts, slots
        self.num_local_physical_experts, self.num_moe_layers = slots // world, layers
        start = es.EplbState.build_initial_global_physical_to_logical_map(experts, slots - experts)
        self.expert_weights = fill(np.tile(start, (layers, 1)), rank, slots // world)
        self.moe_layers = [SimpleNamespace(eplb_state=es.EplbLayerState()) for _ in range(layers)]

    def set_eplb_state(self, load: Any, log2phy: Any, logcnt: Any) -> None:
        for index, layer in enumerate(self.moe_layers):
            layer.eplb_state.set_layer_state(index, load, log2phy, logcnt)


def parallel_config(world: int, is_async: bool, redundant: int) -> Any:
    config = ParallelConfig(tensor_parallel_size=world)
    config.enable_expert_parallel = config.enable_eplb = True
    eplb = config.eplb_config
    eplb.step_interval = eplb.window_size = 8
    eplb.use_async, eplb.num_redundant_experts, eplb.communicator = is_async, redundant, "torch_gloo"
    return config


def route(layer: Any, popularity: torch.Tensor, phy2log: torch.Tensor, tokens: int = 64) -> torch.Tensor:
    """A batch through the router of one layer, by the maps that are live; what it chose ``[tokens, 4]``."""
    state = layer.eplb_state
    logical = torch.multinomial(popularity.expand(tokens, len(popularity)), 4)
    replica = (torch.arange(tokens)[:, None] * 2654435769 & 0xFFFFFFFF) % state.logical_replica_count[logical]
    slots = state.logical_to_physical_map[logical, replica]
    assert (slots >= 0).all()
    assert (phy2log[slots] == logical).all()
    ones = torch.ones(slots.numel(), dtype=torch.int32)
    state.expert_load_view.index_add_(0, slots.flatten(), ones)
    return logical


def serve_loop(
    rank: int, world: int, is_async: bool, port: str, models: int = 1, passes: int = 60
) -> tuple[list[bytes], int]:
    """Passes of the loop; the maps at the end and in how many passes something was committed."""
    groups(rank, world, port)
    layers, experts, slots = 6, 16, 16 + 2 * world
    state = es.EplbState(parallel_config(world, is_async, slots - experts), torch.device("cpu"))
    toys = [Toy(layers - index, experts, slots, rank, world) for index in range(models)]
    for index, toy in enumerate(toys):
        config = SimpleNamespace(model="toy", compute_hash=lambda index=index: f"toy{index}")
        state.add_model(toy, config)
    if is_async:
        state.device_index = 0
        state.start_async_loop()
    state.step(is_dummy=True, is_profile=True)
    popularity = torch.randn(layers, experts, generator=torch.Generator().manual_seed(5)).mul(1.2).exp()
    held = list(state.model_states.values())
    before, commits = [one.physical_to_logical_map.clone() for one in held], 0
    for _ in range(passes):
        for one, toy in zip(held, toys, strict=True):
            for index, layer in enumerate(toy.moe_layers):
                route(layer, popularity[index], one.physical_to_logical_map[index])
        state.step()
        changed = False
        for index, (one, toy) in enumerate(zip(held, toys, strict=True)):
            assert_weights(toy.expert_weights, one.physical_to_logical_map, rank, slots // world)
            changed |= bool((one.physical_to_logical_map != before[index]).any())
            before[index] = one.physical_to_logical_map.clone()
        commits += changed
        if is_async:
            time.sleep(0.005)  # the worker needs the interpreter, too
    return [one.numpy().tobytes() for one in before], commits


def address(tmp_path: Any) -> str:
    return f"file://{tmp_path}/vllm"


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_every_slot_holds_what_the_map_says(world, is_async, tmp_path):
    def job(rank: int, group: Any) -> Any:
        assert EPLB_POLICIES["default"].__name__ == "EquipoisePolicy"
        return serve_loop(rank, world, is_async, address(tmp_path))

    answers = on_ranks(world, job)
    assert all(maps == answers[0][0] for maps, _ in answers)
    assert answers[0][1] >= 3


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_target_and_a_draft_side_by_side(is_async, tmp_path):
    answers = on_ranks(2, lambda rank, group: serve_loop(rank, 2, is_async, address(tmp_path), models=2))
    assert answers[0][0] == answers[1][0]
    assert answers[0][1] >= 3


def plug_in_again(settings: Settings) -> None:
    """With other settings than those that the processes of this file were started with."""
    for name in ("add_model", "rearrange"):
        setattr(es.EplbState, name, getattr(es.EplbState, name).__wrapped__)
    EPLB_POLICIES["default"] = DefaultEplbPolicy
    install(settings)


def count_hits(rank: int, world: int, is_async: bool, port: str, folder: Any) -> np.ndarray:
    """Batches of two tokens; which experts each pass of this rank hit ``[passes, L, E]``."""
    plug_in_again(Settings(record=folder, record_unit="batches"))
    groups(rank, world, port)
    layers, experts, slots = 3, 16, 20
    state = es.EplbState(parallel_config(world, is_async, slots - experts), torch.device("cpu"))
    toy = Toy(layers, experts, slots, rank, world)
    state.add_model(toy, SimpleNamespace(model="toy", compute_hash=lambda: "toy"))
    if is_async:
        state.device_index = 0
        state.start_async_loop()
    state.step(is_dummy=True, is_profile=True)
    torch.manual_seed(rank)
    held, found = next(iter(state.model_states.values())), np.zeros((26, layers, experts), bool)
    for number in range(26):
        for index, layer in enumerate(toy.moe_layers):
            table = held.physical_to_logical_map[index]
            found[number, index, route(layer, torch.ones(experts), table, tokens=2).flatten().numpy()] = True
        state.step()
        if is_async:
            time.sleep(0.02)
    while rank == 0 and not recorded(folder, 3 if is_async else 4):
        time.sleep(0.02)
    return found


def recorded(folder: Any, windows: int) -> bool:
    return any(folder.glob("*.safetensors")) and len(eq.load_trace(folder)) >= windows


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_hit_batches_of_all_ranks_are_recorded(is_async, tmp_path):
    """From vLLM's own window and maps, after moves as well; a window is the passes since the last rearrangement.

    In the asynchronous mode vLLM reads all of a window through the map at its end, tokens and hits alike.
    """
    folder = tmp_path / "recording"
    hits = sum(
        on_ranks(2, lambda rank, group: count_hits(rank, 2, is_async, address(tmp_path), folder).astype(int))
    )
    trace = eq.load_trace(folder)
    assert trace.unit == "batches"
    for window, (first, end) in enumerate(trace.steps.tolist()):
        if not is_async or window == 0:
            assert trace.counts[window].tolist() == hits[first:end].sum(axis=0).tolist()
        assert trace.batches[window] == 2 * (end - first)


def drifting(windows: int, layers: int, experts: int) -> np.ndarray:
    """Loads whose mix changes slowly, as that of a service does."""
    return eq.synthetic_trace(
        num_layers=layers, num_experts=experts, num_windows=windows, seed=3
    ).counts.astype(np.int64)


def executor_run(rank: int, world: int, policy: Any, windows: Any, slots: int) -> tuple[int, list[float]]:
    """Fetches of a policy, from the start on, and the imbalance on each window that follows."""
    layers, experts = windows.shape[1:]
    total = world * slots
    old = torch.arange(total).repeat(layers, 1) % experts
    weights = fill(old, rank, slots)
    buffer = [torch.empty_like(one) for one in weights[0]]
    group = ps.get_eplb_group().device_group
    communicator = TorchDistNcclEplbCommunicator.__new__(TorchDistNcclEplbCommunicator)
    communicator._ep_group, communicator._stream, communicator._p2p_ops = group, None, []
    fetches, later = 0, []
    for now, following in pairwise(windows):
        new = policy.rebalance_experts(torch.from_numpy(now), total, 1, 1, world, old)
        rearrange_expert_weights_inplace(old, new, weights, buffer, group, communicator)
        assert_weights(weights, new, rank, slots)
        before, after = (eq.Placement(one.numpy(), world, experts) for one in (old, new))
        fetches += int(after.moves_from(before).sum())
        later.append(float(eq.imbalance(eq.rank_loads(following, after)).mean()))
        old = new
    return fetches, later


def test_a_sixth_of_the_fetches_at_the_same_imbalance(tmp_path, capsys):
    """58 layers x 64 experts on 4 ranks with 18 slots: against vLLM's own policy, on the same windows."""
    windows = drifting(13, 58, 64)

    def job(rank: int, group: Any) -> Any:
        groups(rank, 4, address(tmp_path))
        ours = executor_run(rank, 4, EPLB_POLICIES["default"], windows, 18)
        return ours, executor_run(rank, 4, DefaultEplbPolicy, windows, 18)

    (fetches, later), (own_fetches, own_later) = on_ranks(4, job)[0]
    with capsys.disabled():
        print(
            f"\n58 x 64 on 4 x 18, {len(later)} rearrangements: fetches {fetches} against {own_fetches} of vLLM's "
            f"policy, imbalance on the following windows {np.mean(later):.4f} against {np.mean(own_later):.4f}"
        )
    assert fetches * 6 <= own_fetches
    assert np.mean(later) <= np.mean(own_later) + 0.01


def test_the_broadcast_of_a_group_without_a_world():
    """vLLM's elastic groups belong to no default group: the collective calls of the plug-in work there, too."""
    from equipoise.engines.agreement import Status, all_agree, word_of_rank_0

    def job(rank: int, group: Any) -> Any:
        from vllm.distributed.utils import stateless_init_torch_distributed_process_group
        from vllm.utils.network_utils import get_open_port

        port = [get_open_port()]
        dist.broadcast_object_list(port, src=0)
        own = stateless_init_torch_distributed_process_group("127.0.0.1", port[0], rank, 2, "gloo")
        agreed = all_agree(own, 5, True)
        word = word_of_rank_0(own, Status.MOVE if rank == 0 else Status.KEEP, np.full((2, 3), 7 - 7 * rank))
        return agreed, word[0], word[1].tolist()

    assert on_ranks(2, job) == [((True, True), Status.MOVE, [[7, 7, 7]] * 2)] * 2
