"""``ensemble``: the Hybrid Ensemble of candidate orders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..planning.orders import INTERLEAVED, LPT, NOISY, RANDOM
from ..planning.pipeline import Recipe, better_layers, pack_layers
from ..planning.scale import sum_windows
from ..planning.tensors import device_backend
from ..problem import Problem
from ..topology import Topology
from .protocol import Ability


@dataclass(frozen=True)
class Ensemble:
    """The Hybrid Ensemble: many candidate orders a layer, greedy packing of all, the best one refined by swaps.

    Windows are summed; what ranks hold is not looked at. Avoidable twins are parted. A layer that `greedy` balances
    better without avoidable twins is `greedy`'s, so none is worse than such a one. On a CUDA tensor (through
    `equipoise.rebalance_experts`) everything runs on the device, batched over layers and candidates, with the
    same result.

    Parameters
    ----------
    lpt, interleaved, random, noisy : candidates of each kind for a layer (of the first two at most 1)
    noise : weights are multiplied by a number uniform in [1 - noise, 1 + noise) before sorting
    max_swaps : refinement swaps for a layer
    """

    lpt: int = 1
    interleaved: int = 1
    random: int = 16
    noisy: int = 46
    noise: float = 0.2
    max_swaps: int = 20
    name: ClassVar[str] = "ensemble"
    abilities: ClassVar[frozenset[Ability]] = frozenset({Ability.GROUPS, Ability.DEVICE})

    def __post_init__(self) -> None:
        for kind in ("lpt", "interleaved", "random", "noisy", "max_swaps"):
            if getattr(self, kind) < 0:
                raise ArgumentError(f"{kind} must not be negative, got {getattr(self, kind)}")
        if self.lpt > 1 or self.interleaved > 1:
            raise ArgumentError("there is one LPT and one interleaved order: lpt and interleaved are 0 or 1")
        if not self.kinds.size:
            raise ArgumentError(
                "lpt, interleaved, random and noisy are all 0: at least one candidate is needed"
            )
        if not 0 <= self.noise < 1:
            raise ArgumentError(f"noise must be in [0, 1), got {self.noise}")

    @property
    def kinds(self) -> npt.NDArray[np.int64]:
        """The kind of each candidate, as `candidate_order` numbers them."""
        return np.repeat(
            [LPT, INTERLEAVED, RANDOM, NOISY], [self.lpt, self.interleaved, self.random, self.noisy]
        )

    @property
    def recipe(self) -> Recipe:
        """These settings, as the pipeline takes them."""
        return Recipe(self.kinds, float(self.noise), chunked=False, max_swaps=self.max_swaps)

    def place(self, problem: Problem) -> npt.NDArray[np.int64]:
        """See `equipoise.Policy`."""
        loads, topology, seed = sum_windows(problem.loads), problem.topology, problem.seed
        phy2log = pack_layers(loads, topology, self.recipe, seed, exact_groups=True)
        # Other groups on a node, or twins that were parted, can make a layer worse than greedy's.
        greedy = pack_layers(loads, topology, None, seed, exact_groups=False)
        return better_layers(loads, topology, phy2log, greedy)

    def place_tensor(self, loads: Any, topology: Topology, *, seed: int = 0) -> Any:
        """The same plan for a torch tensor ``[W, L, E]``, computed on the tensor's device: ``[L, R]``."""
        from ..planning.torch_backend import sum_windows

        settings = (self.kinds.tolist(), self.noise, self.max_swaps, seed)
        return device_backend(loads).plan_ensemble(sum_windows(loads), topology, *settings)
