"""The trained model as one rank of a group serves it, on text whose kind changes, while its experts move."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, PrefixStore

from ..control.balancer import Balancer
from ..engines.torch_moe import PARTS, Counter, Group, torch_moe
from ..placement import IntArray, Placement, contiguous_placement
from ..runtime.executor import Reload
from ..runtime.live import LiveBalancer
from ..runtime.pace import Pace
from ..runtime.transport import TorchTransport
from ..runtime.weights import ExpertWeights
from ..topology import Topology
from .model import Shape, load_model
from .texts import Stream

DISPATCHES = ("even", "batch")
"""how tokens are split among replicas, pass by pass in turn"""
DEADLINE_S = 15.0
"""seconds that ranks wait for each other"""


@dataclass(frozen=True)
class Setup:
    """What is served by whom, the same for all ranks.

    Parameters
    ----------
    stream : the text
    num_ranks, slots_per_rank : to begin with
    pace, policy, history, max_moves, seed : see `LiveBalancer` and `Balancer`
    """

    stream: Stream
    num_ranks: int = 4
    slots_per_rank: int = 24
    pace: Pace = Pace(interval=5, ask_every=1, layers_per_step=2)  # noqa: RUF009 - frozen
    policy: str = "robust"
    history: int = 3
    max_moves: float = 0.15
    seed: int = 0

    def start(self, num_ranks: int) -> Placement:
        """The placement that ranks begin with."""
        shape = Shape()
        slots = num_ranks * self.slots_per_rank
        return contiguous_placement(shape.layers, shape.experts, num_ranks, slots)


@dataclass(frozen=True)
class Answer:
    """What a rank tells of a pass."""

    digest: str
    """of all bits of its logits"""
    counts: IntArray
    """``[L, E]``, what its routers chose"""
    phy2log: IntArray
    """``[L, R]``, the maps by which this pass was served"""
    state: str
    """of the runtime, after it"""
    commits: int
    """of layers, before it"""


class Served:
    """The model with the experts of one rank.

    Parameters
    ----------
    placement : 8 layers of 64 experts
    stream : the text
    group : of `torch.distributed`, see `torch_moe`

    Attributes
    ----------
    layers : for a runtime, see `equipoise.engines.torch_moe.MoeLayers`
    """

    def __init__(self, placement: Placement, stream: Stream, group: Group = None) -> None:
        self.model, self.stream = load_model(), stream
        self.layers = torch_moe(self.model, placement, group)

    def serve(self, number: int, rank: int) -> str:
        """Serve a pass of a rank's text; a digest of all bits of the logits. All ranks call it together."""
        with torch.no_grad():
            logits = self.model(torch.from_numpy(self.stream.batch(number, rank)))
        return hashlib.blake2b(logits.numpy().tobytes(), digest_size=16).hexdigest()


class Aside:
    """A counter that counts for a runtime, and once more for who watches."""

    def __init__(self, counter: Counter, shape: Shape) -> None:
        self._counter = counter
        self._counts = torch.zeros(shape.layers, shape.experts, dtype=torch.int64)

    def add(self, layer: int, topk: Tensor) -> None:
        """See `Counter`."""
        self._counter.add(layer, topk)
        self._counts[layer] += torch.bincount(topk.reshape(-1), minlength=self._counts.shape[1])

    def take(self) -> IntArray:
        """``[L, E]`` since the last time."""
        counts: IntArray = self._counts.numpy().copy()
        self._counts.zero_()
        return counts


class LiveRank:
    """One rank that serves pass after pass, moves experts in between, and goes on with others when some are lost.

    Parameters
    ----------
    setup : as of all ranks
    rank : which of them, for good
    meeting : a file that is not there yet, through which ranks find each other
    """

    def __init__(self, setup: Setup, rank: int, meeting: Path) -> None:
        torch.set_num_threads(1)
        self.setup, self.name = setup, rank
        self._store = FileStore(str(meeting), setup.num_ranks)
        limit = timedelta(seconds=DEADLINE_S)
        dist.init_process_group(
            "gloo", store=self._store, rank=rank, world_size=setup.num_ranks, timeout=limit
        )
        start = setup.start(setup.num_ranks)
        self.served = Served(start, setup.stream)
        shape = self.served.model.shape
        balancer = Balancer(
            Topology(setup.num_ranks, setup.slots_per_rank),
            shape.layers,
            shape.experts,
            policy=setup.policy,
            history=setup.history,
            max_moves=setup.max_moves,
            seed=setup.seed,
        )
        weights = ExpertWeights(self.served.layers.tensors())
        transport = TorchTransport(list(range(setup.num_ranks)), self._store, deadline_s=DEADLINE_S)
        self.runtime = LiveBalancer(
            balancer, weights, transport, start, pace=setup.pace, reload=_from_disk(weights)
        )
        self.counter = Aside(self.runtime.counter, shape)
        self.served.layers.follow(self.runtime.maps, self.counter)

    def __call__(self, what: str, *arguments: int | list[int]) -> Answer | bool:
        """Answer ``serve`` or ``meet``."""
        answers = {"serve": self._serve, "meet": self._meet}
        return answers[what](*arguments)  # type: ignore[operator, no-any-return]

    def _serve(self, number: int) -> Answer:
        self.served.layers.dispatch_by(DISPATCHES[number % len(DISPATCHES)])
        phy2log, commits = self.runtime.executor.phy2log.copy(), int(self.runtime.executor.versions.sum())
        digest = self.served.serve(number, self.name)
        return Answer(digest, self.counter.take(), phy2log, self.runtime.step().value, commits)

    def _meet(self, members: list[int], epoch: int) -> bool:
        """Go on with the ranks that are left; what was counted of a pass that failed is dropped."""
        self.runtime.counter.end_pass(record=False)
        self.counter.take()
        transport = TorchTransport(members, self._store, deadline_s=DEADLINE_S, epoch=epoch)
        room = PrefixStore(f"model/{epoch}", self._store)
        limit = timedelta(seconds=DEADLINE_S)
        group = dist.ProcessGroupGloo(room, members.index(self.name), len(members), limit)
        self.served.layers.join(group)
        return self.runtime.recover(transport, Topology(len(members), self.setup.slots_per_rank))


class OneRank:
    """The whole model in one process that knows no group: what the ranks are compared with."""

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(1)
        self.served = Served(_alone(), setup.stream)

    def __call__(self, number: int, members: list[int]) -> dict[int, str]:
        """Digests of a pass of each rank's text."""
        return {rank: self.served.serve(number, rank) for rank in members}


def _alone() -> Placement:
    shape = Shape()
    return contiguous_placement(shape.layers, shape.experts, 1)


def _from_disk(weights: ExpertWeights) -> Reload:
    """Loads experts that went with their ranks from the file that the model came from."""

    whole = lru_cache(load_model)

    def reload(layer: int, slot: int, expert: int) -> None:
        block: Any = whole().blocks[layer].mlp.experts  # type: ignore[union-attr]
        one = {name: getattr(block, name)[expert : expert + 1] for name in PARTS}
        ExpertWeights([one]).pack(0, 0, weights.staged(layer, slot))

    return reload
