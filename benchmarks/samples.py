"""Small files of every format, as the engines write them, and strategies for traces and placements."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from equipoise import LoadTrace, PairCounts, Placement, TraceWriter
from equipoise.formats import save_placement, save_trace

LAYERS, EXPERTS, SLOTS, STEPS = 3, 8, 12, 4


def counts(seed: int = 0, steps: int = STEPS, layers: int = LAYERS, experts: int = EXPERTS) -> np.ndarray:
    """Counts ``[T, L, E]`` without a zero; every layer of a step has the same sum, a multiple of 2."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(200, np.full(experts, 1 / experts), size=(steps, layers)) * 2 + 2


def phy2log(seed: int = 0, layers: int = LAYERS) -> np.ndarray:
    """Slots of 4 ranks x 3 without twins: every expert once, the first four again."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(layers):
        first, second = rng.permutation(EXPERTS).reshape(4, 2), rng.permutation(EXPERTS)
        extra = [next(e for e in np.roll(second, -rank) if e not in first[rank]) for rank in range(4)]
        rows.append(np.concatenate([first, np.array(extra)[:, None]], axis=1).ravel())
    return np.array(rows)


def placement() -> Placement:
    return Placement(phy2log(), 4, EXPERTS, layers=(1, 2, 4), num_model_layers=6)


def trace() -> LoadTrace:
    return LoadTrace(counts(), layers=(1, 2, 4), num_model_layers=6, phases=("prefill",) * STEPS, top_k=2)


def pairs() -> PairCounts:
    """Pair counts of the same layers."""
    table = np.random.default_rng(1).integers(0, 50, (LAYERS, EXPERTS, EXPERTS))
    table = np.minimum(table, table.transpose(0, 2, 1)) + 50 * np.eye(EXPERTS, dtype=np.int64)
    return PairCounts(table, 2, layers=(1, 2, 4))


def with_dense(table: np.ndarray) -> np.ndarray:
    """``[T, 3, E]`` as a model of 6 layers records it: rows 0, 3 and 5 are dense."""
    full = np.zeros((len(table), 6, table.shape[2]), dtype=table.dtype)
    full[:, [1, 2, 4]] = table
    return full


def stat_json(folder: Path) -> Path:
    path = folder / "stat.json"
    path.write_text(json.dumps({"rank": 0, "logical_count": with_dense(counts()).tolist()}))
    return path


def stat_pt(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    path = folder / "expert_distribution_recorder_1730.5.pt"
    content = {
        "rank": 0,
        "logical_count": torch.from_numpy(with_dense(counts()).astype(np.int32)),
        "average_utilization_rate_over_window": None,
    }
    torch.save(content, path)
    return path


def record(rank: int, number: int, physical: np.ndarray, **more: Any) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    return {
        "forward_pass_id": number,
        "rank": rank,
        "gatherer_key": "primary",
        "global_physical_count": torch.from_numpy(physical.astype(np.int32)),
        **more,
    }


def save_records(folder: Path, rank: int, records: list[dict[str, Any]], table: np.ndarray) -> Path:
    torch = pytest.importorskip("torch")
    path = folder / f"expert_distribution_recorder_1730.{rank}5_{rank}.pt"
    torch.save({"records": records, "last_physical_to_logical_map": torch.from_numpy(table)}, path)
    return path


def records(folder: Path, ranks: int = 2) -> Path:
    where = folder / "records"
    where.mkdir(exist_ok=True)
    table = phy2log(layers=6)
    for rank in range(ranks):
        physical = np.random.default_rng(rank).integers(1, 9, (STEPS, 6, SLOTS))
        physical[:, [0, 3, 5]] = 0
        save_records(where, rank, [record(rank, 10 + s, physical[s]) for s in range(STEPS)], table)
    return where


def trtllm_statistics(folder: Path, ranks: int = 2) -> Path:
    from safetensors.numpy import save_file

    where = folder / "statistics"
    where.mkdir(exist_ok=True)
    (where / "meta_info.json").write_text(json.dumps({"num_experts": EXPERTS, "num_experts_per_token": 2}))
    for rank in range(ranks):
        table = counts(rank)
        keys = {f"{100 + s}_{layer}": table[s, i] for s in range(STEPS) for i, layer in enumerate((1, 2, 4))}
        save_file(
            {key: np.ascontiguousarray(row) for key, row in keys.items()}, where / f"rank{rank}.safetensors"
        )
    return where


def adrs(folder: Path) -> Path:
    path = folder / "adrs.json"
    path.write_text(json.dumps({"load_history": [{"logical_expert_load": t.tolist()} for t in counts()]}))
    return path


def vllm_stats(folder: Path) -> Path:
    path = folder / "stats.jsonl"
    lines: list[dict[str, Any]] = [{"record_type": "bench_run_start", "version": 1}]
    for step in range(STEPS):
        physical = np.random.default_rng(step).integers(1, 9, (LAYERS, SLOTS))
        lines.append(
            {
                "record_type": "eplb_load_stats",
                "version": 1,
                "step": 50 * step,
                "num_ranks": 4,
                "expert_load": physical.tolist(),
                "p2l_map": phy2log(step).tolist(),
            }
        )
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def routes(folder: Path) -> Path:
    path = folder / "routes.npz"
    topk = np.random.default_rng(0).integers(0, EXPERTS, (LAYERS, 100, 2), dtype=np.uint8)
    np.savez(path, topk=topk, seq_lens=np.array([60, 40]))
    return path


def npy(folder: Path) -> Path:
    path = folder / "counts.npy"
    np.save(path, counts())
    return path


def npz(folder: Path) -> Path:
    path = folder / "counts.npz"
    np.savez_compressed(path, counts=counts(), layers=np.array([1, 2, 4]), pairs=pairs().counts)
    return path


def csv(folder: Path) -> Path:
    path = folder / "counts.csv"
    windows = ["\n".join(",".join(map(str, row)) for row in window) for window in counts().tolist()]
    path.write_text("\n\n".join(windows) + "\n")
    return path


def own_trace(folder: Path) -> Path:
    path = folder / "trace.safetensors"
    save_trace(trace(), path, pairs=pairs())
    return path


def segments(folder: Path) -> Path:
    """A recording of two segments, as `equipoise.TraceWriter` leaves it."""
    path, whole = folder / "recording", trace()
    about = {"layers": whole.layers, "num_model_layers": 6, "top_k": 2}
    with TraceWriter(path, LAYERS, EXPERTS, segment_windows=3, **about) as writer:
        for window in whole.counts:
            writer.add(window, phase="prefill", pairs=pairs().counts)
    next(path.glob(".equipoise-*")).unlink()  # the lock, which holds nothing to damage
    return path


LOADS: dict[str, Callable[[Path], Path]] = {
    "stat_json": stat_json,
    "stat_pt": stat_pt,
    "records": records,
    "trtllm": trtllm_statistics,
    "adrs": adrs,
    "vllm": vllm_stats,
    "routes": routes,
    "npy": npy,
    "npz": npz,
    "csv": csv,
    "own": own_trace,
    "segments": segments,
}

FILES = {
    "sglang": "placement.json",
    "sglang.pt": "placement.pt",
    "trtllm": "moe_load_balancer.yaml",
    "vllm-ascend": "ascend.json",
    "vllm": "mapping.jsonl",
    "equipoise": "placement.safetensors",
}


def write_placement(folder: Path, key: str, what: Placement | None = None) -> Path:
    if key == "sglang.pt":
        pytest.importorskip("torch")
    path = folder / FILES[key]
    save_placement(what or placement(), path, key.split(".")[0])
    return path


@st.composite
def traces(draw: st.DrawFn) -> LoadTrace:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6)))
    whole = draw(st.booleans())
    if whole:
        values = st.integers(0, 2**55)
    else:
        values = st.floats(0, 2.0**55, allow_nan=False, allow_subnormal=True)
    flat = draw(st.lists(values, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    layers = sorted(draw(st.sets(st.integers(0, 99), min_size=shape[1], max_size=shape[1])))
    first = np.cumsum(draw(st.lists(st.integers(1, 10), min_size=shape[0], max_size=shape[0])))
    tags = st.sampled_from(["prefill", "decode", "mixed", "ünïcode"])
    return LoadTrace(
        np.array(flat, dtype=np.int64 if whole else np.float64).reshape(shape),
        layers=tuple(layers),
        num_model_layers=draw(st.none() | st.integers(layers[-1] + 1, 200)),
        steps=np.stack([first, first + draw(st.integers(1, 5))], axis=1),
        phases=draw(st.none() | st.lists(tags, min_size=shape[0], max_size=shape[0]).map(tuple)),
        top_k=draw(st.none() | st.integers(1, 16)),
        source=draw(st.text(max_size=20)),
    )


@st.composite
def placements(draw: st.DrawFn, twins: bool = True) -> Placement:
    ranks = draw(st.integers(1, 5))
    per_rank = draw(st.integers(1, 5))
    slots = ranks * per_rank
    # Without twins an expert can have one replica a rank: at least as many experts as slots of a rank.
    experts = draw(st.integers(1 if twins else per_rank, slots))
    num_layers = draw(st.integers(1, 4))
    layers = sorted(draw(st.sets(st.integers(0, 30), min_size=num_layers, max_size=num_layers)))
    rows = []
    for _ in range(num_layers):
        names = np.array(draw(st.permutations(range(experts))))
        if twins:
            extra = draw(
                st.lists(st.integers(0, experts - 1), min_size=slots - experts, max_size=slots - experts)
            )
            rows.append(draw(st.permutations([*names.tolist(), *extra])))
        else:  # any experts in a row of per_rank are different ones
            rows.append(names[np.arange(slots) % experts].tolist())
    return Placement(
        np.array(rows),
        ranks,
        experts,
        layers=tuple(layers),
        num_model_layers=layers[-1] + 1 + draw(st.integers(0, 3)),
    )
