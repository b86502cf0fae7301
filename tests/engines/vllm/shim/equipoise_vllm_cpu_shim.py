"""A stand-in for what vLLM 0.32's CPU backend lacks for balancing experts: it refuses EPLB, and expert parallelism
on it is unfinished. For tests alone, and on only with ``TEST_CPU_SHIM=1``.

What is vLLM's own stays so: the state, its counters and collectives, the executor that moves weights, the maps, the
asynchronous worker. Put in place of what needs a GPU are: events and streams that are done at once; the mapping
of logical ids to slots with its counting, which is a Triton kernel; the routed experts' look-up of local weights; and
the part of the GPU runner's ``load_model`` that the CPU runner leaves out.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import time
from typing import Any

_done = False


def register() -> None:
    """vLLM's entry point."""
    global _done
    if os.environ.get("TEST_CPU_SHIM") != "1" or _done:
        return
    _done = True
    allow_eplb()
    without_accelerator()
    import vllm.model_executor.layers.fused_moe.experts.cpu_moe as cpu_moe
    import vllm.model_executor.layers.fused_moe.router.base_router as base_router
    import vllm.v1.worker.cpu_model_runner as runner

    with_data_parallel()
    base_router.eplb_map_to_physical_and_record = map_and_record
    cpu_moe.CPUUnquantizedExperts.apply = with_local_experts(cpu_moe.CPUUnquantizedExperts.apply)
    runner.CPUModelRunner.load_model = with_eplb(runner.CPUModelRunner.load_model)
    if "TEST_WITNESS" in os.environ:
        witness(os.environ["TEST_WITNESS"])
    if os.environ.get("TEST_BREAK") == "1":  # the negative control: maps change, weights do not
        import vllm.distributed.eplb.eplb_state as eplb_state

        eplb_state.rearrange_expert_weights_inplace = lambda *args, **kwargs: None


class Event:
    """Work on the CPU is done when the call returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.time = 0.0

    def record(self, *args: Any) -> None:
        self.time = time.perf_counter()

    def wait(self, *args: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Event) -> float:
        return (other.time - self.time) * 1e3


class Stream:
    """As `Event`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


def allow_eplb() -> None:
    """The configuration asks whether this is CUDA, ROCm or XPU."""
    import vllm.config.parallel as parallel
    from vllm.platforms import current_platform

    class Platform:
        def __getattr__(self, name: str) -> Any:
            return getattr(current_platform, name)

        def is_cuda_alike(self) -> bool:
            return True

    parallel.current_platform = Platform()


