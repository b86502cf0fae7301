"""Whether to split every batch by its load: the curve served so, and placements made for it near what is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..control.gate import splitting_pays
from ..placement import Placement
from ..policy.registry import DEFAULT, find_policy, for_split
from .curve import Choice, Curve, Scoring, best_of, planned, wider

NOTHING = 0.01
"""Less than this part of the expert layers' time is nothing to gain: other windows change as much."""


@dataclass(frozen=True, eq=False)
class Splitting:
    """What splitting every batch by its load brings on one number of ranks.

    Without ``split_s`` nothing is taken off for it, and whether it pays is not known.
    """

    curve: Curve
    named: Choice
    """of the curve, split evenly"""
    made: tuple[Choice, ...]
    """placements made for batches, with about as many slots as are named"""
    placements: tuple[Placement, ...]
    """those of `made`"""
    split_s: float | None
    """seconds that splitting takes in a layer and step"""
    worth: float
    """of a GPU's memory, see `Limits`"""
    stretch_per_s: float
    """what a second of splitting in a layer and step adds to the stretch"""
    step_tokens: float
    """tokens of a step of the later windows, the mean"""

    def at(self, spare: int) -> Choice:
        """The best with so many spare slots; split evenly where no expert has replicas."""
        found = [self.curve.swept[spare], *(each for each in self.made if each.spare == spare)]
        return min(found, key=lambda each: each.stretch)

    @property
    def here(self) -> Choice:
        """With the slots that are named; with one more where those hold no replicas to split among."""
        return self.at(self.named.spare if self.named.redundant else self.named.spare + 1)

    @property
    def evenly(self) -> Choice:
        """The same slots as `here`, split evenly."""
        return self.curve.choices[self.here.spare]

    @property
    def best(self) -> Choice:
        """Of all that are split by load the one that has the least price; `here` where that is about as good."""
        found = [self.at(each.spare) for each in self.curve.choices]
        least, here = best_of([each for each in found if each.split == "batch"], self.worth), self.here
        alike = here.fits == least.fits and least.price(self.worth) > (1.0 - NOTHING) * here.price(self.worth)
        return here if alike else least

    @property
    def pays(self) -> bool | None:
        """Whether the best has a lower price than what is named, and shorter steps than its slots split evenly."""
        if self.split_s is None:
            return None
        best, even = self.best, self.curve.choices[self.best.spare]
        cheaper = best.fits >= self.named.fits and best.price(self.worth) < self.named.price(self.worth)
        return cheaper and splitting_pays(even.step_s, best.step_s, self.split_s)

    @property
    def break_even_s(self) -> float:
        """Seconds in a layer and step up to which splitting pays with the slots of `here`: see `pays`."""
        shorter = self.evenly.step_s - self.here.step_s
        if not self.stretch_per_s:
            return shorter
        cheaper = (self.named.price(self.worth) - self.here.price(self.worth)) / self.stretch_per_s
        return min(shorter, cheaper + (self.split_s or 0.0))

    @property
    def saved_slots(self) -> int:
        """Spare slots of a rank that an even split needs beyond those that hold as well where batches are split."""
        enough = (each for each in range(self.named.spare) if self.at(each).stretch <= self.named.stretch)
        return self.named.spare - next(enough, self.named.spare)

    @property
    def as_good_evenly(self) -> Choice | None:
        """The first that holds as well as `here` with an even split; None where none of those tried does."""
        return next((each for each in self.curve.choices if each.stretch <= self.here.stretch), None)

    def placement_of(self, choice: Choice) -> Placement:
        """The placement behind a choice, split in either way."""
        both = zip((*self.made, *self.curve.choices), (*self.placements, *self.curve.placements), strict=True)
        key = (choice.spare, choice.policy)
        return next(placement for each, placement in both if (each.spare, each.policy) == key)

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, for JSON."""
        return {
            "split_s": self.split_s,
            "pays": self.pays,
            "break_even_s": self.break_even_s,
            "step_tokens": self.step_tokens,
            "saved_slots": self.saved_slots,
            "evenly": self.evenly.as_dict(),
            "by_load": self.here.as_dict(),
            "best": self.best.as_dict(),
            "same_placements": [each.as_dict() for each in self.curve.swept],
            "made_for_batches": [each.as_dict() for each in self.made],
        }


def try_splitting(
    scoring: Scoring, found: Curve, named: Choice, split_s: float | None, seed: int
) -> Splitting:
    """Plan for batches with the slots named, one less and one more, and score it beside the curve's own placements.

    Such plans take several times as long as others, so the rest of the grid is not planned. Nothing is planned where
    groups stay on nodes, which such plans cannot do, or where perfect balance would bring less than `NOTHING`.
    """
    policy = for_split(find_policy(DEFAULT)[1], "batch")
    placements = [
        planned(scoring.part.seen, wider(found.topology, spare), policy, seed)
        for spare in _near(found, named)
    ]
    made = [scoring.choice(each, find_policy(policy)[0], "batch") for each in placements]
    second = scoring.steps * scoring.part.later.num_layers  # of splitting, in every layer and step
    return Splitting(
        curve=found,
        named=named,
        made=tuple(made),
        placements=tuple(placements),
        split_s=split_s,
        worth=scoring.limits.worth,
        stretch_per_s=float(scoring.over_balance(second, named.ranks, 0.0).mean()),
        step_tokens=scoring.tokens / float(scoring.steps.sum()),
    )


def _near(found: Curve, named: Choice) -> list[int]:
    """Spare slots near those named with which experts have replicas."""
    if found.topology.hierarchical or 1.0 - 1.0 / named.stretch < NOTHING:
        return []
    near = [each for each in found.choices if abs(each.spare - named.spare) <= 1 and each.redundant]
    return [each.spare for each in near if each.fits or each is named]
