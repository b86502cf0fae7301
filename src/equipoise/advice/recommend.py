"""`recommend`: from recorded loads and GPUs to ranks, spare slots, windows and re-planning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..control import CostModel
from ..control.gate import check_split_s
from ..errors import ArgumentError
from ..placement import Placement, contiguous_placement
from ..policy.registry import DEFAULT
from ..topology import Topology
from .curve import Choice, Curve, Limits, Scoring, best_of, check_ranks, curve
from .splitting import NOTHING, Splitting, try_splitting
from .timing import (
    Replanning,
    Tried,
    best_replanning,
    first_of_best,
    try_policies,
    try_replanning,
    try_windows,
)
from .windows import Part


@dataclass(frozen=True)
class Question:
    """What is asked beside the loads.

    Parameters
    ----------
    gpus : numbers of GPUs to choose from; each may be one group of ranks, or several of a smaller number
    limits : a GPU's memory and what it is worth
    gpus_per_node : GPUs of a server
    num_groups : expert groups of group-limited routing
    seed : handed to every policy
    split_s : seconds that splitting a batch by its load takes in a layer and step, the exchange of counts included,
        where known; without it tokens are split evenly, and what splitting may take is said
    """

    gpus: tuple[int, ...]
    limits: Limits
    gpus_per_node: int = 8
    num_groups: int = 1
    seed: int = 0
    split_s: float | None = None

    def __post_init__(self) -> None:
        check_ranks(self.gpus)
        check_split_s(self.split_s)
        if self.gpus_per_node < 1:
            raise ArgumentError(f"gpus_per_node must be at least 1, got {self.gpus_per_node}")

    def nodes(self, ranks: int) -> int:
        """Servers that so many ranks are on: 1 where they do not fill them."""
        return ranks // self.gpus_per_node if ranks % self.gpus_per_node == 0 else 1


@dataclass(frozen=True)
class Deployment:
    """The best way to use a number of GPUs."""

    gpus: int
    groups: int
    """groups of ranks that serve side by side, each with all experts"""
    choice: Choice
    """of one group"""


@dataclass(frozen=True, eq=False)
class Advice:
    """What is recommended for one kind of traffic, with all that was tried."""

    part: Part
    question: Question
    cost: CostModel
    curves: tuple[Curve, ...]
    deployments: tuple[Deployment, ...]
    """one for each number of GPUs; `best` is one of them, the others are split evenly"""
    best: Deployment
    """the one whose GPU has the least price; batches are split by their load where that pays there"""
    splitting: Splitting
    """on the ranks of `best`"""
    windows: tuple[Tried, ...]
    """on the best topology, the default policy from more and more windows"""
    policies: tuple[Tried, ...]
    replannings: tuple[Replanning, ...]
    """empty where the recording is too short"""
    move_s: float
    """estimated seconds to get from the contiguous placement to the plan"""
    move_bytes: int

    @property
    def split(self) -> str:
        """How an expert's tokens are to be split among its replicas: "even", or "batch", by the load of each."""
        return self.best.choice.split

    @property
    def nothing_to_gain(self) -> bool:
        """Whether no plan serves the later windows noticeably faster than the contiguous placement."""
        return self.gain < NOTHING

    @property
    def gain(self) -> float:
        """The part of the expert layers' time that the best plan on the chosen ranks saves, whatever its slots."""
        return _gain(self.splitting)

    @property
    def chosen(self) -> Curve:
        """The curve of the best deployment's ranks."""
        return next(each for each in self.curves if each.topology.num_ranks == self.best.choice.ranks)

    def named(self, found: Curve) -> Choice:
        """The choice of a curve that has the least price."""
        return best_of(found.choices, self.question.limits.worth)

    @property
    def history(self) -> int:
        """Windows to plan from."""
        return int(first_of_best(self.windows).value)

    @property
    def policy(self) -> str:
        """Policy to plan with; the one that plans for batches is `plan --split batch`."""
        return str(self.best.choice.policy if self.split == "batch" else self.policy_evenly.value)

    @property
    def policy_evenly(self) -> Tried:
        """The policy to plan with for an even split."""
        return first_of_best(self.policies, DEFAULT)

    @property
    def replanning(self) -> Replanning | None:
        """When to plan anew; None where nothing was gained by it, or the recording does not say."""
        return best_replanning(self.replannings)

    @property
    def break_even_tokens(self) -> float | None:
        """Tokens after which moving from the contiguous placement has paid; None if it never does."""
        saved = self.chosen.nothing.token_s - self.best.choice.token_s
        return self.move_s / saved if saved > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, for JSON."""
        chosen = self.replanning
        return {
            "part": self.part.name,
            "windows_seen": len(self.part.seen),
            "windows_later": len(self.part.later),
            "nothing_to_gain": self.nothing_to_gain,
            "recommended": {
                "gpus": self.best.gpus,
                "groups": self.best.groups,
                **self.best.choice.as_dict(),
                "policy": self.policy,
                "history": self.history,
                "replanning": None if chosen is None else chosen.as_dict(),
            },
            "deployments": [
                {"gpus": each.gpus, "groups": each.groups, **each.choice.as_dict()}
                for each in self.deployments
            ],
            "curves": [
                {"nothing": each.nothing.as_dict(), "choices": [choice.as_dict() for choice in each.choices]}
                for each in self.curves
            ],
            "splitting": self.splitting.as_dict(),
            "windows": {str(each.value): each.imbalance for each in self.windows},
            "policies": {str(each.value): each.imbalance for each in self.policies},
            "replannings": [each.as_dict() for each in self.replannings],
            "move_s": self.move_s,
            "move_bytes": self.move_bytes,
            "break_even_tokens": self.break_even_tokens,
            "cost": self.cost.as_dict(),
        }


def recommend(part: Part, question: Question, cost: CostModel) -> Advice:
    """What recorded loads ask for: everything is planned from the windows seen and scored on the later ones.

    Parameters
    ----------
    part : windows of one kind of traffic, as `parted` makes them
    question : GPUs and what they have
    cost : of the model, for times and bytes

    Returns
    -------
    `Advice` with what is recommended and all that was tried

    Raises
    ------
    ArgumentError
        if GPUs and experts do not fit together, or the cost model has tiles or speeds of ranks

    Notes
    -----
    A GPU's price is its time in expert layers, as a multiple of that in perfect balance, and the part of its memory
    that experts take, weighed by ``worth``. The least price chooses spare slots and ranks alike, split evenly; on
    these ranks it then chooses between an even split and one by load, with the same slots unless others have a price
    that is less by `NOTHING`. Windows, policies and re-planning are tried with an even split. What a token costs on
    the network is not in it.
    """
    scoring = Scoring(part, cost, question.limits, question.split_s or 0.0)
    curves = tuple(
        curve(scoring, ranks, question.nodes(ranks), question.num_groups, question.seed)
        for ranks in sorted(question.gpus)
    )
    evenly = tuple(_deployment(gpus, curves, question.limits) for gpus in sorted(question.gpus))
    named = _best(evenly, question.limits)
    found = next(each for each in curves if each.topology.num_ranks == named.choice.ranks)
    splitting = try_splitting(scoring, found, named.choice, question.split_s, question.seed)
    best = _split(named, splitting)
    choice = best.choice
    topology = replace(found.topology, slots_per_rank=choice.slots_per_rank)
    windows = try_windows(part, topology, question.seed)
    history = int(first_of_best(windows).value)
    policies = try_policies(part, topology, history, question.seed)
    policy = str(first_of_best(policies, DEFAULT).value)
    moves, move_s = _moving(splitting.placement_of(choice), topology, cost)
    return Advice(
        part=part,
        question=question,
        cost=cost,
        curves=curves,
        deployments=tuple(best if each is named else each for each in evenly),
        best=best,
        splitting=splitting,
        windows=windows,
        policies=policies,
        replannings=try_replanning(part, topology, policy, history, cost, question.seed),
        move_s=move_s,
        move_bytes=moves * cost.expert_bytes,
    )


def _deployment(gpus: int, curves: Sequence[Curve], limits: Limits) -> Deployment:
    """One group of all GPUs, or several of a number that divides them and was asked about, too."""
    choices = [best_of(each.choices, limits.worth) for each in curves if gpus % each.topology.num_ranks == 0]
    choice = best_of(choices, limits.worth)
    return Deployment(gpus, gpus // choice.ranks, choice)


def _best(deployments: Sequence[Deployment], limits: Limits) -> Deployment:
    choice = best_of([each.choice for each in deployments], limits.worth)
    return next(each for each in deployments if each.choice == choice)


def _split(named: Deployment, splitting: Splitting) -> Deployment:
    """The deployment as it is named, or with batches split by their load where that pays and there is a gain."""
    if splitting.pays and _gain(splitting) >= NOTHING:
        return replace(named, choice=splitting.best)
    return named


def _gain(splitting: Splitting) -> float:
    found = splitting.curve
    least = min(choice.stretch for choice in found.choices)
    if splitting.pays:
        least = min(least, splitting.best.stretch)
    return 1.0 - least / found.nothing.stretch


def _moving(made: Placement, topology: Topology, cost: CostModel) -> tuple[int, float]:
    """Fetches and estimated seconds from the contiguous placement to the plan."""
    start = contiguous_placement(made.num_layers, made.num_experts, topology.num_ranks, topology.num_slots)
    return int(made.moves_from(start).sum()), cost.move_time(made, start, topology)
