"""A model that is expert parallel gives the bits of the model on one rank, wherever its experts are."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows imports torch

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import equipoise as eq
from equipoise import ArgumentError, Placement, contiguous_placement
from equipoise.dispatch.maps import DeviceMaps
from equipoise.engines import torch_moe as engine
from equipoise.engines.torch_moe import batch, torch_moe
from moe_blocks import EXPERTS, LAYERS, TOP_K, Block, make_model, real_model
from moe_ranks import Ranks

SIZES = ((64, 32), (20, 12), (36, 10))  # width of the model and of an expert
TYPES = (torch.float32, torch.bfloat16)
DISPATCH = st.sampled_from(["even", "batch", "activated"])


def make_tokens(rank, count, width, dtype):
    # Some tokens alike: experts with many and with single tokens.
    generator = torch.Generator().manual_seed(100 * count + rank)
    return torch.randn(count, width, generator=generator).round(decimals=1).to(dtype)


def on_rank(rank, phy2log, num_ranks, counts, size, dtype, dispatch="even"):
    """This rank's output, as bytes."""
    model = make_model(*size, dtype)
    torch_moe(model, Placement(phy2log, num_ranks, EXPERTS), dispatch=dispatch)
    output = model(make_tokens(rank, counts[rank], size[0], dtype))
    return output.view(torch.uint8).numpy().tobytes()


def on_one_rank(rank, counts, size, dtype):
    row = np.tile(np.arange(EXPERTS), (LAYERS, 1))
    return on_rank(rank, row, 1, counts, size, dtype)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    started = {count: Ranks(count, folder, on_rank) for count in (2, 4)}
    yield started
    for each in started.values():
        each.close()


@st.composite
def cases(draw, num_ranks):
    """A legal placement, twins and several replicas included, and how many tokens each rank has."""
    spare = draw(st.integers(0, 3)) * num_ranks
    rows = []
    for _ in range(LAYERS):
        extra = draw(st.lists(st.integers(0, EXPERTS - 1), min_size=spare, max_size=spare))
        rows.append(draw(st.permutations([*range(EXPERTS), *extra])))
    counts = draw(st.lists(st.integers(0, 128) | st.integers(0, 3), min_size=num_ranks, max_size=num_ranks))
    return np.array(rows), counts


@pytest.mark.parametrize("num_ranks", [2, 4])
@settings(max_examples=60)
@given(data=st.data())
def test_any_placement_gives_the_bits_of_one_rank(ranks, num_ranks, data):
    phy2log, counts = data.draw(cases(num_ranks))
    size, dtype = data.draw(st.sampled_from(SIZES)), data.draw(st.sampled_from(TYPES))
    found = ranks[num_ranks].ask(phy2log, num_ranks, counts, size, dtype, data.draw(DISPATCH))
    assert found == [on_one_rank(rank, counts, size, dtype) for rank in range(num_ranks)]


@pytest.mark.parametrize("tokens", range(1, 129))
def test_one_to_128_tokens(ranks, tokens):
    rng = np.random.default_rng(tokens)
    phy2log = np.stack([rng.permutation(np.r_[:EXPERTS, rng.integers(0, EXPERTS, 4)]) for _ in range(LAYERS)])
    wanted = [on_one_rank(rank, [tokens] * 4, SIZES[0], torch.float32) for rank in range(4)]
    dispatch = ("even", "batch", "activated")[tokens % 3]
    assert ranks[4].ask(phy2log, 4, [tokens] * 4, SIZES[0], torch.float32, dispatch) == wanted


@settings(max_examples=40)
@given(data=st.data())
def test_any_placement_on_one_rank(data):
    phy2log, counts = data.draw(cases(1))
    size = data.draw(st.sampled_from(SIZES))
    found = on_rank(0, phy2log, 1, counts, size, torch.float32, data.draw(DISPATCH))
    assert found == on_one_rank(0, counts, size, torch.float32)


