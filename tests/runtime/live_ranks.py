"""A live balancer on each of a few ranks, over the small model, and what makes it fail."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta

import numpy as np
import small_moe as moe
import torch.distributed as dist

from equipoise import Balancer, Topology, contiguous_placement, plan
from equipoise.runtime.live import LiveBalancer
from equipoise.runtime.pace import Pace
from equipoise.runtime.transport import TorchTransport, TransportError
from equipoise.runtime.weights import ExpertWeights

DEADLINE = 20.0  # seconds; time enough on a machine that is busy
FOREVER = 1000.0  # longer than a test may take: whoever waits for such a deadline fails it
SHORT, SLACK = (
    2.0,
    1.5,
)  # for ranks that hang, which nothing but a deadline can tell, and what a busy machine adds


GROUPS = []  # kept: a rank that drops a group may cut off others in their last call


def other_group(members, rank, store, epoch):
    """What the model of these ranks talks over."""
    room = dist.PrefixStore(f"model/{epoch}", store)
    GROUPS.append(dist.ProcessGroupGloo(room, members.index(rank), len(members), timedelta(seconds=30)))
    return GROUPS[-1]


class Policy:
    """Greedy, unless it is told to misbehave."""

    name = "test"

    def __init__(self, what="good"):
        self.what = what

    def place(self, problem):
        if self.what == "raises":
            raise ValueError("no idea")
        if self.what == "exits":
            raise SystemExit(3)
        if self.what == "slow":
            time.sleep(60)  # nobody waits for it
        phy2log = plan(problem.loads, problem.topology, policy="greedy").placement.phy2log
        return np.zeros_like(phy2log) if self.what == "illegal" else phy2log


def begin(rank, ranks, store, *, slots=3, pace=None, policy="good", transport=None, placed=None, **more):
    """A live balancer over the model's weights on this rank; ``more`` goes to it."""
    topology = Topology(ranks, slots)
    balancer = Balancer(topology, moe.LAYERS, moe.EXPERTS, policy=Policy(policy), max_moves=None)
    tensors = moe.empty(slots)
    transport = transport or TorchTransport(list(range(ranks)), store, deadline_s=DEADLINE)
    placed = placed or contiguous_placement(moe.LAYERS, moe.EXPERTS, ranks, ranks * slots)
    weights = ExpertWeights(tensors)
    pace = pace or Pace(interval=4, ask_every=1, layers_per_step=1)
    live = LiveBalancer(balancer, weights, transport, placed, pace=pace, **more)
    moe.fill(tensors, live.slots_of)
    return live, tensors


class Fragile(TorchTransport):
    """Kills, stops or fails its rank at the n-th call of a kind, while experts move."""

    def set(self, what, at, number):
        self.what, self.at, self.number = what, at, number
        return self

    def hurt(self, at):
        if self.at != at:
            return
        self.number -= 1
        if self.number == 0:
            if self.what == "drop":
                raise TransportError("dropped")
            os.kill(os.getpid(), signal.SIGKILL if self.what == "kill" else signal.SIGSTOP)

    def exchange(self, send, receive):
        self.hurt("round")
        super().exchange(send, receive)

    def broadcast(self, tensor, source):
        self.hurt("broadcast")
        super().broadcast(tensor, source)

    def add_up(self, table):
        self.hurt("window")
        return super().add_up(table)

    def lowest(self, *values):
        self.hurt("any")
        vote = len(values) == 1
        if vote:
            self.hurt("vote")
        found = super().lowest(*values)
        if vote:
            self.hurt("commit")
        return found


def loader(weights):
    def load(layer, slot, number):
        one = [{name: tensor[None] for name, tensor in moe.expert(layer, number).items()}]
        ExpertWeights(one).pack(0, 0, weights.staged(layer, slot))

    return load
