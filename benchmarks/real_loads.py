"""The recorded loads of ../shared/traces, as benchmarks and tests read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from equipoise import Placement, Policy, Problem, Topology, imbalance, rank_loads

FloatArray = npt.NDArray[np.float64]
Planner = Callable[[FloatArray, Topology, "Placement | None"], npt.NDArray[np.int64]]

SEEN = ("prefill_in512", "prefill_in1024", "decode_in1000out1000")
UNSEEN = ("prefill_in2048", "decode_in2000out100")


def deepseek(folder: Path, *names: str) -> FloatArray:
    """DeepSeek-R1 statistics, one window a file: ``[W, 58, 256]`` tokens, dense layers left out."""
    windows = []
    for name in names:
        path = folder / "deepseek-r1-sglang" / f"{name}.json"
        counts = np.array(json.loads(path.read_text())["logical_count"], dtype=np.float64)
        counts = counts.reshape(-1, *counts.shape[-2:]).sum(axis=0)
        windows.append(counts[counts.sum(axis=1) > 0])
    return np.stack(windows)


def shuffled_routes(folder: Path, *, tokens: int = 256, seed: int = 0) -> FloatArray:
    """DeepSeek-V2-Lite on law and intent texts, their sequences shuffled together: ``[T, 26, 64]``.

    Windows of ``tokens`` tokens; an incomplete last one is left out.
    """
    sequences = []
    for name in ("intent", "law"):
        with np.load(folder / "deepseek-v2-lite" / f"{name}_routes.npz") as file:
            ends = np.cumsum(file["seq_lens"])
            sequences += np.split(file["topk"], ends[:-1], axis=1)
    order = np.random.default_rng(seed).permutation(len(sequences))
    return cut(np.concatenate([sequences[i] for i in order], axis=1), tokens)


def shifted_routes(folder: Path, *domains: str, tokens: int = 256) -> tuple[FloatArray, tuple[int, ...]]:
    """DeepSeek-V2-Lite on one domain after the other ("law", "intent"): ``[T, 26, 64]``, and where each begins.

    Windows of ``tokens`` tokens. Each domain is cut alone, an incomplete last window left out, so that no window
    mixes two.
    """
    parts = []
    for name in domains:
        with np.load(folder / "deepseek-v2-lite" / f"{name}_routes.npz") as file:
            parts.append(cut(file["topk"], tokens))
    ends = np.cumsum([len(part) for part in parts])
    return np.concatenate(parts), (0, *(int(end) for end in ends[:-1]))


def cut(topk: npt.NDArray[Any], tokens: int) -> FloatArray:
    """Routes ``[L, tokens of all sequences, K]`` to windows of ``tokens`` tokens: ``[T, L, 64]``."""
    topk = topk.astype(np.int64)
    num_layers, num_tokens, _ = topk.shape
    counts = np.zeros((num_tokens // tokens, num_layers, 64))
    for window, part in enumerate(counts):
        for layer, row in enumerate(topk[:, window * tokens : (window + 1) * tokens]):
            part[layer] = np.bincount(row.ravel(), minlength=64)
    return counts


def score(loads: FloatArray, phy2log: npt.NDArray[np.int64], num_ranks: int) -> FloatArray:
    """Imbalance of windows ``[W, L, E]`` under a placement: ``[W, L]``."""
    return imbalance(rank_loads(loads, Placement(phy2log, num_ranks, loads.shape[2])))


def place(policy: Policy, loads: npt.ArrayLike, topology: Topology, **options: Any) -> npt.NDArray[np.int64]:
    """What a policy makes of loads ``[W, L, E]``; ``options`` are those of `Problem.of`."""
    return policy.place(Problem.of(loads, topology, **options))


@dataclass(frozen=True)
class Replayed:
    """A held-out replay: the mean imbalance of the next window, and the mean share of slots fetched."""

    imbalance: float
    moved: float


def replay(counts: FloatArray, topology: Topology, plan: Planner, history: int = 16) -> Replayed:
    """Re-plan before every window from the last ``history`` ones; the first plan's fetches do not count."""
    current = None
    scores, moved = [], []
    for window in range(history, len(counts)):
        phy2log = plan(counts[window - history : window], topology, current)
        placement = Placement(phy2log, topology.num_ranks, counts.shape[2])
        if current is not None:
            moved.append(placement.moves_from(current).sum() / phy2log.size)
        scores.append(score(counts[window : window + 1], phy2log, topology.num_ranks).mean())
        current = placement
    return Replayed(float(np.mean(scores)), float(np.mean(moved)))


def each_layer(loads: FloatArray) -> Iterator[FloatArray]:
    """Windows ``[W, L, E]`` layer by layer, each ``[W, 1, E]``."""
    for layer in range(loads.shape[1]):
        yield loads[:, layer : layer + 1]
