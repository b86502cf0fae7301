"""`plan`: the one way from loads to a checked placement and the report that justifies it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, PlacementError, PolicyError
from ..metrics import balance, rank_loads, scaled
from ..placement import Placement, contiguous_placement
from ..policy.protocol import Ability, Policy, can
from ..policy.registry import DEFAULT, blamed, find_policy
from ..problem import Held, Problem
from ..routes import PairCounts, Routes
from ..topology import Topology
from ..trace import LoadTrace, check_loads
from .activated import known_activated, later_batches
from .communication import count_pairs
from .report import HeldOut, PlanReport, speed_of
from .served import side_by_side
from .shares import split_shares


@dataclass(frozen=True, eq=False)
class Plan:
    """A placement with the report that justifies it."""

    placement: Placement
    topology: Topology
    report: PlanReport
    shares: npt.NDArray[np.float64] | None
    """``[L, R]``, the part of its expert's tokens that each slot should take, where asked for"""
    trace: LoadTrace
    policy: Policy

    def explain(self) -> str:
        """What holds the worst layer back, and what one more slot would bring; see `plans.explain`."""
        from .explain import explain

        return explain(self)


def plan(
    trace: LoadTrace | npt.ArrayLike,
    topology: Topology,
    policy: str | Policy = DEFAULT,
    *,
    current: Placement | Held | None = None,
    max_moves: int | float | None = None,
    seed: int = 0,
    shares: bool = False,
    held_out: bool = False,
    routes: Routes | PairCounts | None = None,
    batches: LoadTrace | None = None,
) -> Plan:
    """Plan a placement from recorded loads.

    Parameters
    ----------
    trace : a `LoadTrace`, or counts ``[L, E]`` or ``[W, L, E]``
    topology : ranks, slots, nodes and groups
    policy : a name in `equipoise.policies`, or a policy
    current : the placement that the ranks hold now; it may have another number of ranks, or (as a `Held`) holes
    max_moves : budget of fetches over all layers together: a float is a share of all slots (0.05), an integer
        a number of fetches. Needs ``current`` and a policy that honours it
    seed : same input and seed, same plan
    shares : also split tokens among replicas (`equipoise.split_shares`) and report both splits; nothing applies
        the shares but whoever reads `Plan.shares`
    held_out : also plan from the first windows alone and score that on the last quarter of them, which the report
        then carries; needs two windows
    routes : token routes or pair counts of the same layers and experts, where known: the report then says to how many
        ranks and nodes tokens go, and `robust` brings experts near each other that are hit together
    batches : single batches of the same layers and experts (windows of one step), where known: the report then says
        how many experts they activate on the busiest rank

    Raises
    ------
    ArgumentError
        naming the argument, what was found and what to do
    PolicyError
        if the policy returned something that is not a legal placement

    Examples
    --------
    >>> plan([[600, 560, 120, 120, 20, 10, 10, 10]], Topology(8, 2)).placement.num_slots
    16
    """
    if not isinstance(trace, LoadTrace):
        trace = LoadTrace(check_loads(trace, "trace", (2, 3)))
    name, chosen = find_policy(policy)
    loads = trace.counts.astype(np.float64)
    pairs = count_pairs(routes) if isinstance(routes, Routes) else routes
    problem = Problem.trusting(
        loads,
        topology,
        current=current,
        max_moves=max_moves,
        seed=seed,
        pair_counts=None if pairs is None else pairs.counts,
    )
    check_budget(name, chosen, max_moves)
    check_speeds(name, chosen, topology)
    if shares and topology.rank_speed is not None:
        raise ArgumentError("shares are fitted for ranks of one speed; leave out rank_speed or shares")
    started = time.perf_counter()
    phy2log = ask(name, chosen, problem)
    seconds = time.perf_counter() - started
    placement = checked_placement(name, chosen, phy2log, problem, trace)
    check_spending(name, placement, problem)
    previous = _previous(current) or _contiguous(trace, topology)
    later = None
    if held_out:
        later = _score_held_out(name, chosen, problem, trace, previous, shares, batches)
    split = split_shares(trace, placement) if shares else None
    report = PlanReport(
        policy=name,
        seconds=seconds,
        keeps_groups=can(chosen, Ability.GROUPS),
        held_out=later,
        trace=trace,
        topology=topology,
        placement=placement,
        previous=previous,
        held=previous if problem.held is None else problem.held,
        shares=split,
        routes=routes,
        batches=batches,
    )
    return Plan(placement, topology, report, split, trace, chosen)