def test_is_what_the_block_itself_computes():
    model, tokens = make_model(), make_tokens(0, 50, 64, torch.float32)
    wanted = model(tokens)
    torch_moe(model, contiguous_placement(LAYERS, EXPERTS, 1))
    torch.testing.assert_close(model(tokens), wanted)


class Maps:
    """Stands in for `equipoise.runtime`'s: tensors wider than the placement needs, changed in place."""

    def __init__(self, placement):
        shape = (LAYERS, EXPERTS, 16)
        self.phy2log = torch.full((LAYERS, 40), -1)
        self.log2phy, self.logcnt = torch.full(shape, -1), torch.zeros(shape[:2], dtype=torch.int64)
        self.commit(placement)

    def commit(self, placement):
        self.phy2log[:, : placement.num_slots] = torch.tensor(placement.phy2log)
        self.log2phy[:] = -1
        self.log2phy[..., : placement.log2phy.shape[2]] = torch.tensor(placement.log2phy)
        self.logcnt[:] = torch.tensor(placement.logcnt)


class Counter:
    def __init__(self):
        self.counts = torch.zeros(LAYERS, EXPERTS, dtype=torch.int64)

    def add(self, layer, topk):
        self.counts[layer] += torch.bincount(topk.flatten(), minlength=EXPERTS)


def moved(rank, phy2log, other, tokens):
    """Outputs before and after slots and maps were changed in place, and what was counted."""
    before, after = (Placement(rows, 2, EXPERTS) for rows in (phy2log, other))
    full, model = make_model(), make_model()
    layers = torch_moe(model, before)
    maps, counter = Maps(before), Counter()
    layers.follow(maps, counter)
    batch = make_tokens(rank, tokens, 64, torch.float32)
    first = model(batch)
    for layer, tensors in enumerate(layers.tensors()):
        for name, tensor in tensors.items():
            rows = torch.tensor(after.phy2log[layer].reshape(2, -1)[rank])
            tensor.copy_(getattr(full[layer].experts, name)[rows])
    stale = model(batch)
    maps.commit(after)
    return torch.equal(first, model(batch)), torch.equal(first, stale), counter.counts.sum(dim=1).tolist()


def test_slots_and_maps_change_in_place(ranks):
    rows = [np.tile(np.roll(np.r_[:EXPERTS, 3, 5], shift), (LAYERS, 1)) for shift in (0, 3)]
    started = Ranks(2, ranks[2].folder / "moved", moved)
    try:
        for same, stale, counted in started.ask(*rows, 33):
            assert same
            assert not stale  # weights moved and maps not: another result
            assert counted == [3 * 33 * TOP_K] * LAYERS
    finally:
        started.close()


def chosen_on(rank, tokens):
    generator = torch.Generator().manual_seed(rank)
    weight = torch.linspace(1, 4, EXPERTS) ** 2
    return torch.multinomial(weight.expand(tokens, -1), TOP_K, generator=generator)


def splits(rank, phy2log, other, tokens, num_ranks=4):
    """Slots of a layer's tokens by the batch's load, before and after its map was changed in place."""
    layers = torch_moe(make_model(), Placement(phy2log, num_ranks, EXPERTS), dispatch="batch")
    maps = Maps(Placement(phy2log, num_ranks, EXPERTS))
    layers.follow(maps, Counter())
    found = []
    for rows in (phy2log, other):
        maps.commit(Placement(rows, num_ranks, EXPERTS))
        found.append(batch(chosen_on(rank, tokens[rank]), layers._layers[0]).numpy())
    return found


