"""Draws the figures of README.md and of the pages in docs from synthetic loads: ``make figures``."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter

import equipoise as eq
from equipoise.planning.orders import candidate_order, candidate_state, lpt_order
from equipoise.planning.pack import pack_greedy
from equipoise.planning.replicate import item_weights, replicate_layer
from equipoise.planning.scale import to_integers
from equipoise.policy.ensemble import Ensemble
from equipoise.replay import replay

IMAGES = Path(__file__).resolve().parent / "images"
TOPOLOGY = eq.Topology(num_ranks=32, slots_per_rank=9)
INK, GREY, BLUE, ORANGE, GREEN, RED = "#222222", "#9a9a9a", "#3b6fb6", "#d9822b", "#3a9a6b", "#c23b3b"
plt.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "svg.hashsalt": "equipoise",
    }
)


def rank_loads() -> None:
    """Heat maps of rank loads: before, planned, and on a window that came later."""
    trace = eq.synthetic_trace(num_windows=5)
    seen, later = trace[:-1], trace[-1:].total()
    plan = eq.plan(seen, TOPOLOGY)
    start = eq.contiguous_placement(trace.num_layers, trace.num_experts, 32, TOPOLOGY.num_slots)
    panels = {
        "contiguous": eq.rank_loads(seen.total(), start),
        f"{plan.report.policy}, on the loads it was planned from": eq.rank_loads(
            seen.total(), plan.placement
        ),
        f"{plan.report.policy}, on the window after (held-out)": eq.rank_loads(later, plan.placement),
    }
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 4.6), sharey=True, layout="constrained")
    for axis, (title, loads) in zip(axes, panels.items(), strict=True):
        relative = loads / loads.mean(axis=1, keepdims=True)
        image = axis.imshow(relative, cmap="RdBu_r", vmin=0, vmax=2, aspect="auto", interpolation="nearest")
        mean = eq.balance(loads).mean_imbalance
        axis.set_title(f"{title}\nmean imbalance {mean:.3f}", fontsize=9)
        axis.set_xlabel("rank")
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel("MoE layer")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, extend="max", ticks=[0, 0.5, 1, 1.5, 2])
    bar.set_label("rank load / mean of the layer")
    bar.outline.set_visible(False)
    figure.suptitle("Synthetic loads, 58 layers x 256 experts on 32 ranks x 9 slots", fontsize=10)
    figure.savefig(IMAGES / "rank_loads.png", dpi=130)
    plt.close(figure)


def ensemble_stages() -> None:
    """One layer through the ensemble: loads, replicas, 64 candidates, refinement."""
    trace = eq.synthetic_trace()
    layer = 40
    loads = trace.counts[0, layer].astype(np.float64)
    integers = to_integers(loads)
    experts, slots, ranks = loads.size, TOPOLOGY.num_slots, TOPOLOGY.num_ranks
    logcnt, item_expert = np.empty(experts, np.int64), np.empty(slots, np.int64)
    weight, order, lpt, rank_of = (np.empty(slots, np.int64) for _ in range(4))
    room = np.empty(ranks, np.int64)
    replicate_layer(integers, slots, logcnt, item_expert)
    item_weights(integers, logcnt, item_expert, weight)
    lpt_order(weight, lpt)
    mean = integers.sum() / ranks
    kinds = Ensemble().kinds
    found = np.empty(kinds.size)
    for candidate, kind in enumerate(kinds):
        state = np.uint64(candidate_state(0, 0, candidate))
        candidate_order(kind, state, weight, lpt, 0.2, order)
        found[candidate] = pack_greedy(order, weight, ranks, np.int64(1) << 50, rank_of, room) / mean
    # The layer alone is layer 0 of its trace, so these are the same candidates.
    alone = eq.LoadTrace(loads[None])
    swaps = np.arange(21)
    refined = [
        eq.plan(alone, TOPOLOGY, Ensemble(max_swaps=int(n))).report.after.mean_imbalance - 1 for n in swaps
    ]

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(10.5, 3.4), layout="constrained", width_ratios=(1.1, 1.2, 0.9)
    )
    per_slot = loads.sum() / slots
    left.step(np.arange(experts), np.sort(loads)[::-1] / per_slot, color=GREY, label="experts")
    left.step(
        np.arange(slots), np.sort(weight)[::-1] / (integers.sum() / slots), color=BLUE, label="replicas"
    )
    left.set(xlabel="heaviest first", ylabel="load / mean load of a slot", title="1  replicate")
    left.legend(frameon=False)

    names = ("LPT", "interleaved", "random", "noisy LPT")
    for kind, (name, colour) in enumerate(zip(names, (INK, RED, GREY, BLUE), strict=True)):
        at = np.flatnonzero(kinds == kind)
        middle.scatter(at, found[at] - 1, s=16, color=colour, label=name)
    best = int(found.argmin())
    middle.scatter([best], [found[best] - 1], s=90, facecolors="none", edgecolors=GREEN, label="selected")
    middle.set(yscale="log", xlabel="candidate", ylabel="imbalance - 1", title="2  order, pack, select")
    middle.legend(frameon=False, fontsize=8, loc="upper right")

    right.plot(swaps, refined, color=GREEN, marker="o", markersize=3)
    right.set(yscale="log", xlabel="swaps allowed", ylabel="imbalance - 1", title="3  refine")
    figure.suptitle(f"One layer of synthetic loads ({experts} experts, 32 ranks x 9 slots)", fontsize=10)
    figure.savefig(IMAGES / "ensemble.png", dpi=130)
    plt.close(figure)


def held_out_replay() -> None:
    """Policies followed through a drifting trace: imbalance on later traffic, and the moves that it takes."""
    trace = eq.synthetic_trace(58, 256, 1200, preset="deepseek-r1-chat").regroup(8)
    result = replay(trace, TOPOLOGY, ["greedy", "robust"], interval=8, history=8, max_moves=0.05)
    colours = {"do-nothing": GREY, "greedy": BLUE, "robust": ORANGE, "oracle": GREEN}
    names = {"robust": "robust, at most 5 % of slots a time", "greedy": "greedy (DeepSeek EPLB)"}
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.5, 3.8), sharey=True, layout="constrained", width_ratios=(1.7, 1)
    )
    for series in result.series:
        if (label := series.label) not in colours:
            continue
        colour, summary = colours[label], series.summary
        steps = (series.windows + 1) * result.settings.steps_per_window
        left.plot(steps, series.mean_imbalance, color=colour, linewidth=1.4, label=names.get(label, label))
        right.plot(summary.moves, summary.mean_imbalance, "o", color=colour, markersize=8, clip_on=False)
        text = f"{label} {summary.mean_imbalance:.3f}"
        if series.replans and label != "oracle":
            text += f",\nmoving {summary.moves_share:.0%} of slots a time"
        far, where = summary.moves > 100_000, {"greedy": 22, "oracle": 5}.get(label, 0)
        right.annotate(
            text,
            (summary.moves, summary.mean_imbalance),
            (-10 if far else 10, where),
            textcoords="offset points",
            ha="right" if far else "left",
            va="bottom" if label == "greedy" else "center",
            color=colour,
            fontsize=8.5,
        )
    left.set(
        xlabel="decoding step",
        ylabel="busiest rank / mean",
        title="Imbalance on the traffic that came after each plan",
    )
    left.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.68))
    right.set(xlabel="experts fetched in the whole replay", title="Mean imbalance against moves")
    right.xaxis.set_major_formatter(EngFormatter(sep=""))
    right.set_xlim(left=0)
    right.set_ylim(bottom=1.0)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    figure.suptitle(
        "Held-out replay of synthetic loads: 58 layers x 256 experts, 32 ranks x 9 slots, "
        "re-planned every 64 steps",
        fontsize=10,
    )
    figure.savefig(IMAGES / "replay.png", dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    rank_loads()
    ensemble_stages()
    held_out_replay()
