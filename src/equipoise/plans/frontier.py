"""`frontier`: balance against moves, for choosing a budget before spending it."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..metrics import imbalance, rank_loads
from ..placement import Placement
from ..policy.protocol import Ability, Policy, can
from ..policy.registry import DEFAULT, blamed, find_policy
from ..problem import Problem
from ..topology import Topology
from ..trace import LoadTrace, check_loads
from .plan import checked_placement


@dataclass(frozen=True, eq=False)
class Frontier:
    """What each number of fetches can buy, from the placement that is there."""

    moves: npt.NDArray[np.int64]
    """fetches over all layers ``[K]``, ascending, the first 0"""
    moved_share: npt.NDArray[np.float64]
    """the same as a share of all slots ``[K]``"""
    imbalance: npt.NDArray[np.float64]
    """mean imbalance over windows and layers ``[K]``; in-sample, or held-out if later windows were given"""
    placements: tuple[Placement, ...]
    """the placements ``[K]``"""


def frontier(
    trace: LoadTrace | npt.ArrayLike,
    topology: Topology,
    current: Placement,
    *,
    policy: str | Policy = DEFAULT,
    points: int = 20,
    score_on: LoadTrace | npt.ArrayLike | None = None,
) -> Frontier:
    """The whole frontier of balance against moves, from one search.

    Parameters
    ----------
    trace : a `LoadTrace`, or counts ``[L, E]`` or ``[W, L, E]``, to plan from
    topology : ranks, slots, nodes and groups
    current : the placement that the ranks hold now
    policy : a name in `equipoise.policies`, or a policy, that can search a frontier
    points : budgets tried, closer together where they are small
    score_on : later windows to score on; the planning windows unless given

    Raises
    ------
    ArgumentError
        naming the argument that does not fit

    Examples
    --------
    >>> import equipoise as eq
    >>> now = eq.contiguous_placement(1, 8, 4)
    >>> line = eq.frontier([[8, 7, 1, 1, 1, 1, 1, 1]], eq.Topology(4, 2), now)
    >>> line.moves.tolist(), line.imbalance.round(2).tolist()
    ([0, 2], [2.86, 1.71])
    """
    trace = trace if isinstance(trace, LoadTrace) else LoadTrace(check_loads(trace, "trace", (2, 3)))
    later = trace if score_on is None else score_on
    later = later if isinstance(later, LoadTrace) else LoadTrace(check_loads(later, "score_on", (2, 3)))
    if isinstance(points, bool) or not isinstance(points, Integral) or points < 1:
        raise ArgumentError(f"points must be a positive number of budgets, got {points!r}")
    if later.counts.shape[1:] != trace.counts.shape[1:]:
        raise ArgumentError(
            f"score_on has [layers, experts] = {list(later.counts.shape[1:])}, trace {list(trace.counts.shape[1:])}"
        )
    name, chosen = find_policy(policy)
    if not can(chosen, Ability.FRONTIER):
        raise ArgumentError(f"policy {name!r} has no frontier: it does not search from what ranks hold")
    problem = Problem.trusting(trace.counts.astype(np.float64), topology, current=current)
    if problem.held is None or not problem.held.complete:
        raise ArgumentError("current must be the placement that these ranks hold: every slot with an expert")
    with blamed(name):
        found = cast(Any, chosen).search(problem)
    fractions = np.linspace(0.0, 1.0, max(points, 2)) ** 2
    rows: dict[int, tuple[float, Placement]] = {}
    for budget in sorted({round(found.most * float(part)) for part in fractions}):
        with blamed(name):
            phy2log = found.take(budget)
        placement = checked_placement(name, chosen, phy2log, problem, trace)
        fetches = int(placement.moves_from(current).sum())
        if fetches not in rows:
            score = float(imbalance(rank_loads(later.counts, placement)).mean())
            rows[fetches] = (score, placement)
    ordered = sorted(rows)
    moves = np.array(ordered, dtype=np.int64)
    return Frontier(
        moves=moves,
        moved_share=moves / (current.num_layers * current.num_slots),
        imbalance=np.array([rows[m][0] for m in ordered]),
        placements=tuple(rows[m][1] for m in ordered),
    )
