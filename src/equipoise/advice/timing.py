"""What to plan from, with which policy, and when to plan anew: tried on one topology, one setting after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..control import CostModel
from ..metrics import imbalance, rank_loads
from ..placement import Placement
from ..plans.plan import plan
from ..policy.protocol import Ability, can
from ..policy.registry import DEFAULT, find_policy
from ..replay import ReplayResult, replay
from ..replay.result import COMPETITORS, GATED, ONCE, POLICY, Series
from ..topology import Topology
from .windows import Part

WINDOWS = (1, 2, 4, 8, 16)
POLICIES = ("greedy", "ensemble", DEFAULT)
INTERVALS = (1, 2, 4, 8, 16, 32)
BUDGET = 0.05
"""Share of all slots that a re-planning may fetch while intervals are tried."""
OTHER_BUDGETS = (0.02, 0.1, None)
"""What is then tried at the best interval; None is no budget."""
ALIKE = 0.002
"""Differences of the mean imbalance that are none: of two settings this near the first one is taken."""
LEAST_SCORED = 4
"""Windows that a replay has to score before its answer is one."""

EVERY_TIME, WHEN_IT_PAYS, KEPT = "every time", "when it pays", "planned once"
MODES = {POLICY: EVERY_TIME, GATED: WHEN_IT_PAYS, ONCE: KEPT}


@dataclass(frozen=True)
class Tried:
    """A setting and the mean held-out imbalance with it."""

    value: int | str
    imbalance: float


@dataclass(frozen=True)
class Replanning:
    """A way to plan anew, replayed over all windows."""

    history: int
    """windows that each plan was made from: as recommended, at most half of the recording"""
    interval: int
    """windows between two re-plannings"""
    max_moves: float | None
    """budget of a re-planning, as a share of all slots; None for none"""
    mode: str
    """``every time``, ``when it pays`` (a gate weighs the moves) or ``planned once``"""
    imbalance: float
    """held-out mean"""
    moves_share: float
    """of all slots, for one re-planning"""
    net_s: float
    """estimated seconds saved against doing nothing, less those spent on moves"""
    scored: int
    """windows"""

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, for JSON."""
        return asdict(self)


def held_out(part: Part, topology: Topology, policy: str, windows: int, seed: int) -> float:
    """Mean imbalance on the later windows of a plan from the last ``windows`` of those seen."""
    made = plan(part.seen[-windows:], topology, policy, seed=seed).placement
    return score(part, made)


def score(part: Part, placement: Placement) -> float:
    """Mean imbalance of a placement on the later windows."""
    return float(imbalance(rank_loads(part.later.counts, placement)).mean())


def try_policies(part: Part, topology: Topology, windows: int, seed: int) -> tuple[Tried, ...]:
    """The built-in policies, each from as many windows."""
    return tuple(Tried(name, held_out(part, topology, name, windows, seed)) for name in POLICIES)


def try_windows(part: Part, topology: Topology, seed: int) -> tuple[Tried, ...]:
    """The default policy, planned from more and more windows."""
    known = len(part.seen)
    counts = dict.fromkeys([each for each in WINDOWS if each < known] + [min(known, WINDOWS[-1])])
    return tuple(Tried(each, held_out(part, topology, DEFAULT, each, seed)) for each in counts)


def first_of_best(tried: tuple[Tried, ...], preferred: int | str | None = None) -> Tried:
    """The first setting that is as good as the best; the preferred one where it is as good."""
    least = min(each.imbalance for each in tried) + ALIKE
    good = [each for each in tried if each.imbalance <= least]
    return next((each for each in good if each.value == preferred), good[0])


def try_replanning(
    part: Part, topology: Topology, policy: str, windows: int, cost: CostModel, seed: int
) -> tuple[Replanning, ...]:
    """Replays with rising intervals, then with other budgets at the best of them. Empty where windows are too few."""
    windows = min(windows, len(part.whole) // 2)
    scored = len(part.whole) - windows
    if scored < LEAST_SCORED:
        return ()
    budget = BUDGET if can(find_policy(policy)[1], Ability.BUDGET) else None

    def tried(interval: int, max_moves: float | None) -> Iterator[Replanning]:
        result = replay(
            part.whole,
            topology,
            [policy],
            interval=interval,
            history=windows,
            max_moves=max_moves,
            reference=policy,
            seed=seed,
            gate=True,
            horizon=scored,
            cost=cost,
        )
        yield from _replannings(result, windows, interval, max_moves)

    found = [each for interval in INTERVALS if interval <= scored // 2 for each in tried(interval, budget)]
    if budget is not None:
        interval = max(found, key=_net).interval
        found += [each for other in OTHER_BUDGETS for each in tried(interval, other)]
    return tuple(found)


def best_replanning(tried: tuple[Replanning, ...]) -> Replanning | None:
    """The way with the largest net gain, the one with the fewest moves among equals; None if there is no gain."""
    best = max(tried, key=lambda each: (each.net_s, -each.moves_share), default=None)
    return best if best is not None and best.net_s > 0 else None


def _replannings(
    result: ReplayResult, history: int, interval: int, max_moves: float | None
) -> Iterator[Replanning]:
    series: Series
    for series in result.series:
        if series.role in COMPETITORS:
            summary = series.summary
            yield Replanning(
                history,
                interval,
                max_moves,
                MODES[series.role],
                summary.mean_imbalance,
                summary.moves_share,
                summary.net_s or 0.0,
                len(series.windows),
            )


def _net(each: Replanning) -> float:
    return each.net_s
