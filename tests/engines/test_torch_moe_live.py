"""A model whose experts move while it serves gives the bits of the model on one rank, in every pass."""

from __future__ import annotations

import time
from datetime import timedelta
from functools import cache

import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows imports torch

import torch.distributed as dist

from equipoise import Balancer, EquipoiseError, Topology, contiguous_placement
from equipoise.engines.torch_moe import torch_moe
from equipoise.runtime.live import LiveBalancer, Pace, State
from equipoise.runtime.transport import TorchTransport
from equipoise.runtime.weights import ExpertWeights
from moe_blocks import EXPERTS, make_model, real_model
from moe_ranks import Ranks

LAYERS, WIDTH, SLOTS = 4, 64, 4
PASSES = 128


def tokens_of(number, rank):
    """1 to 128 tokens on rank 0, other numbers on the others, also none; what they are about changes twice."""
    count = (number + 37 * rank) % 129 if rank else number % 128 + 1
    generator = torch.Generator().manual_seed(1000 * number + rank)
    about = torch.randn(WIDTH, generator=torch.Generator().manual_seed(number // 43))
    return torch.randn(count, WIDTH, generator=generator) + 2 * about


def bits(tensor):
    return tensor.view(torch.uint8).numpy().tobytes()


@cache
def whole():
    model = make_model(layers=LAYERS)
    torch_moe(model, contiguous_placement(LAYERS, EXPERTS, 1))
    return model


@cache
def alone(number, rank):
    return bits(whole()(tokens_of(number, rank)))


def begin(layers, transport, placement, pace, **more):
    balancer = Balancer(
        Topology(transport.num_ranks, SLOTS), LAYERS, EXPERTS, policy="greedy", max_moves=None
    )
    live = LiveBalancer(balancer, ExpertWeights(layers.tensors()), transport, placement, pace=pace, **more)
    layers.follow(live.maps, live.counter)
    return live


def serve(rank, folder, layers_per_step):
    """Bits of every pass, the state before it, and layers committed by then."""
    start = contiguous_placement(LAYERS, EXPERTS, 4, 4 * SLOTS)
    model = make_model(layers=LAYERS)
    layers = torch_moe(model, start)
    transport = TorchTransport(list(range(4)), dist.FileStore(str(folder / "store"), 4))
    pace = Pace(interval=4, ask_every=1, layers_per_step=layers_per_step)
    live = begin(layers, transport, start, pace)
    addresses = [tensor.data_ptr() for layer in layers.tensors() for tensor in layer.values()]
    passes = []
    for number in range(PASSES):
        layers.dispatch_by(("even", "batch")[number % 2])
        passes.append(
            (bits(model(tokens_of(number, rank))), live.state.value, live.executor.versions.tolist())
        )
        live.step()
    same = addresses == [tensor.data_ptr() for layer in layers.tensors() for tensor in layer.values()]
    return passes, same, live.state.value


@pytest.mark.parametrize("layers_per_step", [1, LAYERS])
def test_before_during_and_after_a_replacement(tmp_path, layers_per_step):
    ranks = Ranks(4, tmp_path, serve)
    try:
        answers = ranks.ask(tmp_path, layers_per_step)
    finally:
        ranks.close()
    for rank, (passes, same_addresses, state) in enumerate(answers):
        assert [found for found, *_ in passes] == [alone(number, rank) for number in range(PASSES)]
        assert same_addresses
        assert state != "degraded"
    states = {state for _, state, _ in answers[0][0]}
    commits = [versions for *_, versions in answers[0][0]]
    assert min(commits[-1]) >= 3
    if layers_per_step < LAYERS:  # passes were served between the commits of one plan
        assert "moving" in states
        assert any(min(versions) < max(versions) for versions in commits)


def loader(full, weights):
    """Loads a lost expert from the whole model."""

    def load(layer, slot, expert):
        one = {
            name: getattr(full[layer].experts, name)[expert : expert + 1]
            for name in ("gate_up_proj", "down_proj")
        }
        ExpertWeights([one]).pack(0, 0, weights.staged(layer, slot))

    return load


def group_of(members, rank, store, epoch):
    room = dist.PrefixStore(f"model/{epoch}", store)
    return dist.ProcessGroupGloo(room, members.index(rank), len(members), timedelta(seconds=20))


def breathe(rank, folder, layers_per_step):
    """Four ranks, three, four again: bits of every pass, and whether every meeting went well."""
    store = dist.FileStore(str(folder / "store"), 4)
    pace = Pace(interval=4, ask_every=1, layers_per_step=layers_per_step)
    start = contiguous_placement(LAYERS, EXPERTS, 4, 4 * SLOTS)
    full, model = make_model(layers=LAYERS), make_model(layers=LAYERS)
    layers = torch_moe(model, start)
    live = begin(layers, TorchTransport(list(range(4)), store), start, pace)
    live.reload = loader(full, live.weights)
    passes, met = [], []
    for epoch, members in enumerate([[0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3]]):
        if rank not in members:
            continue
        if epoch:
            transport = TorchTransport(members, store, deadline_s=20.0, epoch=epoch)
            group = group_of(members, rank, store, epoch)
            if rank == 3:  # it comes back with nothing
                model = make_model(layers=LAYERS)
                layers = torch_moe(model, start, group)
                for tensors in layers.tensors():
                    for tensor in tensors.values():
                        tensor.fill_(torch.nan)
                live = begin(layers, transport, None, pace)
            layers.join(group)
            met.append(live.recover(transport, Topology(len(members), SLOTS)))
        for number in range(24 * epoch, 24 * epoch + 24):
            layers.dispatch_by(("batch", "even")[number % 2])
            passes.append((number, bits(model(tokens_of(number, rank)))))
            live.step()
            met.append(live.state is not State.DEGRADED or live.reason)
    return passes, met, live.executor.phy2log.tolist(), live.executor.versions.tolist()


@pytest.mark.parametrize("layers_per_step", [1, LAYERS])
def test_four_ranks_three_ranks_four_ranks(tmp_path, layers_per_step):
    ranks = Ranks(4, tmp_path, breathe)
    try:
        answers = ranks.ask(tmp_path, layers_per_step)
    finally:
        ranks.close()
    for rank, (passes, met, phy2log, versions) in enumerate(answers):
        assert len(passes) == (48 if rank == 3 else 72)
        assert all(found == alone(number, rank) for number, found in passes)
        assert set(met) == {True}
        assert phy2log == answers[0][2]
        assert versions == answers[0][3]
    assert {slot // SLOTS for slot, expert in enumerate(answers[0][2][0]) if expert >= 0} == {0, 1, 2, 3}


def lose(rank, folder):
    """What each rank says of a lost expert that rank 0 alone has tokens for, and how long it takes to."""
    model = make_model(layers=LAYERS)
    torch_moe(model, contiguous_placement(LAYERS, EXPERTS, 4))
    batch = tokens_of(0 if rank == 0 else 5, rank)
    wanted = model(batch)
    last = model[-1].experts
    kept = last.logcnt.clone(), last.log2phy.clone()
    last.logcnt[3] = 0
    last.log2phy[3] = -1
    start = time.monotonic()
    said = ""
    try:
        model(batch if rank == 0 else batch[:0])
    except EquipoiseError as error:
        said = str(error)
    took = time.monotonic() - start
    last.logcnt.copy_(kept[0])
    last.log2phy.copy_(kept[1])
    return said, took, torch.equal(model(batch), wanted)


def test_a_lost_expert_is_an_error_on_all_ranks_and_serving_goes_on_once_it_is_back(tmp_path):
    ranks = Ranks(4, tmp_path, lose)
    try:
        answers = ranks.ask(tmp_path)
    finally:
        ranks.close()
    for said, took, again in answers:
        assert said.startswith("MoE layer 3: no rank holds expert 3:")
        assert took < 20  # nobody waited for the deadline of the group, which is a minute
        assert again


def test_many_lost_experts_are_named_in_one_line():
    model = make_model(layers=1)
    torch_moe(model, contiguous_placement(1, EXPERTS, 1))
    model[0].experts.logcnt[:] = 0
    with pytest.raises(EquipoiseError, match=r"experts 0, 1, 2, 3, 4, 5, 6, 7: load") as caught:
        model(torch.zeros(3, WIDTH))
    assert "\n" not in str(caught.value)


def serve_real(rank, folder, name):
    from moe_blocks import LAYERS as layers_of_real

    start = contiguous_placement(layers_of_real, EXPERTS, 4, 4 * SLOTS)
    model = real_model(name)
    layers = torch_moe(model, start)
    balancer = Balancer(Topology(4, SLOTS), layers_of_real, EXPERTS, policy="greedy", max_moves=None)
    transport = TorchTransport(list(range(4)), dist.FileStore(str(folder / "store"), 4))
    live = LiveBalancer(
        balancer, ExpertWeights(layers.tensors()), transport, start, pace=Pace(interval=3, ask_every=1)
    )
    layers.follow(live.maps, live.counter)
    passes = []
    for number in range(24):
        passes.append(bits(model(text_of(number, rank)).logits))
        live.step()
    return passes, live.executor.versions.tolist()


def text_of(number, rank):
    generator = torch.Generator().manual_seed(100 * number + rank)
    return torch.randint(
        32 * (number // 12), 32 * (number // 12) + 32, (1, 1 + 5 * number), generator=generator
    )


@pytest.mark.parametrize("name", ["Qwen3Moe", "Mixtral", "Olmoe"])
def test_models_of_transformers_while_their_experts_move(name, tmp_path):
    from moe_blocks import LAYERS as layers_of_real

    model = real_model(name)
    torch_moe(model, contiguous_placement(layers_of_real, EXPERTS, 1))
    ranks = Ranks(4, tmp_path, serve_real)
    try:
        answers = ranks.ask(tmp_path, name)
    finally:
        ranks.close()
    for rank, (passes, versions) in enumerate(answers):
        assert passes == [bits(model(text_of(number, rank)).logits) for number in range(24)]
        assert min(versions) >= 2
