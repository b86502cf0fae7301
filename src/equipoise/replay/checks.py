"""What the arguments of a replay may be: one line says what was found and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

from ..control.cost import CostModel
from ..control.gate import check_split_s
from ..errors import ArgumentError
from ..placement import SPLITS
from ..routes import PairCounts, Routes
from ..trace import LoadTrace


def check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ArgumentError(f"{name} must be a positive number of windows, got {value!r}")


def shorter(windows: int) -> str:
    """What to do where a history leaves none of so many windows to score."""
    if windows == 1:
        return "use a longer trace or shorter windows"
    most = windows // 2  # half to plan from, half to score; up to all but one would do
    return f"use history={most}, a longer trace or shorter windows"


def check_traffic(traffic: float | None, cost: CostModel | None, top_k: int | None) -> None:
    if traffic is None:
        return
    if isinstance(traffic, bool) or not isinstance(traffic, Real) or not 0 < float(traffic) < math.inf:
        raise ArgumentError(f"traffic must be a positive number of tokens a second, got {traffic!r}")
    if cost is None or top_k is None:
        raise ArgumentError(
            "traffic needs a cost model to set gains against moves; name the model (--model, or cost=)"
        )


def check_unit(trace: LoadTrace, cost: CostModel | None, split: str) -> None:
    """Times and splits by load are of tokens."""
    if trace.unit == "tokens":
        return
    if cost is not None:
        raise ArgumentError("a cost model is of tokens, and these loads count batches: leave cost out")
    if split != "even":
        raise ArgumentError("split='batch' splits tokens, and these loads count batches: leave split out")


def check_split(split: str, split_s: float | None, cost: CostModel | None) -> None:
    if split not in SPLITS:
        raise ArgumentError(f"split must be {' or '.join(SPLITS)}, got {split!r}")
    check_split_s(split_s)
    if split_s is not None and (split == "even" or cost is None):
        raise ArgumentError(
            "split_s needs split='batch' and a cost model to weigh it; name the model (--model, or cost=)"
        )


def check_routes(routes: Sequence[Routes] | PairCounts | None, trace: LoadTrace) -> None:
    """Routes must be of the trace's windows, layers and experts, and of as many tokens as these count."""
    if routes is None:
        return
    if isinstance(routes, PairCounts):
        if (routes.num_layers, routes.num_experts) != trace.counts.shape[1:]:
            raise ArgumentError(
                f"routes are {routes!r}, the trace has {trace.num_layers} x {trace.num_experts}"
            )
        return
    if len(routes) != trace.num_windows:
        raise ArgumentError(f"routes are of {len(routes)} windows, the trace has {trace.num_windows}")
    for window, (found, counts) in enumerate(zip(routes, trace.counts, strict=True)):
        shape = (found.num_layers, found.num_experts)
        other = trace.unit == "tokens" and (found.topk >= 0).sum() != counts.sum()
        if shape != counts.shape or other:
            raise ArgumentError(
                f"routes of window {window} are of {shape[0]} layers x {shape[1]} experts and "
                f"{found.num_tokens} tokens: not those that its loads were counted from"
            )


def check_lists(**lists: Sequence[object]) -> None:
    for name, given in lists.items():
        if isinstance(given, str) or not len(given):
            raise ArgumentError(f"{name} must be a sequence of at least one, got {given!r}")
        twice = [item for index, item in enumerate(given) if item in given[:index]]
        if twice:
            raise ArgumentError(f"{name} names {twice[0]!r} twice; each may be named once")
