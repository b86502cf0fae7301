"""A live balancer for thousands of steps, while ranks die, hang and come back and planners misbehave.

    python benchmarks/soak_runtime.py [--steps 2000] [--seed 0]

Four forked gloo ranks count made-up routing whose favourites wander, re-place experts about every 20 steps and suffer
a fault every 200: a rank is killed or stopped at a random call of a random kind, gives up, or its planner raises or
is slow. Those that are left go on with three ranks until a new process joins. After every step all slots are compared
with the map. Memory, threads (native ones, too: each gloo group has some) and open files of every process are noted
when it is quiet, and must not grow. Prints a line for every fault and a verdict; exits with 1 on a finding.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from equipoise import Balancer, Problem, Topology, contiguous_placement, plan
from equipoise.runtime import ExpertWeights, LiveBalancer, Pace, State, TorchTransport, TransportError

RANKS, SLOTS, LAYERS, EXPERTS, WIDTH = 4, 5, 4, 12, 512
FAULT_EVERY, REJOIN_AFTER, QUIET = 200, 30, 190
PACE = Pace(interval=13, ask_every=1, patience=3, layers_per_step=1)
DEADLINE_S, LIMIT_S = 2.0, 120.0
MOODS = ("raises", "slow")  # of the planner
KINDS = ("kill", "stop", "drop", *MOODS)
CALLS = ("window", "broadcast", "round", "vote", "commit")
UNTOUCHED = 2  # a rank that no fault takes away, so that one process lives through all of them
MORE_MEMORY = 8 << 20  # bytes that a process may take more of at the end than when it was first quiet


@dataclass(frozen=True)
class Fault:
    """What goes wrong in the steps from ``step`` on."""

    step: int
    kind: str
    victim: int
    call: str
    number: int

    @property
    def gone(self) -> bool:
        """Whether the victim has to be replaced."""
        return self.kind in ("kill", "stop")


def faults(steps: int, seed: int) -> list[Fault]:
    """One for each 200 steps, the kinds in turn, so that each comes up."""
    draws = np.random.default_rng(seed)
    victims = [rank for rank in range(RANKS) if rank != UNTOUCHED]
    return [
        Fault(
            step,
            KINDS[number % len(KINDS)],
            int(draws.choice(victims)),
            str(draws.choice(CALLS)),
            int(draws.integers(1, 3)),
        )
        for number, step in enumerate(range(FAULT_EVERY, steps, FAULT_EVERY))
    ]


class Frail(TorchTransport):
    """A real network, whose rank is hurt at one call once it is told to be."""

    fault: Fault | None = None
    calls = 0

    def _hurt(self, call: str) -> None:
        if self.fault is None or call != self.fault.call:
            return
        self.calls += 1
        if self.calls == self.fault.number:
            fault, self.fault = self.fault, None
            if fault.kind == "drop":
                raise TransportError("dropped on purpose")
            os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)

    def exchange(self, send: Any, receive: Any) -> None:
        self._hurt("round")
        super().exchange(send, receive)

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        self._hurt("broadcast")
        super().broadcast(tensor, source)

    def add_up(self, table: torch.Tensor) -> Any:
        self._hurt("window")
        return super().add_up(table)

    def lowest(self, *values: int) -> list[int]:
        self._hurt("vote")
        found = super().lowest(*values)
        self._hurt("commit")
        return found


class Moody:
    """Greedy, in the mood that it is told to be in for one plan."""

    name = "moody"
    mood = "good"

    def place(self, problem: Problem) -> Any:
        mood, self.mood = self.mood, "good"
        if mood == "raises":
            raise ValueError("on purpose")
        if mood == "slow":
            time.sleep(0.5)
        return plan(problem.loads, problem.topology, policy="greedy").placement.phy2log


class Server:
    """One rank: serves, checks itself, goes on with whoever is there."""

    def __init__(self, rank: int, port: int, pipe: Any, todo: list[Fault]) -> None:
        self.rank, self.pipe, self.todo, self.epoch, self.step = rank, pipe, todo, 0, 0
        store = dist.TCPStore("127.0.0.1", port, None, False, timedelta(seconds=LIMIT_S))
        self.store = store
        self.policy = Moody()
        self.tensors = [{"w": torch.full((SLOTS, WIDTH), -1.0)} for _ in range(LAYERS)]

    def start(self, epoch: int, joins: bool) -> None:
        """Begin, or join those that serve already."""
        self.epoch = epoch
        balancer = Balancer(Topology(RANKS, SLOTS), LAYERS, EXPERTS, policy=self.policy, max_moves=None)
        placed = None if joins else contiguous_placement(LAYERS, EXPERTS, RANKS, RANKS * SLOTS)
        transport = self.transport(list(range(RANKS)))
        weights = ExpertWeights(self.tensors)
        self.live = LiveBalancer(balancer, weights, transport, placed, pace=PACE, reload=self.reload)
        if joins:
            self.go_on(transport)
            self.step += 1  # the others were in the middle of it
            return
        for layer, row in enumerate(self.tensors):
            for expert, slots in self.live.slots_of(layer).items():
                row["w"][slots] = float(100 * layer + expert)

    def reload(self, layer: int, slot: int, expert: int) -> None:
        """As from a file."""
        value = torch.full((WIDTH,), float(100 * layer + expert))
        self.live.weights.staged(layer, slot)[: 4 * WIDTH].view(torch.float32).copy_(value)

    def transport(self, members: list[int]) -> Frail:
        return Frail(
            members, self.store, rank=self.rank, deadline_s=DEADLINE_S, connect_s=LIMIT_S, epoch=self.epoch
        )

    def go_on(self, transport: Frail) -> None:
        """Recover, and agree on the step to go on from."""
        members = transport.members
        if not self.live.recover(transport, Topology(len(members), SLOTS)):
            raise RuntimeError(f"did not recover: {self.live.reason}")
        self.step = -transport.lowest(-self.step)[0]

    def run(self, steps: int) -> None:
        while self.step < steps:
            self.arm()
            self.serve()
            if self.live.step() is State.DEGRADED:
                self.survive()
            self.check()
            self.step += 1
            if self.step % FAULT_EVERY == QUIET:
                self.pipe.send(("quiet", self.rank, os.getpid(), self.step, *usage()))
        self.pipe.send(
            ("done", self.rank, os.getpid(), self.live.executor.versions.tolist(), self.live.reason)
        )

    def arm(self) -> None:
        """Hand the fault of this step, if any, to who suffers it."""
        self.fault = next((fault for fault in self.todo if fault.step <= self.step), None)
        if self.fault is None:
            return
        if self.fault.kind in MOODS:
            self.todo.remove(self.fault)
            self.policy.mood = self.fault.kind  # of rank 0, which plans
            self.tell(self.fault, "serves on")
        elif self.rank == self.fault.victim and self.live.transport.fault is None:  # type: ignore[attr-defined]
            self.live.transport.fault = self.fault  # type: ignore[attr-defined]

    def serve(self) -> None:
        """Count a pass; the favourites wander."""
        draws = np.random.default_rng((self.rank, self.step))
        for layer in range(LAYERS):
            chosen = (draws.geometric(0.25, (16, 2)) + self.step // 40 + layer) % EXPERTS
            self.live.counter.add(layer, torch.from_numpy(chosen))

    def survive(self) -> None:
        if self.fault is None:
            raise RuntimeError(f"degraded without a fault: {self.live.reason}")
        fault, reason = self.fault, self.live.reason
        self.todo.remove(fault)
        self.check()
        members = [rank for rank in range(RANKS) if not (fault.gone and rank == fault.victim)]
        self.epoch += 1
        self.go_on(self.transport(members))
        self.tell(fault, reason)
        if not fault.gone:
            return
        for _ in range(REJOIN_AFTER):
            self.serve()
            if self.live.step() is State.DEGRADED:
                raise RuntimeError(f"degraded on three ranks: {self.live.reason}")
            self.check()
            self.step += 1
        self.epoch += 1
        self.go_on(self.transport(list(range(RANKS))))

    def tell(self, fault: Fault, reason: str) -> None:
        if self.rank == UNTOUCHED:
            self.pipe.send(("fault", fault, self.epoch + 1, reason))

    def check(self) -> None:
        """Slots hold what the map says, and the router reads the same map."""
        for layer, row in enumerate(self.tensors):
            for expert, slots in self.live.slots_of(layer).items():
                if not (row["w"][slots] == float(100 * layer + expert)).all():
                    raise RuntimeError(
                        f"step {self.step}, layer {layer}: a slot does not hold expert {expert}"
                    )
        held = self.live.executor.phy2log
        if not np.array_equal(self.live.maps.phy2log[:, : held.shape[1]].numpy(), held):
            raise RuntimeError(f"step {self.step}: the maps are not those that are held")


def usage() -> tuple[int, int, int]:
    """Bytes of memory, threads and open files of this process, once no plan is made and no group is left."""
    for thread in threading.enumerate():
        if thread.name in ("equipoise-plan", "equipoise-leave"):
            thread.join()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir("/proc/self/task")),
        len(os.listdir("/proc/self/fd")),
    )


def host(pipe: Any) -> None:
    """The store, in a process that nobody kills."""
    store = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=LIMIT_S), wait_for_workers=False)
    pipe.send(store.port)
    signal.pause()


def work(rank: int, port: int, pipe: Any, todo: list[Fault], steps: int, epoch: int, joins: bool) -> None:
    torch.set_num_threads(1)
    try:
        server = Server(rank, port, pipe, todo)
        server.start(epoch, joins)
        server.run(steps)
    except BaseException:
        pipe.send(("failed", rank, os.getpid(), traceback.format_exc()))
    signal.pause()  # whoever leaves first would cut off the others


class Soak:
    """The processes, and what they report."""

    def __init__(self, steps: int, seed: int) -> None:
        self.steps, self.todo = steps, faults(steps, seed)
        self.context = multiprocessing.get_context("fork")
        ours, theirs = self.context.Pipe()
        self.store = self.context.Process(target=host, args=(theirs,), daemon=True)
        self.store.start()
        self.port = ours.recv()
        self.pipes: dict[int, Any] = {}
        self.processes: dict[int, Any] = {}
        self.quiet: dict[int, list[tuple[int, ...]]] = {}
        self.findings: list[str] = []
        self.finished: list[Any] = []

    def begin(self, rank: int, todo: list[Fault], epoch: int, joins: bool) -> None:
        ours, theirs = self.context.Pipe(duplex=False)
        arguments = (rank, self.port, theirs, todo, self.steps, epoch, joins)
        self.processes[rank] = self.context.Process(target=work, args=arguments, daemon=True)
        self.processes[rank].start()
        theirs.close()
        self.pipes[rank] = ours

    def run(self) -> None:
        for rank in range(RANKS):
            self.begin(rank, list(self.todo), 0, False)
        while len(self.finished) < RANKS and not self.findings:
            ready = wait(list(self.pipes.values()), timeout=2 * LIMIT_S)
            if not ready:
                self.findings.append(f"nobody reported for {2 * LIMIT_S:.0f} s")
            for pipe in ready:
                self.hear(pipe)
        for process in (*self.processes.values(), self.store):
            process.kill()
            process.join()

    def hear(self, pipe: Any) -> None:
        try:
            what, *told = pipe.recv()
        except EOFError:  # a rank was killed: those that are left will say so
            self.pipes = {rank: other for rank, other in self.pipes.items() if other is not pipe}
            return
        if what == "quiet":
            _, pid, *numbers = told
            self.quiet.setdefault(pid, []).append(tuple(numbers))
        elif what == "fault":
            fault, epoch, reason = told
            where = (
                f" rank {fault.victim} at {fault.call} {fault.number}"
                if fault.kind not in MOODS
                else " planner"
            )
            print(f"step {fault.step}: {fault.kind}{where}: {reason[:60]}", flush=True)
            if fault.gone:
                self.replace(fault, epoch)
        elif what == "done":
            self.finished.append(told[2:])
        else:
            self.findings.append(f"rank {told[0]} failed: {told[2]}")

    def replace(self, fault: Fault, epoch: int) -> None:
        self.processes[fault.victim].kill()
        self.processes[fault.victim].join()
        later = [other for other in self.todo if other.step > fault.step]
        self.begin(fault.victim, later, epoch, True)

    def verdict(self) -> int:
        """Print what was found."""
        for pid, rows in self.quiet.items():
            (first, *before), (last, *after) = rows[0], rows[-1]
            if len(rows) < 2:
                continue
            print(
                f"process {pid}, steps {first} to {last}: memory {before[0] >> 20} -> {after[0] >> 20} MiB, "
                f"threads {before[1]} -> {after[1]}, files {before[2]} -> {after[2]}"
            )
            if after[0] > before[0] + MORE_MEMORY or after[1] > before[1] or after[2] > before[2]:
                self.findings.append(f"process {pid} grows: {rows}")
        if len({str(each) for each in self.finished}) > 1:
            self.findings.append(f"ranks ended differently: {self.finished}")
        if self.finished:
            print(
                f"{self.steps} steps, {len(self.todo)} faults, commits of each layer: {self.finished[0][0]}"
            )
        for finding in self.findings:
            print(f"FINDING: {finding}")
        print("nothing found" if not self.findings else f"{len(self.findings)} findings")
        return bool(self.findings)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("equipoise").setLevel(logging.ERROR)  # what is done on purpose is no news
    # Compiled once, before ranks are forked.
    plan(np.ones((1, 2, EXPERTS)), Topology(RANKS, SLOTS), policy="greedy")
    soak = Soak(arguments.steps, arguments.seed)
    soak.run()
    return soak.verdict()


if __name__ == "__main__":
    sys.exit(main())
