"""Layers that move between forked ranks over gloo: contents equal the committed map, whatever dies."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows imports torch

from forked import run

from equipoise import ArgumentError, Held, Placement, Topology
from equipoise.runtime.executor import Executor
from equipoise.runtime.transfer import transfer_plan
from equipoise.runtime.transport import TorchTransport, TransportError
from equipoise.runtime.weights import ExpertWeights


def content(layer, expert, name, shape, dtype):
    """What an expert's tensor holds; every bit depends on layer, expert and name."""
    generator = torch.Generator().manual_seed(1000 * layer + 10 * expert + len(name))
    size = int(np.prod(shape, dtype=int)) * torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 128, (size,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).view(shape)


SHAPES = {
    "weights": {"up": ((6, 4), torch.float32), "down": ((4, 6), torch.float32)},
    "half": {"up": ((5, 3), torch.bfloat16), "bias": ((3,), torch.float32)},
    "scaled": {"up": ((7,), torch.int8), "scale": ((), torch.float32)},
    "eighths": {"up": ((3, 3), torch.float8_e4m3fn), "scale": ((3,), torch.bfloat16)},
}


def make(layers, slots, kind):
    return [
        {name: torch.zeros(slots, *shape, dtype=dtype) for name, (shape, dtype) in SHAPES[kind].items()}
        for _ in range(layers)
    ]


def fill(tensors, phy2log, rank, slots, kind):
    for layer, row in enumerate(tensors):
        for name, (shape, dtype) in SHAPES[kind].items():
            for slot in range(slots):
                expert = int(phy2log[layer, rank * slots + slot])
                if expert >= 0:
                    row[name][slot] = content(layer, expert, name, shape, dtype)


def equal(tensors, phy2log, rank, slots, kind):
    """Whether every slot holds what the map says, bit for bit."""
    for layer, row in enumerate(tensors):
        for name, (shape, dtype) in SHAPES[kind].items():
            for slot in range(slots):
                expert = int(phy2log[layer, rank * slots + slot])
                wanted = content(layer, expert, name, shape, dtype)
                if not torch.equal(
                    row[name][slot].reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8)
                ):
                    return False
    return True


def maps(seed, layers, ranks, slots, experts, count):
    rng = np.random.default_rng(seed)
    spare = ranks * slots - experts
    return [
        np.stack(
            [
                rng.permutation(np.r_[np.arange(experts), rng.integers(0, experts, spare)])
                for _ in range(layers)
            ]
        )
        for _ in range(count)
    ]


def move_about(rank, num_ranks, store, layers, slots, experts, kind):
    """Several re-placements in a row; after each layer all slots are compared."""
    first, *later = maps(7, layers, num_ranks, slots, experts, 4)
    tensors = make(layers, slots, kind)
    fill(tensors, first, rank, slots, kind)
    addresses = [tensor.data_ptr() for row in tensors for tensor in row.values()]
    executor = Executor(
        ExpertWeights(tensors), TorchTransport(list(range(num_ranks)), store, deadline_s=20.0), first
    )
    good = True
    for new in later:
        plan = transfer_plan(
            Held(executor.phy2log, num_ranks, experts),
            Placement(new, num_ranks, experts),
            Topology(num_ranks, slots),
        )
        for transfer in plan.layers:
            good &= executor.move(transfer, new[transfer.layer])
            good &= equal(tensors, executor.phy2log, rank, slots, kind)
    good &= addresses == [tensor.data_ptr() for row in tensors for tensor in row.values()]
    return bool(good), executor.phy2log.tolist() == later[-1].tolist()


@pytest.mark.parametrize(
    ("ranks", "layers", "slots", "experts", "kind"),
    [
        (2, 1, 1, 2, "weights"),
        (2, 3, 4, 5, "half"),
        (2, 2, 6, 3, "scaled"),
        (2, 2, 3, 6, "eighths"),
        (4, 2, 3, 8, "weights"),
        (4, 3, 2, 8, "half"),
        (4, 2, 5, 6, "scaled"),
        (4, 1, 4, 16, "eighths"),
        (3, 2, 4, 7, "weights"),
        (1, 2, 4, 3, "half"),
    ],
)
def test_slots_equal_the_map_after_every_layer(ranks, layers, slots, experts, kind):
    assert run(ranks, move_about, layers, slots, experts, kind) == [(True, True)] * ranks


