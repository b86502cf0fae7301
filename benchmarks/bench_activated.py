"""Activated experts on the busiest rank, by what is planned from and how batches are dispatched: docs/decode.md.

    python benchmarks/bench_activated.py [--traces ../shared/traces] [--batches N]

DeepSeek-V2-Lite: recorded routes of law and intent texts in decode batches; each batch has one token of each of B
sequences, and a sequence that ends makes room for the next (the routing is recorded, the schedule is ours). The first
half is planned from, in eight windows, up to N batches of the second half are scored.

DeepSeek-R1 and Qwen3-30B-A3B are statistics without batches: here batches are drawn, each token's experts without
replacement by the recorded shares, tokens independent of each other. That is a stand-in: real tokens of a batch are
more alike, and hit fewer experts. R1 is planned from prefill_in512, prefill_in1024 and decode_in1000out1000, and
scored on decode_in2000out100; Qwen3 is planned from and scored on draws of the same shares.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from equipoise import LoadTrace, Placement, Topology, imbalance, plan, rank_loads, split_activated
from equipoise.metrics import activated_experts
from equipoise.planning.activated import activate
from equipoise.planning.sweeps import forests
from equipoise.plans.activated import Activated, count_activated
from real_loads import SEEN, UNSEEN, deepseek

ROOT = Path(__file__).resolve().parents[1]
SIZES = (32, 64, 128, 256)
HISTORY = 8
TOGETHER = 4
IntArray = npt.NDArray[np.int64]
Case = tuple[str, int, Topology, IntArray, IntArray]
"""stream, tokens of a batch, ranks, batches ``[B, L, E]`` planned from and scored on"""


def sequences(traces: Path) -> list[npt.NDArray[Any]]:
    """Routes ``[L, tokens, k]`` of each recorded text."""
    found = []
    for name in ("law", "intent"):
        with np.load(traces / "deepseek-v2-lite" / f"{name}_routes.npz") as file:
            found += np.split(file["topk"], np.cumsum(file["seq_lens"])[:-1], axis=1)
    return found


def decoded(texts: list[npt.NDArray[Any]], size: int, seed: int = 0) -> IntArray:
    """Batches ``[B, L, 64]`` with one token of each of ``size`` texts; one that ends is followed by another."""
    rng = np.random.default_rng(seed)
    order = [texts[i] for i in rng.permutation(len(texts))]
    running: list[npt.NDArray[Any]] = []
    while len(running) < size:  # begun before the first batch, so that not all end together
        text = order.pop(0)
        order.append(text)
        running.append(text[:, int(rng.integers(text.shape[1])) :])
    batches = []
    for _ in range(sum(text.shape[1] for text in texts) // size):
        topk = np.stack([text[:, 0] for text in running], axis=1).astype(np.int64)
        batches.append(np.stack([np.bincount(row.ravel(), minlength=64) for row in topk]))
        for i, text in enumerate(running):
            running[i] = text[:, 1:]
            if not running[i].size:
                running[i] = order.pop(0)
                order.append(running[i])
    return np.stack(batches)


def drawn(loads: npt.NDArray[np.float64], size: int, top_k: int, number: int, seed: int) -> IntArray:
    """Batches ``[B, L, E]`` of ``size`` tokens whose ``top_k`` experts are drawn by loads ``[L, E]``.

    The largest of ``log(share) + Gumbel noise`` are a draw without replacement (Kool et al., ICML 2019).
    """
    rng = np.random.default_rng(seed)
    with np.errstate(divide="ignore"):
        logits = np.log(loads / loads.sum(axis=1, keepdims=True))
    num_layers, num_experts = loads.shape
    found = np.zeros((number, num_layers, num_experts), np.int64)
    for batch in found:
        noisy = logits[:, None] + rng.gumbel(size=(num_layers, size, num_experts))
        topk = np.argpartition(-noisy, top_k, axis=2)[..., :top_k]
        batch[:] = [np.bincount(row.ravel(), minlength=num_experts) for row in topk]
    return found


def cases(traces: Path, most: int) -> Iterator[Case]:
    """Streams in batches of each size."""
    texts = sequences(traces)
    for size in SIZES:
        batches = decoded(texts, size)
        half = len(batches) // 2
        for topology in (Topology(8, 9), Topology(16, 5), Topology(32, 3)):
            yield "V2-Lite", size, topology, batches[:half], some(batches[half:], most)
    seen, later = deepseek(traces, *SEEN), deepseek(traces, UNSEEN[1])[0]
    for size in SIZES:
        before = [drawn(loads, size, 8, 16, number) for number, loads in enumerate(seen)]
        after = drawn(later, size, 8, 16, 99)
        for topology in (Topology(32, 9), Topology(64, 5), Topology(128, 3)):
            yield "R1, drawn", size, topology, np.concatenate(before), after
    with np.load(traces / "qwen3-30b-a3b" / "decode_counts.npz") as file:
        shares = file["counts"].reshape(-1, *file["counts"].shape[-2:]).sum(axis=0).astype(np.float64)
    for size in SIZES:
        before, after = (drawn(shares, size, 8, most, seed) for seed, most in ((0, 48), (1, 16)))
        yield "Qwen3, drawn", size, Topology(16, 9), before, after


def some(batches: IntArray, most: int) -> IntArray:
    """At most so many, evenly over the time."""
    return batches[np.unique(np.linspace(0, len(batches) - 1, min(most, len(batches))).astype(int))]


def from_hits(seen: IntArray, topology: Topology, together: int = 1) -> Placement:
    """`robust`'s plan from the experts that batches hit, so many of them taken for one."""
    batches = LoadTrace(LoadTrace(seen).regroup(together).counts)
    return plan(batches.hits().regroup(max(1, len(batches) // HISTORY)), topology).placement


def placements(seen: IntArray, topology: Topology) -> tuple[Placement, Placement]:
    """`robust`'s plans from tokens and from hits of the same batches."""
    tokens = LoadTrace(seen).regroup(max(1, len(seen) // HISTORY))
    return plan(tokens, topology).placement, from_hits(seen, topology)


def token_imbalance(batches: IntArray, placement: Placement, *, activated: bool) -> float:
    """Mean imbalance of the tokens of batches, split evenly or each hit expert at one replica."""
    found = []
    for counts in batches:
        shares = split_activated(counts, placement) if activated else None
        found.append(imbalance(rank_loads(counts, placement, shares)).mean())
    return float(np.mean(found))


def cells(found: Activated) -> str:
    return f"{found.even:.2f} / {found.batch:.2f} / {found.activated:.2f} / {found.optimum:.2f}"


def activated_table(traces: Path, most: int) -> None:
    """Plans from tokens and from hits, by dispatch."""
    ways = "even / batch / activated / optimum"
    print(
        "| stream | tokens a batch | ranks x slots | hit experts | hit over ranks | no spare slots, from hits | "
        f"from tokens: {ways} | from hits: {ways} | from hits of {TOGETHER} batches at once: activated | tokens' "
        "imbalance: even, from tokens | activated, from hits |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, size, topology, seen, later in cases(traces, most):
        ranks = topology.num_ranks
        bare = from_hits(seen, Topology(ranks, seen.shape[2] // ranks))
        tokens, hits = placements(seen, topology)
        one, other = count_activated(later, tokens), count_activated(later, hits)
        wide = count_activated(later, from_hits(seen, topology, TOGETHER))
        balances = (
            token_imbalance(later, tokens, activated=False),
            token_imbalance(later, hits, activated=True),
        )
        print(
            f"| {name} | {size} | {ranks} x {topology.slots_per_rank} | {one.hit:.1f} | {one.least:.2f} | "
            f"{count_activated(later, bare).even:.2f} | {cells(one)} | {cells(other)} | {wide.activated:.2f} | "
            f"{balances[0]:.2f} | {balances[1]:.2f} |",
            flush=True,
        )


def in_order(
    hit: npt.NDArray[np.bool_], placement: Placement, order: list[IntArray]
) -> npt.NDArray[np.bool_]:
    """Slots ``[L, R]`` if experts choose once, in the order given, and look at activated experts alone."""
    found = np.zeros(placement.phy2log.shape, np.bool_)
    for layer, row in enumerate(hit):
        load = np.zeros(placement.num_ranks, np.int64)
        for e in order[layer]:
            if row[e]:
                slots = placement.log2phy[layer, e, : placement.logcnt[layer, e]]
                slot = slots[load[slots // placement.slots_per_rank].argmin()]
                load[slot // placement.slots_per_rank] += 1
                found[layer, slot] = True
    return found


def orders(placement: Placement) -> Iterator[list[IntArray]]:
    """Orders in which experts may choose: by number, fewest replicas first, from leaves to roots."""
    layers, number = range(placement.num_layers), np.arange(placement.num_experts)
    yield [number for _ in layers]
    yield [np.lexsort((number, placement.logcnt[layer])) for layer in layers]
    forest = forests(placement.phy2log, placement.num_ranks, placement.num_experts)[0]
    inwards = []
    for row in forest:
        shared = row[row >= 0][::-1]
        inwards.append(np.concatenate([np.setdiff1d(number, shared), shared]))
    yield inwards


def order_table(traces: Path, most: int) -> None:
    """Excess over the optimum by order and sweeps, where a batch has 32 or 64 tokens."""
    print(
        "\n| tokens a batch | ranks x slots | planned from | optimum | by number | fewest replicas first | leaves to "
        "roots | and with what waits: 0 / 1 / 2 / 4 sweeps |\n|---|---|---|---|---|---|---|---|"
    )
    texts = sequences(traces)
    for size in (32, 64):
        batches = decoded(texts, size)
        seen, later = batches[: len(batches) // 2], some(batches[len(batches) // 2 :], min(most, 16))
        for topology in (Topology(8, 10), Topology(16, 5), Topology(16, 6), Topology(32, 3)):
            for source, made in zip(("tokens", "hits"), placements(seen, topology), strict=True):
                best, found = excesses(later > 0, made)
                *orders_, none, once, twice, more = (f"{100 * value:.1f} %" for value in found)
                shape = f"{topology.num_ranks} x {topology.slots_per_rank}"
                cells_ = " | ".join([*orders_, f"{none} / {once} / {twice} / {more}"])
                print(f"| {size} | {shape} | {source} | {best:.3f} | {cells_} |", flush=True)


def excesses(hit: npt.NDArray[np.bool_], made: Placement) -> tuple[float, list[float]]:
    """The optimum on the busiest rank, and by what part each order and number of sweeps exceeds it."""

    def busiest(slots: npt.NDArray[np.bool_]) -> float:
        return float(activated_experts(slots, made.num_ranks).max(axis=-1).mean())

    def chosen(sweeps: int) -> float:
        slots = activate(hit, made.phy2log, made.num_ranks, sweeps)
        serving = np.take_along_axis(
            slots, np.broadcast_to(made.phy2log, (len(hit), *made.phy2log.shape)), axis=2
        )
        return busiest(serving == np.arange(made.num_slots))

    best = chosen(-1)
    ways = [busiest(np.stack([in_order(one, made, order) for one in hit])) for order in orders(made)]
    ways += [chosen(sweeps) for sweeps in (0, 1, 2, 4)]
    return best, [way / best - 1.0 for way in ways]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "traces")
    parser.add_argument("--batches", type=int, default=64, help="batches to score of each stream, at most")
    options = parser.parse_args()
    activated_table(options.traces, options.batches)
    order_table(options.traces, options.batches)


if __name__ == "__main__":
    main()