@pytest.mark.parametrize("tokens", [[200, 3, 0, 90], [0, 0, 0, 1], [0] * 4])
def test_all_ranks_split_the_batch_by_its_load(ranks, tokens):
    rng = np.random.default_rng(2)
    rows = [np.stack([rng.permutation(np.r_[:EXPERTS, 0:8]) for _ in range(LAYERS)]) for _ in range(2)]
    started = Ranks(4, ranks[4].folder / f"splits{sum(tokens)}", splits)
    try:
        answers = started.ask(*rows, tokens)
    finally:
        started.close()
    chosen = np.concatenate([chosen_on(rank, count).numpy() for rank, count in enumerate(tokens)])
    counts = np.bincount(chosen.ravel(), minlength=EXPERTS)
    for number, phy2log in enumerate(rows):
        placement = Placement(phy2log[:1], 4, EXPERTS)
        slots = np.concatenate([answer[number] for answer in answers])
        assert (placement.phy2log[0][slots] == chosen).all()
        wanted = eq.split_batch(counts[None], placement)[0] * counts[placement.phy2log[0]]
        taken = np.bincount(slots.ravel(), minlength=placement.num_slots)
        assert (np.abs(taken - wanted) <= 4 + 1e-9).all()  # one token a rank


def with_maps_on_a_device(job, *arguments):
    """A job on a rank, as where tensors are on a device: on none do compiled kernels read the placement."""
    known, engine.COMPILED = engine.COMPILED, ()
    try:
        return job(*arguments)
    finally:
        engine.COMPILED = known


def both_ways(rank, phy2log, other, num_ranks, counts, size, dtype):
    """Slots and outputs with the compiled kernels, and with `DeviceMaps` on the processor."""
    jobs = (
        (splits, rank, phy2log, other, counts, num_ranks),
        (on_rank, rank, phy2log, num_ranks, counts, size, dtype, "batch"),
    )
    return [(job(*given), with_maps_on_a_device(job, *given)) for job, *given in jobs]


@pytest.fixture(scope="module")
def ranks_both_ways(tmp_path_factory):
    started = {count: Ranks(count, tmp_path_factory.mktemp(f"both{count}"), both_ways) for count in (2, 4)}
    yield started
    for each in started.values():
        each.close()


@pytest.mark.parametrize("num_ranks", [2, 4])
@settings(max_examples=40)
@given(data=st.data())
def test_maps_on_a_device_give_the_same_bits(ranks_both_ways, num_ranks, data):
    """Shares have other last bits there: a token that lies at the edge of two shares may take the other slot."""
    phy2log, counts = data.draw(cases(num_ranks))
    other = phy2log[:, data.draw(st.permutations(range(phy2log.shape[1])))]
    size, dtype = data.draw(st.sampled_from(SIZES)), data.draw(st.sampled_from(TYPES))
    for slots, outputs in ranks_both_ways[num_ranks].ask(phy2log, other, num_ranks, counts, size, dtype):
        assert outputs[0] == outputs[1]
        for rows, compiled, device in zip((phy2log[0], other[0]), *slots, strict=True):
            assert np.array_equal(rows[compiled], rows[device])
            taken = [np.bincount(each.ravel(), minlength=len(rows)) for each in (compiled, device)]
            assert np.abs(taken[0] - taken[1]).max() <= 1


def test_maps_on_a_device_give_the_same_slots_where_no_token_lies_at_an_edge(ranks_both_ways):
    rng = np.random.default_rng(5)
    rows = [np.stack([rng.permutation(np.r_[:EXPERTS, 0:8]) for _ in range(LAYERS)]) for _ in range(2)]
    for slots, outputs in ranks_both_ways[4].ask(*rows, 4, [97, 3, 41, 120], SIZES[0], torch.float32):
        assert outputs[0] == outputs[1]
        for compiled, device in zip(*slots, strict=True):
            assert np.array_equal(compiled, device)


def test_maps_are_copied_only_where_a_layer_has_changed():
    phy2log = np.stack([np.r_[:EXPERTS, 3, 5]] * LAYERS)
    layers = torch_moe(make_model(), Placement(phy2log, 1, EXPERTS), dispatch="batch")
    (layer, _) = layers._layers

    def found():
        return with_maps_on_a_device(layer.current)

    first = found()
    assert isinstance(first, DeviceMaps)
    assert found() is first
    layer.phy2log = torch.tensor(np.roll(phy2log[0], 1))
    assert found() is not first
    assert found().log2phy[0, 3].tolist() == [4, 9, -1]


