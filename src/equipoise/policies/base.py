"""What a policy is."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..placement import Placement
from ..topology import Topology


@runtime_checkable
class Policy(Protocol):
    """A way to turn load windows into a placement; a composition of planning stages.

    Implement `place`, and register the class (or an instance) under a name in the entry-point group
    ``equipoise.policies``, or hand an instance to `equipoise.plan`. What `place` returns is checked whole
    before anyone sees it.
    """

    def place(
        self,
        loads: npt.NDArray[np.float64],
        topology: Topology,
        *,
        current: Placement | None = None,
        max_moves: int | float | None = None,
        seed: int = 0,
    ) -> npt.NDArray[np.int64]:
        """Plan from windows of loads.

        Parameters
        ----------
        loads : ``[W, L, E]``, finite and not negative, oldest window first; must not be modified
        topology : ranks, slots, nodes and groups; already checked against ``E``
        current : the placement that the ranks hold now, where known
        max_moves : budget over all layers together; a float is a share of all slots, an integer a number of
            fetches. `equipoise.plan` refuses it for a policy whose ``honours_max_moves`` is not true
        seed : of everything that is drawn

        Returns
        -------
        ``phy2log [L, R]``
        """
        ...


def honours_max_moves(policy: Any) -> bool:
    """Whether a policy spends at most ``max_moves``: its attribute of that name, false unless it says so."""
    return bool(getattr(policy, "honours_max_moves", False))
