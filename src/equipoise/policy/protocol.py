"""What a policy is, and how it says what it can do."""

from __future__ import annotations

from enum import Enum
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..problem import Problem


class Ability(Enum):
    """What a policy can do beyond placing; it names them in ``abilities``."""

    BUDGET = "spends at most `Problem.max_moves` fetches"
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


def can(policy: Any, ability: Ability) -> bool:
    """Whether a policy says that it has an ability."""
    return ability in getattr(policy, "abilities", ())