def other_experts(change):
    model = make_model()
    change(model[1])
    return model


def transpose(block):
    block.experts.gate_up_proj = nn.Parameter(block.experts.gate_up_proj.mT.contiguous())


def add_bias(block):
    block.experts.gate_up_proj_bias = nn.Parameter(torch.zeros(EXPERTS, 64))


def clamp(block):
    plain = block.experts.forward
    block.experts.forward = lambda *given: plain(*given).clamp(-0.01, 0.01)


@pytest.mark.parametrize(
    ("model", "placement", "dispatch", "message"),
    [
        (nn.Linear(3, 3), (LAYERS, EXPERTS, 1), "even", "no experts"),
        (make_model(), (3, EXPERTS, 1), "even", "2 MoE layers"),
        (make_model(), (LAYERS, EXPERTS, 2), "even", "the group 1 ranks"),
        (make_model(), (LAYERS, 7, 1), "even", "has 8 experts, the placement 7"),
        (make_model(), (LAYERS, EXPERTS, 1), "odd", "one of even, batch, activated, got 'odd'"),
        (other_experts(add_bias), (LAYERS, EXPERTS, 1), "even", "gate_up_proj_bias"),
        (other_experts(clamp), (LAYERS, EXPERTS, 1), "even", "something else than SwiGLU"),
    ],
)
def test_refuses_before_it_changes_anything(model, placement, dispatch, message):
    layers, experts, ranks = placement
    names = sorted(name for name, _ in model.named_parameters())
    with pytest.raises(ArgumentError, match=message):
        torch_moe(model, contiguous_placement(layers, experts, ranks), dispatch=dispatch)
    assert sorted(name for name, _ in model.named_parameters()) == names


def test_refuses_another_layout():
    torch.manual_seed(0)
    model = nn.Sequential(Block(20, 12), Block(20, 12))
    transpose(model[1])
    with pytest.raises(ArgumentError, match=r"MoE layer 1 .* must have \[E, 2f, d\]"):
        torch_moe(model, contiguous_placement(LAYERS, EXPERTS, 1))


def test_does_not_train():
    model = make_model()
    torch_moe(model, contiguous_placement(LAYERS, EXPERTS, 1))
    with pytest.raises(ArgumentError, match="no_grad"):
        model(torch.zeros(3, 64, requires_grad=True))


def serve_real(rank, name, phy2log, num_ranks, tokens):
    model = real_model(name)
    torch_moe(model, Placement(phy2log, num_ranks, EXPERTS))
    generator = torch.Generator().manual_seed(rank)
    text = torch.randint(0, 64, (1, tokens), generator=generator)
    return model(text).logits.numpy().tobytes()


@pytest.mark.parametrize("name", ["Qwen3Moe", "Mixtral", "Olmoe"])
def test_models_of_transformers(name, tmp_path):
    real_model(name)
    model, text = real_model(name), torch.arange(40)[None]
    wanted = model(text).logits
    torch_moe(model, contiguous_placement(LAYERS, EXPERTS, 1))
    torch.testing.assert_close(model(text).logits, wanted, rtol=1e-4, atol=1e-5)
    alone = np.tile(np.arange(EXPERTS), (LAYERS, 1))
    rng = np.random.default_rng(1)
    rows = np.stack([rng.permutation(np.r_[:EXPERTS, rng.integers(0, EXPERTS, 4)]) for _ in range(LAYERS)])
    started = Ranks(4, tmp_path, serve_real)
    try:
        for tokens in (1, 2, 5, 64):
            found = started.ask(name, rows, 4, tokens)
            assert found == [serve_real(rank, name, alone, 1, tokens) for rank in range(4)]
    finally:
        started.close()