class Hurt(TorchTransport):
    """Dies, hangs or drops its vote at one call."""

    def set(self, what, at, number):
        self.what, self.at, self.number, self.calls = what, at, number, 0
        return self

    def hurt(self, at):
        if not self.what or at != self.at:
            return
        self.calls += 1
        if self.calls == self.number:
            if self.what == "drop":
                raise TransportError("dropped")
            os.kill(os.getpid(), signal.SIGKILL if self.what == "kill" else signal.SIGSTOP)

    def exchange(self, send, receive):
        self.hurt("round")
        super().exchange(send, receive)

    def lowest(self, *values):
        self.hurt("vote")
        found = super().lowest(*values)
        self.hurt("commit")
        return found


FOREVER = 1000.0  # seconds; longer than a test may take: whoever waits for such a deadline fails it
SHORT = 2.0  # seconds, for ranks that hang, which nothing but a deadline can tell
SLACK = 1.5  # seconds that a busy machine may take on top


def beside_a_bystander(layers, ranks, slots):
    """Two maps of 14 experts: the last rank keeps experts of its own, and has no part in what moves."""
    own = np.tile(np.arange(10, 10 + slots), (layers, 1))
    return [np.hstack([each, own]) for each in maps(3, layers, ranks - 1, slots, 10, 2)]


def suffer(rank, num_ranks, store, victim, what, at, number):
    """Move all layers; the victim is hurt on the way. What the survivors hold, before and after they meet again."""
    layers, slots, experts, kind = 3, 4, 14, "half"
    first, new = beside_a_bystander(layers, num_ranks, slots)
    tensors = make(layers, slots, kind)
    fill(tensors, first, rank, slots, kind)
    transport = Hurt(list(range(num_ranks)), store, deadline_s=SHORT if what == "stop" else FOREVER)
    transport.set(what if rank == victim else "", at, number)
    executor = Executor(ExpertWeights(tensors), transport, first)
    plan = transfer_plan(
        Held(first, num_ranks, experts), Placement(new, num_ranks, experts), Topology(num_ranks, slots)
    )
    took = None
    for transfer in plan.layers:
        start = time.monotonic()
        try:
            executor.move(transfer, new[transfer.layer])
        except TransportError:
            transport.abort()
            took = time.monotonic() - start
            break
    whole = equal(tensors, executor.phy2log, rank, slots, kind)
    left = [r for r in range(num_ranks) if r != victim or what == "drop"]
    meet = TorchTransport(left, store, deadline_s=20.0, epoch=1)
    highest = -np.array(meet.lowest(*(-executor.versions)))
    behind = executor.roll_forward(highest)
    return {
        "took": took,
        "whole": whole,
        "behind": behind,
        "whole after": equal(tensors, executor.phy2log, rank, slots, kind),
        "versions": executor.versions.tolist(),
    }


def test_roles_and_rounds_of_the_cases_below():
    first, new = beside_a_bystander(3, 4, 4)
    plan = transfer_plan(Held(first, 4, 14), Placement(new, 4, 14), Topology(4, 4))
    assert [transfer.num_rounds for transfer in plan.layers] == ROUNDS
    for transfer in plan.layers:
        assert 1 in transfer.fetches[:, 1]
        assert 3 not in transfer.fetches[:, [1, 3]]


# Every rank calls every round, also one in which it has no part.
ROUNDS = [3, 4, 2]


VICTIMS = (0, 1, 3)
CALLS = [
    *(("round", number) for number in range(1, sum(ROUNDS) + 1)),
    *((at, number) for at in ("vote", "commit") for number in (1, 2, 3)),
]


@pytest.mark.parametrize(
    ("what", "at", "number", "victim"),
    [
        *(("kill", *call, victim) for call in CALLS for victim in VICTIMS),
        # Only a deadline tells of a rank that hangs: one of them a call, in turn.
        *(
            pytest.param("stop", *call, VICTIMS[index % 3], marks=pytest.mark.waits)
            for index, call in enumerate(CALLS)
        ),
        *(("drop", at, 2, victim) for at in ("commit", "vote") for victim in VICTIMS),
    ],
)
def test_survivors_notice_hold_what_their_maps_say_and_agree(what, at, number, victim):
    answers = run(4, suffer, victim, what, at, number, gone=None if what == "drop" else victim)
    left = [answer for rank, answer in enumerate(answers) if rank != victim or what == "drop"]
    assert what == "drop" or answers[victim] is None
    assert len(left) == 3 + (what == "drop")
    if (at, number) != ("commit", 3):  # the last call of all: nobody has to notice
        assert all(answer["took"] is not None for answer in left)
        assert what != "stop" or max(answer["took"] for answer in left) < SHORT + SLACK
    assert all(answer["whole"] and answer["whole after"] and answer["behind"] == [] for answer in left)
    assert len({tuple(answer["versions"]) for answer in left}) == 1
    if what == "drop" and at == "commit":
        assert left[0]["versions"] == [1, 1, 0]  # the one that heard no result rolled forward


