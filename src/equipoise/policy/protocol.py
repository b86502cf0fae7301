"""What a policy is, and how it says what it can do."""

from __future__ import annotations

from enum import Enum
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..errors import PolicyError
from ..problem import Problem


class Ability(Enum):
    """What a policy can do beyond placing; it names them in ``abilities``."""

    BUDGET = "spends at most `Problem.max_moves` fetches"
    GROUPS = "keeps groups on nodes where the topology is hierarchical, as far as the budget reaches"
    BATCH = (
        "plans for a dispatcher that splits every batch by its load; an even split of such a plan is worse"
    )
    DEVICE = "has ``place_tensor(loads, topology, *, seed)``, which plans torch tensors where they live"
    FRONTIER = "has ``search(problem)``, which returns a `Search` to take placements of any budget from"


@runtime_checkable
class Policy(Protocol):
    """A way to turn load windows into a placement; a composition of planning stages.

    Implement `place`, and register the class (or an instance) under a name in the entry-point group
    ``equipoise.policies``, or hand an instance to `equipoise.plan`. What `place` returns is checked whole
    before anyone sees it. A policy that can do more has an attribute ``abilities``, a frozenset of `Ability`;
    ``name`` is what reports call it, the class's name in small letters unless there is one.
    """

    def place(self, problem: Problem) -> npt.NDArray[np.int64]:
        """A placement for a problem, which has been checked and must not be modified.

        Returns
        -------
        ``phy2log [L, R]``
        """
        ...


METHODS = {Ability.DEVICE: "place_tensor", Ability.FRONTIER: "search"}


def check_abilities(name: str, policy: Any) -> None:
    """Raise `PolicyError` unless a policy's ``abilities`` are a set of `Ability` that it has the methods for."""
    declared: Any = getattr(policy, "abilities", frozenset())
    if not isinstance(declared, (set, frozenset)) or not all(isinstance(part, Ability) for part in declared):
        raise PolicyError(
            f"policy {name!r}: abilities must be a frozenset of equipoise.Ability, got {declared!r}"
        )
    for ability, method in METHODS.items():
        if ability in declared and not callable(getattr(policy, method, None)):
            raise PolicyError(f"policy {name!r} declares {ability}, but has no method {method}")


def can(policy: Any, ability: Ability) -> bool:
    """Whether a policy says that it has an ability."""
    return ability in getattr(policy, "abilities", ())
