"""What a user wants to know first about recorded loads, as numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..metrics import balance, imbalance, rank_loads
from ..placement import contiguous_placement
from ..trace import LoadTrace

RANKS = (8, 16, 32, 64)


@dataclass(frozen=True)
class LayerSummary:
    """One MoE layer; loads are those of all windows together."""

    layer: int
    """the model's number"""
    hottest_expert: int
    hottest_ratio: float
    """load of the hottest expert over the mean"""
    hottest_tenth: float
    """share of the tokens that the hottest tenth of the experts takes"""
    imbalance: tuple[float, ...]
    """``max_p g / mean_p g`` of contiguous placement for each number of ranks"""


@dataclass(frozen=True)
class Similarity:
    """How alike two windows are: mean over layers of the total variation of their shares, 0 to 1.

    ``noise`` is what two samples of that size from one and the same distribution differ by on average
    (independent tokens; ``E|N(0, s)| = s sqrt(2 / pi)``): a ``distance`` near it means no drift is visible.
    """

    distance: float
    noise: float


@dataclass(frozen=True)
class LoadSummary:
    """Size, skew, balance and drift of a trace."""

    windows: int
    layers: int
    experts: int
    tokens: float | None
    """tokens through a layer, over all windows; loads divided by top-k where that is known, else loads; None for
    counts of batches, which do not tell"""
    top_k: int | None
    unit: str
    """"tokens", or "batches" in which experts were hit, see `LoadTrace`"""
    activated: float | None
    """of counts of batches, the experts of a layer that a batch hits, mean over layers and batches"""
    ranks: tuple[int, ...]
    slots: tuple[int, ...]
    """slots a layer of contiguous placement for each number of ranks; 0 for more ranks than experts"""
    mean_imbalance: tuple[float, ...]
    """of contiguous placement, mean over windows and layers, for each number of ranks"""
    worst_layer: tuple[float, ...]
    """mean over windows of the largest imbalance of a layer"""
    total_imbalance: tuple[float, ...]
    """mean over layers, of the loads of all windows together"""
    consecutive: Similarity | None
    """windows with the next one, on average"""
    halves: Similarity | None
    """the first half of the windows with the second"""
    per_layer: tuple[LayerSummary, ...]

    def worst_layers(self, count: int) -> list[LayerSummary]:
        """The layers with the largest imbalance at the most ranks that fit, worst first."""
        column = max((i for i, slots in enumerate(self.slots) if slots), default=None)
        if column is None:
            return sorted(self.per_layer, key=lambda layer: -layer.hottest_ratio)[:count]
        return sorted(self.per_layer, key=lambda layer: -layer.imbalance[column])[:count]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; what does not apply is null."""
        content: dict[str, Any] = asdict(self)
        for name in ("mean_imbalance", "worst_layer", "total_imbalance"):
            content[name] = [None if math.isnan(value) else value for value in content[name]]
        for layer in content["per_layer"]:
            layer["imbalance"] = [None if math.isnan(value) else value for value in layer["imbalance"]]
        return content


def summarise(trace: LoadTrace, ranks: tuple[int, ...] = RANKS, top_k: int | None = None) -> LoadSummary:
    """Everything that ``equipoise inspect`` prints about a trace.

    Parameters
    ----------
    ranks : numbers of EP ranks to judge contiguous placement at
    top_k : experts per token, where the trace does not know
    """
    total = trace.total().astype(np.float64)
    known = trace.top_k or top_k
    slots: list[int] = []
    mean: list[float] = []
    worst: list[float] = []
    summed: list[float] = []
    columns: list[npt.NDArray[np.float64]] = []
    for number in ranks:
        needed = math.ceil(trace.num_experts / number) * number if number <= trace.num_experts else 0
        slots.append(needed)
        if not needed:
            for values in (mean, worst, summed):
                values.append(math.nan)
            columns.append(np.full(trace.num_layers, math.nan))
            continue
        placement = contiguous_placement(trace.num_layers, trace.num_experts, number, needed)
        measured = balance(_rank_loads(trace, placement))
        mean.append(measured.mean_imbalance)
        worst.append(measured.worst_layer)
        columns.append(imbalance(rank_loads(total, placement)))
        summed.append(float(columns[-1].mean()))
    middle = len(trace) // 2
    return LoadSummary(
        windows=trace.num_windows,
        layers=trace.num_layers,
        experts=trace.num_experts,
        tokens=float(total.sum() / trace.num_layers / (known or 1)) if trace.batches is None else None,
        top_k=known,
        unit=trace.unit,
        activated=None
        if trace.batches is None
        else float(total.sum() / trace.num_layers / trace.batches.sum()),
        ranks=tuple(ranks),
        slots=tuple(slots),
        mean_imbalance=tuple(mean),
        worst_layer=tuple(worst),
        total_imbalance=tuple(summed),
        consecutive=_consecutive(trace),
        halves=_alike(trace[:middle], trace[middle:]) if middle else None,
        per_layer=_layers(trace, total, columns),
    )


def phase_counts(trace: LoadTrace) -> dict[str, int] | None:
    """Windows of each phase; None where the trace does not tell."""
    if trace.phases is None:
        return None
    return {tag: trace.phases.count(tag) for tag in sorted(set(trace.phases))}


def _rank_loads(trace: LoadTrace, placement: Any) -> npt.NDArray[np.float64]:
    """Rank loads ``[T, L, P]``, some windows at a time: the matrix product wants its loads as floats."""
    parts = [rank_loads(trace.counts[first : first + 64], placement) for first in range(0, len(trace), 64)]
    return np.concatenate(parts)


def _layers(
    trace: LoadTrace, total: npt.NDArray[np.float64], columns: list[npt.NDArray[np.float64]]
) -> tuple[LayerSummary, ...]:
    tenth = math.ceil(trace.num_experts / 10)
    hottest = total.argmax(axis=1)
    ratio = imbalance(total)
    top = np.sort(total, axis=1)[:, -tenth:].sum(axis=1) / np.maximum(total.sum(axis=1), 1e-300)
    return tuple(
        LayerSummary(
            layer=layer,
            hottest_expert=int(hottest[row]),
            hottest_ratio=float(ratio[row]),
            hottest_tenth=float(top[row]),
            imbalance=tuple(float(column[row]) for column in columns),
        )
        for row, layer in enumerate(trace.layers)
    )


def similarity(
    first: npt.ArrayLike, second: npt.ArrayLike, batches: tuple[int, int] | None = None
) -> Similarity | None:
    """How alike two windows of loads ``[L, E]`` are; None if no layer has load in both.

    ``batches`` are those of either window, for counts of batches: each expert is hit in a batch or not.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    size_one, size_other = one.sum(axis=1, keepdims=True), other.sum(axis=1, keepdims=True)
    both = ((size_one > 0) & (size_other > 0))[:, 0]
    if not both.any():
        return None
    one, other, size_one, size_other = one[both], other[both], size_one[both], size_other[both]
    distance = np.abs(one / size_one - other / size_other).sum(axis=1) / 2
    share = (one + other) / (size_one + size_other)
    # Loads may be averages below one token, about which this noise says nothing: it only has to stay finite.
    if batches is None:
        tokens = 1 / np.maximum(size_one, 1) + 1 / np.maximum(size_other, 1)
        deviation = np.sqrt(share * (1 - share) * tokens)
    else:
        number_one, number_other = batches
        rate = (one + other) / (number_one + number_other)
        scale = number_one / size_one**2 + number_other / size_other**2
        deviation = np.sqrt(rate * (1 - rate) * scale)
    noise = math.sqrt(2 / math.pi) * deviation.sum(axis=1) / 2
    return Similarity(float(distance.mean()), float(noise.mean()))


def _alike(first: LoadTrace, second: LoadTrace) -> Similarity | None:
    """How alike two parts of a recording are, windows summed."""
    if first.batches is None or second.batches is None:
        return similarity(first.total(), second.total())
    return similarity(first.total(), second.total(), (int(first.batches.sum()), int(second.batches.sum())))


def _consecutive(trace: LoadTrace) -> Similarity | None:
    batches = None if trace.batches is None else trace.batches.tolist()
    pairs = [
        similarity(
            trace.counts[w], trace.counts[w + 1], None if batches is None else (batches[w], batches[w + 1])
        )
        for w in range(len(trace) - 1)
    ]
    found = [pair for pair in pairs if pair is not None]
    if not found:
        return None
    return Similarity(
        float(np.mean([pair.distance for pair in found])), float(np.mean([pair.noise for pair in found]))
    )