def lose(rank, num_ranks, store, reloads):
    """Two of three ranks are left; what nobody holds is loaded, or the layer stays."""
    layers, slots, experts, kind = 2, 4, 8, "scaled"
    old = np.array([[0, 1, 2, 3, 4, 5, 0, 1]] * layers)
    new = np.array([[0, 1, 2, 6, 3, 7, 4, 5]] * layers)
    tensors = make(layers, slots, kind)
    fill(tensors, old, rank, slots, kind)
    weights = ExpertWeights(tensors)

    def load(layer, slot, expert):
        source = [{n: content(layer, expert, n, s, d)[None].clone() for n, (s, d) in SHAPES[kind].items()}]
        ExpertWeights(source).pack(0, 0, weights.staged(layer, slot))

    executor = Executor(weights, TorchTransport([0, 1], store, deadline_s=20.0), old)
    plan = transfer_plan(Held(old, 2, experts), Placement(new, 2, experts), Topology(2, slots))
    reload = load if reloads[rank] else None
    moved = [executor.move(transfer, new[transfer.layer], reload) for transfer in plan.layers]
    return moved, equal(tensors, executor.phy2log, rank, slots, kind)


@pytest.mark.parametrize(("reloads", "moved"), [((1, 1), True), ((1, 0), False), ((0, 0), False)])
def test_experts_that_nobody_holds_are_reloaded_or_nobody_commits(reloads, moved):
    assert run(2, lose, reloads) == [([moved, moved], True)] * 2


def test_weights_that_cannot_be_moved_are_refused():
    base = torch.zeros(4, 8)
    for tensors, words in [
        ([], "at least one layer"),
        ([{}], "at least one tensor"),
        ([{"a": torch.zeros(4, 2), "b": torch.zeros(3, 2)}], "first axis"),
        ([{"a": torch.tensor(1.0)}], "first axis"),
        ([{"a": torch.zeros(4, 1).expand(4, 5)}], "stride"),
        ([{"a": torch.zeros(1, 5).expand(4, 5)}], "stride"),
        ([{"a": torch.arange(10.0).unfold(0, 4, 1)}], "stride"),
        ([{"a": torch.zeros(100).as_strided((3, 4, 4), (30, 1, 1))}], "stride"),
        ([{"a": base, "b": base}], "overlap"),
        ([{"a": base[:, :5], "b": base[:, 4:]}], "overlap"),
        ([{"a": base}, {"a": base}], "overlap"),
        ([{"a": torch.zeros(4, 0)}], "empty"),
        ([{"a": torch.zeros(4, 2), "b": torch.zeros(4, 2, device="meta")}], "meta"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            ExpertWeights(tensors)


def test_tensors_that_are_not_contiguous_move_too():
    weights = ExpertWeights([{"up": torch.arange(24.0).view(2, 3, 4).transpose(1, 2)}])
    flat = torch.empty(weights.expert_bytes(0), dtype=torch.uint8)
    weights.pack(0, 1, flat)
    weights.staged(0, 0).copy_(flat)
    weights.commit(0, [0])
    weights.pack(0, 0, weights.staged(0, 1))
    assert torch.equal(weights.staged(0, 1), flat)


def parameter():
    return torch.nn.Parameter(torch.arange(12.0).view(3, 4))


def inference_tensor():
    with torch.inference_mode():
        return torch.arange(12.0).view(3, 4)


@pytest.mark.parametrize("make", [parameter, inference_tensor])
@pytest.mark.parametrize("serving", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_weights_move_whatever_torch_thinks_of_gradients(make, serving):
    tensor = make()
    before = tensor.data_ptr(), tensor.requires_grad
    weights = ExpertWeights([{"a": tensor}])
    with serving():
        weights.pack(0, 2, weights.staged(0, 0))
        weights.commit(0, [0])
    assert tensor.tolist() == [[8, 9, 10, 11], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert (tensor.data_ptr(), tensor.requires_grad) == before