def with_data_parallel() -> None:
    """Data parallel ranks gather tokens for expert parallelism, and scatter results: not in the CPU communicator."""
    import torch
    import torch.distributed as dist
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    def all_gatherv(self: Any, input_: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
        if isinstance(input_, list):
            return [all_gatherv(self, one, dim, sizes) for one in input_]
        sizes = sizes or [input_.shape[0]] * self.world_size
        room = input_.new_zeros(max(sizes), *input_.shape[1:])
        room[: len(input_)] = input_
        rooms = [torch.empty_like(room) for _ in sizes]
        dist.all_gather(rooms, room, group=self.device_group)
        return torch.cat([one[:size] for one, size in zip(rooms, sizes, strict=True)])

    def reduce_scatterv(self: Any, input_: Any, dim: int = -1, sizes: list[int] | None = None) -> Any:
        whole = input_.clone()
        dist.all_reduce(whole, group=self.device_group)
        sizes = sizes or [len(whole) // self.world_size] * self.world_size
        start = sum(sizes[: self.rank_in_group])
        return whole[start : start + sizes[self.rank_in_group]].contiguous()

    CpuCommunicator.all_gatherv, CpuCommunicator.reduce_scatterv = all_gatherv, reduce_scatterv


def without_accelerator() -> None:
    """The modules of the balancer see a torch whose events and streams need no device."""
    import torch
    import vllm.distributed.eplb.async_worker as async_worker
    import vllm.distributed.eplb.eplb_communicator as communicator
    import vllm.distributed.eplb.eplb_state as eplb_state
    import vllm.distributed.eplb.eplb_utils as eplb_utils
    import vllm.distributed.eplb.rebalance_execute as execute

    class Accelerator:
        current_stream = staticmethod(lambda *args: Stream())
        current_accelerator = staticmethod(lambda *args: torch.device("cpu"))
        set_device_index = staticmethod(lambda index: None)
        is_available = staticmethod(lambda: False)

    class Torch:
        accelerator = Accelerator

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    Torch.Event, Torch.Stream = Event, Stream  # type: ignore[attr-defined]
    for module in (eplb_utils, communicator, async_worker, execute, eplb_state):
        module.torch = Torch()
        if hasattr(module, "device_stream"):
            module.device_stream = lambda stream: contextlib.nullcontext()


def map_and_record(
    topk_ids: Any,
    expert_load_view: Any,
    logical_to_physical_map: Any,
    logical_replica_count: Any,
    record_enabled: Any,
    num_unpadded_tokens: Any = None,
) -> Any:
    """Slots of logical ids, replicas taken in turn by the token's number, and the counts of real tokens."""
    import torch

    logical = topk_ids.long()
    token = torch.arange(logical.shape[0])[:, None]
    replica = ((token * 2654435769) & 0xFFFFFFFF) % logical_replica_count[logical].clamp(min=1)
    slots = logical_to_physical_map[logical, replica]
    if bool(record_enabled):
        real = slots if num_unpadded_tokens is None else slots[: int(num_unpadded_tokens)]
        ones = torch.ones(real.numel(), dtype=expert_load_view.dtype)
        expert_load_view.index_add_(0, real.flatten().long(), ones)
    return slots.to(topk_ids.dtype)


def with_local_experts(apply: Any) -> Any:
    """The CPU kernel indexes its weights with global ids, beyond their end: give it local ones of its own."""
    parameters = inspect.signature(apply)

    def wrapper(*args: Any, **kwargs: Any) -> None:
        import torch

        call = parameters.bind(*args, **kwargs)
        given = call.arguments
        if given["expert_map"] is not None:
            weights, local = given["topk_weights"], given["expert_map"][given["topk_ids"].long()]
            given["topk_weights"] = torch.where(local >= 0, weights, torch.zeros_like(weights)).contiguous()
            given["topk_ids"] = local.clamp(min=0).to(given["topk_ids"].dtype).contiguous()
        apply(*call.args, **call.kwargs)

    return wrapper


def with_eplb(load_model: Any) -> Any:
    """What the GPU runner does at the end of ``load_model``, and the CPU runner does not."""

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        import torch
        from vllm.distributed.eplb.eplb_state import EplbState

        load_model(self, *args, **kwargs)
        if not self.parallel_config.enable_eplb:
            return
        self.eplb_state = EplbState(self.parallel_config, torch.device("cpu"))
        self._moe_model = self.get_model()
        self.eplb_state.add_model(self._moe_model, self.model_config)
        if self.eplb_state.is_async:
            self.eplb_state.device_index = 0
            self.eplb_state.start_async_loop()

    return wrapper


def witness(path: str) -> None:
    """Writes down what is committed, on EP rank 0: a line of JSON for each commit and each rearrangement."""
    import vllm.distributed.eplb.eplb_state as eplb_state

    State = eplb_state.EplbState
    step, whole, layer = State.step, eplb_state._commit_eplb_maps, eplb_state._commit_eplb_maps_for_layer
    passes = 0

    def note(**facts: Any) -> None:
        if eplb_state.get_ep_group().rank_in_group == 0:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"passes": passes, **facts}) + "\n")

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal passes
        profile = bool(kwargs.get("is_profile"))
        begun, due = (
            time.perf_counter(),
            self.expert_rearrangement_step + 1 >= self.expert_rearrangement_step_interval,
        )
        step(self, *args, **kwargs)
        passes += not profile
        if due and not profile:
            note(rearranged_s=time.perf_counter() - begun)

    def committed(model_state: Any, new_physical_to_logical_map: Any) -> None:
        old = model_state.physical_to_logical_map.clone()
        whole(model_state, new_physical_to_logical_map=new_physical_to_logical_map)
        note(moved=int((old != new_physical_to_logical_map).sum()), map=new_physical_to_logical_map.tolist())

    def committed_layer(model_state: Any, new_physical_to_logical_map: Any, layer: int) -> None:
        old = model_state.physical_to_logical_map[layer].clone()
        whole_layer(model_state, new_physical_to_logical_map=new_physical_to_logical_map, layer=layer)
        note(layer=layer, moved=int((old != new_physical_to_logical_map).sum()))

    whole_layer = layer
    State.step = counted
    eplb_state._commit_eplb_maps, eplb_state._commit_eplb_maps_for_layer = committed, committed_layer
