"""Compile every kernel for Triton as its backend launches it, for an H100, which need not be there.

The driver of Triton is a stand-in that names the GPU; kernels become machine code and are not run. Prints one line a
kernel: its name and how many double precision products the compiler has fused with sums.
"""

from __future__ import annotations

from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from equipoise import Ensemble, Topology, contiguous_placement
from equipoise.dispatch import triton_backend as dispatch
from equipoise.dispatch.maps import DeviceMaps
from equipoise.planning import triton_backend as planning


class NoGpu:
    """In place of Triton's driver."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    made = run(function, *args, grid=grid, warmup=True, **options)
    assert made.asm["cubin"]
    print(function.__name__, made.asm["ptx"].count("fma.rn.f64"))


driver.set_active(NoGpu())
run, JITFunction.run = JITFunction.run, compile_only
policy, topology = Ensemble(), Topology(32, 9)
phy2log = planning.plan_ensemble(
    torch.ones(2, 256, dtype=torch.float64), topology, policy.kinds.tolist(), 0.2, 20, 0
)
planning.invert(phy2log, 256)
for topology in (Topology(128, 3),):
    placement = contiguous_placement(2, 256, topology.num_ranks, topology.num_slots)
    maps = DeviceMaps.of(placement, "cpu")
    shares = dispatch.split_batch(torch.ones(2, 256), maps, 3)
    dispatch.assign(torch.zeros((2, 4096), dtype=torch.int32), shares, maps)
    dispatch.assign(torch.zeros((2, 4096), dtype=torch.int64), None, maps)
