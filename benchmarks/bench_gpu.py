"""Planning, splitting and assigning on a GPU, beside the processor: device time in captured graphs.

    python benchmarks/bench_gpu.py

Needs an NVIDIA GPU and Triton; without them it says so and measures nothing. Each result is compared with that of the
compiled kernels before it is timed. "Device" is the time of one replay of a captured graph, by events, the least of
nine means of twenty; what reads a value back cannot be captured, and is timed by the clock, launches and all, which
"eager" says. The processor's times are by the clock, with `EQUIPOISE_NUM_THREADS` threads.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

import equipoise as eq
from real_loads import place

REPEATS, REPLAYS = 9, 20


def why_not() -> str | None:
    """What is missing, if anything is."""
    if find_spec("torch") is None:
        return "torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return "there is no GPU"
    return None if find_spec("triton") else "Triton is not installed"


def least(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds by the clock, after a call that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def eager(call: Callable[[], object]) -> float:
    """Seconds by the clock until the device is done."""
    import torch

    return least(lambda: (call(), torch.cuda.synchronize()), 3)


def device(call: Callable[[], object]) -> float:
    """Seconds of a replay of the captured call."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()  # compiles what has to be
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(REPEATS + 1):  # the first warms up
        begin.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / REPLAYS / 1e3)
    return min(times[1:])


def row(what: str, where: str, seconds: float, same: bool | None = None) -> None:
    verdict = "" if same is None else "yes" if same else "NO"
    print(f"| {what} | {where} | {1e6 * seconds:,.1f} | {verdict} |", flush=True)
    if same is False:
        sys.exit(f"{what}: {where} gives another result than the compiled kernels")


def ensembles(loads: np.ndarray) -> None:
    """The plan of 58 layers: ``phy2log`` without the maps."""
    import torch

    from deepseek_torch import greedy
    from equipoise.planning import torch_backend, triton_backend

    policy, topology = eq.Ensemble(), eq.Topology(32, 9)
    windows = loads[None]
    expected = torch.from_numpy(place(policy, windows, topology))
    row("ensemble of 64, 58 x 256 -> 288", "processor", least(lambda: place(policy, windows, topology)))
    there = torch.from_numpy(loads).cuda()
    settings = (topology, policy.kinds.tolist(), policy.noise, policy.max_swaps, 0)
    for backend, name, timed in (
        (triton_backend, "Triton, device", device),
        (torch_backend, "torch, eager", eager),
    ):
        same = torch.equal(backend.plan_ensemble(there, *settings).cpu(), expected)
        row("", name, timed(lambda backend=backend: backend.plan_ensemble(there, *settings)), same)
    row("DeepSeek's algorithm", "torch, device", device(lambda: greedy(there, 288, 32)))


def splits(loads: np.ndarray) -> None:
    """Three sweeps of one layer, and the slots of 16,384 x 8 tokens."""
    import torch

    from equipoise.dispatch import torch_backend, triton_backend

    topk = np.random.default_rng(0).choice(256, (16384, 8), p=loads[0] / loads[0].sum())
    counts = np.bincount(topk.ravel(), minlength=256)[None]
    made = eq.Placement(place(eq.Robust(), loads[None, :1], eq.Topology(32, 9)), 32, 256)
    maps = eq.DeviceMaps.of(made, "cuda")
    shares = eq.split_batch(counts, made)
    slots = eq.assign(topk, shares, made)
    there = [torch.from_numpy(array).cuda() for array in (counts, topk.reshape(1, -1), shares)]
    row("split of a layer, 256 -> 288", "processor", least(lambda: eq.split_batch(counts, made)))
    for backend, name in ((triton_backend, "Triton, device"), (torch_backend, "torch, device")):
        found = backend.split_batch(there[0], maps, 3).cpu().numpy()
        same = bool(np.abs(found - shares).max() < 1e-6)
        row("", name, device(lambda backend=backend: backend.split_batch(there[0], maps, 3)), same)
    row("assignment of 16,384 x 8", "processor", least(lambda: eq.assign(topk, shares, made)))
    for backend, name in ((triton_backend, "Triton, device"), (torch_backend, "torch, device")):
        found = backend.assign(there[1], there[2], maps).cpu().numpy()
        same = bool((found.reshape(slots.shape) == slots).all())
        row("", name, device(lambda backend=backend: backend.assign(there[1], there[2], maps)), same)


def main() -> None:
    missing = why_not()
    if missing:
        print(f"{missing}: nothing was measured on a GPU")
        return
    import torch

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| what | where | microseconds | as the compiled kernels |\n|---|---|---|---|")
    loads = np.random.default_rng(0).lognormal(0.0, 1.0, (58, 256)).round(3)
    ensembles(loads)
    splits(loads)


if __name__ == "__main__":
    main()