def check_budget(name: str, policy: Policy, max_moves: int | float | None) -> None:
    """Raise `ArgumentError` if a budget is given to a policy that would not keep it."""
    if max_moves is not None and not can(policy, Ability.BUDGET):
        raise ArgumentError(f"policy {name!r} does not limit moves; max_moves needs one that does")


def check_speeds(name: str, policy: Policy, topology: Topology) -> None:
    """Raise `ArgumentError` if ranks are not equally fast and a policy does not know that."""
    if topology.rank_speed is not None and not can(policy, Ability.SPEEDS):
        raise ArgumentError(
            f"policy {name!r} plans for ranks of one speed; leave out rank_speed, or take one that knows it (robust)"
        )


def check_spending(name: str, placement: Placement, problem: Problem) -> None:
    """Raise `PolicyError` if a placement takes more fetches than the problem allows."""
    if problem.max_moves is None or problem.held is None:
        return
    fetches = int(placement.moves_from(problem.held).sum())
    if fetches > problem.max_moves:
        raise PolicyError(f"policy {name!r} spent {fetches} fetches of a budget of {problem.max_moves}")


def ask(name: str, policy: Policy, problem: Problem) -> npt.NDArray[np.int64]:
    """What a policy answers; whatever goes wrong inside it becomes one `PolicyError`."""
    with blamed(name):
        return policy.place(problem)


def checked_placement(
    name: str, policy: Policy, phy2log: Any, problem: Problem, trace: LoadTrace | None = None
) -> Placement:
    """What a policy returned, as a placement of the trace's layers; `PolicyError` if it is not legal."""
    topology = problem.topology
    wanted = (problem.num_layers, topology.num_slots)
    try:
        with blamed(name, "returned what NumPy cannot read"):
            array = np.asarray(phy2log)
    except PolicyError as error:
        if isinstance(error.__cause__, ValueError):  # ragged lists
            raise PolicyError(f"policy {name!r} returned ragged lists, expected an integer array") from None
        raise
    if array.shape != wanted:
        raise PolicyError(
            f"policy {name!r} returned shape {list(array.shape)}, expected [L, R] = {list(wanted)}"
        )
    try:
        return Placement(
            array,
            topology.num_ranks,
            problem.num_experts,
            layers=() if trace is None else trace.layers,
            num_model_layers=None if trace is None else trace.num_model_layers,
            split="batch" if can(policy, Ability.BATCH) else "even",
        )
    except PlacementError as error:
        raise PolicyError(f"policy {name!r} returned an illegal placement: {error}") from error


def _score_held_out(
    name: str,
    policy: Policy,
    problem: Problem,
    trace: LoadTrace,
    previous: Placement,
    shares: bool,
    batches: LoadTrace | None,
) -> HeldOut:
    """Plan from the first windows, score on the last quarter of them (at least one)."""
    if trace.num_windows < 2:
        raise ArgumentError(
            "held_out needs at least two windows: with one, nothing later is there to score on"
        )
    first, topology = trace.num_windows - max(1, trace.num_windows // 4), problem.topology
    seen, later = trace[:first], trace[first:]
    phy2log = ask(name, policy, problem.first_windows(first))
    placement = checked_placement(name, policy, phy2log, problem, trace)
    loads, exponents = scaled(later.counts)
    fitted = split_shares(seen, placement) if shares else None
    single = None if batches is None else later_batches(batches, trace, first)
    counted = batches is None or single is not None
    return HeldOut(
        fitted=first,
        scored=trace.num_windows - first,
        before=balance(rank_loads(loads, previous), exponents, speed_of(previous, topology)),
        after=balance(rank_loads(loads, placement), exponents, topology.rank_speed),
        split=None if fitted is None else balance(rank_loads(loads, placement, fitted), exponents),
        splits=None if placement.split == "even" else side_by_side(later.counts, placement),
        activated_before=known_activated(later, single, previous) if counted else None,
        activated=known_activated(later, single, placement) if counted else None,
    )


def _previous(current: Placement | Held | None) -> Placement | None:
    """The placement that a plan is compared with; what ranks hold is none while experts are lost."""
    if isinstance(current, Held):
        return (
            Placement(current.phy2log, current.num_ranks, current.num_experts) if current.complete else None
        )
    return current


def _contiguous(trace: LoadTrace, topology: Topology) -> Placement:
    return contiguous_placement(trace.num_layers, trace.num_experts, topology.num_ranks, topology.num_slots)
