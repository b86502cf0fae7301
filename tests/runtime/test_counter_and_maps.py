"""The tensors that a graph may capture: contents, addresses, and no trip to the host."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - what follows imports torch

from torch.utils._python_dispatch import TorchDispatchMode

from equipoise import ArgumentError, PairCounts, Placement, Routes, count_pairs
from equipoise.runtime.counter import LoadCounter
from equipoise.runtime.maps import LiveMaps


@st.composite
def passes(draw):
    """Sizes, and forward passes: for each layer the choices, which tokens are valid, and whether the pass counts."""
    layers, experts, k = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    found = []
    for _ in range(draw(st.integers(0, 4))):
        tokens = draw(st.integers(0, 5))
        topk = rng.integers(-2, experts + 2, (layers, tokens, k)).astype(draw(st.sampled_from(["i4", "i8"])))
        valid = rng.random((layers, tokens)) < 0.7 if draw(st.booleans()) else None
        found.append((topk, valid, draw(st.booleans())))
    return layers, experts, found


@given(passes())
def test_counts_are_those_of_a_plain_loop(case):
    layers, experts, found = case
    counter, wanted = LoadCounter(layers, experts), np.zeros((layers, experts), np.int64)
    for topk, valid, record in found:
        for layer in range(layers):
            keep = None if valid is None else torch.from_numpy(valid[layer])
            counter.add(layer, torch.from_numpy(topk[layer]), keep)
            for token, row in enumerate(topk[layer].tolist()):
                for expert in row:
                    if record and 0 <= expert < experts and (valid is None or valid[layer, token]):
                        wanted[layer, expert] += 1
        counter.end_pass(record)
    assert counter.take().tolist() == wanted.tolist()
    assert not counter.take().any()


@given(passes())
def test_batches_in_which_an_expert_was_hit_are_those_of_a_plain_loop(case):
    """Whatever the tokens of a pass, and in however many parts they come: an expert is hit in it, or not."""
    layers, experts, found = case
    counter, wanted = LoadCounter(layers, experts, unit="batches"), np.zeros((layers, experts), np.int64)
    for topk, valid, record in found:
        for layer in range(layers):
            keep = np.ones(topk.shape[1], bool) if valid is None else valid[layer]
            for part in (slice(0, 2), slice(2, None)):
                counter.add(layer, torch.from_numpy(topk[layer, part]), torch.from_numpy(keep[part]))
            hit = set(topk[layer][keep].ravel().tolist()) & set(range(experts))
            wanted[layer, list(hit)] += record
        counter.end_pass(record)
    assert counter.take().tolist() == wanted.tolist()
    assert not counter.take().any()


def plain_pairs(layers, experts, every, found):
    """Pairs ``[L, E, E]`` by a loop over passes and tokens."""
    wanted, number = np.zeros((layers, experts, experts), np.int64), 0
    for topk, valid, record in found:
        for layer in range(layers):
            for token in range(number % every, topk.shape[1], every):
                row = set(topk[layer, token].tolist()) & set(range(experts))
                if record and (valid is None or valid[layer, token]):
                    for a in row:
                        for b in row:
                            wanted[layer, a, b] += 1
        number += record
    return wanted


@given(passes(), st.integers(1, 4))
def test_pairs_are_those_of_a_plain_loop(case, every):
    """Experts out of range, named twice, padding, passes that do not count, batches shorter than the distance."""
    layers, experts, found = case
    counter = LoadCounter(layers, experts, pairs_every=every)
    for topk, valid, record in found:
        for layer in range(layers):
            keep = None if valid is None else torch.from_numpy(valid[layer])
            counter.add(layer, torch.from_numpy(topk[layer]), keep)
        counter.end_pass(record)
    pairs = counter.take_pairs().numpy()
    assert pairs.tolist() == plain_pairs(layers, experts, every, found).tolist()
    assert PairCounts(pairs).num_experts == experts  # symmetric, hits on the diagonal
    assert not counter.take_pairs().any()


def test_all_tokens_counted_are_the_pairs_of_their_routes():
    rng = np.random.default_rng(0)
    topk = rng.permuted(np.tile(np.arange(12), (3, 50, 1)), axis=2)[:, :, :4]
    counter = LoadCounter(3, 12, pairs_every=1)
    for part in np.split(topk, [7, 30], axis=1):
        for layer in range(3):
            counter.add(layer, torch.from_numpy(part[layer]))
        counter.end_pass()
    assert counter.take_pairs().tolist() == count_pairs(Routes(topk, 12)).counts.tolist()


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_pairs_are_exact_in_whatever_mode_the_model_runs(mode):
    """Narrow floats hold no whole numbers above 256."""
    counter = LoadCounter(1, 3, pairs_every=1)
    topk = torch.tensor([[0, 1]] * 3000 + [[2, 1]] * 1001)
    with mode():
        for _ in range(3):
            counter.add(0, topk)
            counter.end_pass()
    assert counter.take_pairs()[0].tolist() == [[9000, 9000, 0], [9000, 12003, 3003], [0, 3003, 3003]]


@given(st.integers(1, 7), st.integers(0, 20))
def test_so_many_passes_count_each_place_of_a_batch_once(every, tokens):
    """A token at one place of every batch, as a sequence that decodes is, is not left out for good."""
    counter = LoadCounter(1, max(1, tokens), pairs_every=every)
    for _ in range(every):
        counter.add(0, torch.arange(tokens)[:, None])
        counter.end_pass()
        counter.add(0, torch.arange(tokens)[:, None])
        counter.end_pass(record=False)
    assert counter.take_pairs()[0].diagonal().tolist() == [1] * tokens + [0] * (not tokens)


def test_pairs_are_counted_on_request_alone():
    counter = LoadCounter(1, 4)
    counter.add(0, torch.tensor([[0, 1]]))
    counter.end_pass()
    assert counter.take_pairs() is None
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(ArgumentError, match="pairs_every must be an integer from 1"):
            LoadCounter(1, 4, pairs_every=wrong)


def test_an_unknown_unit_is_refused():
    with pytest.raises(ArgumentError, match="unit must be tokens or batches"):
        LoadCounter(1, 4, unit="activations")


def test_what_the_tables_of_pairs_take():
    """The figure of the docs, for 58 layers of 256 experts."""
    counter = LoadCounter(58, 256, "meta", pairs_every=16)
    tables = [counter._pairs._pass, counter._pairs._window]
    assert round(sum(table.numel() * table.element_size() for table in tables) / 1e6) == 46


class Watch(TorchDispatchMode):
    """Notes operations that read a value on the host, or have a size that hangs on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "index.Tensor")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in self.WAITS):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_watch_sees_trips_to_the_host():
    with Watch() as watch:
        torch.ones(3).sum().item()
    assert watch.found


@pytest.mark.parametrize("unit", ["tokens", "batches"])
def test_counting_makes_no_trip_to_the_host_and_keeps_its_addresses(unit):
    counter = LoadCounter(2, 4, unit=unit, pairs_every=2)
    pairs = counter._pairs
    tables = (counter._pass, counter._window, pairs._pass, pairs._window, pairs._first)
    before = [table.data_ptr() for table in tables]
    with Watch() as watch:
        counter.add(1, torch.tensor([[0, 3], [1, -1]]), torch.tensor([True, False]))
        counter.end_pass()
    assert watch.found == []
    counter.take()
    counter.take_pairs()
    tables = (counter._pass, counter._window, pairs._pass, pairs._window, pairs._first)
    assert [table.data_ptr() for table in tables] == before


@pytest.mark.parametrize("unit", ["tokens", "batches"])
def test_counting_hangs_on_no_value_of_what_is_counted(unit):
    """On a device without values: anything that looked at one would raise."""
    counter = LoadCounter(2, 4, "meta", unit=unit, pairs_every=3)
    counter.add(
        0,
        torch.empty(7, 2, dtype=torch.int64, device="meta"),
        torch.empty(7, dtype=torch.bool, device="meta"),
    )
    counter.end_pass()
    counter.end_pass(record=False)


@pytest.mark.parametrize(
    "kind", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32]
)
@pytest.mark.parametrize("valid", [None, torch.tensor([True, False])])
def test_choices_may_be_of_any_integer_type(kind, valid):
    """With more experts than a small type can count: neither E nor -1 has to fit into it."""
    counter = LoadCounter(1, 300)
    counter.add(0, torch.tensor([[1, 2], [3, 2]]).to(kind), valid)
    counter.end_pass()
    assert counter.take()[0, :4].tolist() == ([0, 1, 2, 1] if valid is None else [0, 1, 1, 0])


@pytest.mark.parametrize(
    ("topk", "valid"),
    [(torch.zeros(3), None), (torch.zeros(3, 1), torch.ones(2)), (torch.zeros(2, 1, 1), None)],
)
def test_shapes_that_do_not_fit_are_refused(topk, valid):
    with pytest.raises(ArgumentError, match="tokens, k"):
        LoadCounter(1, 4).add(0, topk, valid)


@st.composite
def rows(draw):
    """Experts, room, and rows of slots, some of them empty."""
    experts = draw(st.integers(1, 6))
    room = experts + draw(st.integers(0, 5))
    expert = st.integers(-1, experts - 1)
    return experts, room, draw(st.lists(st.lists(expert, max_size=room), min_size=1, max_size=4))


@given(rows())
def test_maps_show_the_row_that_was_committed_last(case):
    experts, room, committed = case
    maps = LiveMaps(2, experts, room)
    others = [tensor[1].clone() for tensor in (maps.phy2log, maps.log2phy, maps.logcnt)]
    before = [tensor.data_ptr() for tensor in (maps.phy2log, maps.log2phy, maps.logcnt)]
    for row in committed:
        shown = [tensor[0].clone() for tensor in (maps.phy2log, maps.log2phy, maps.logcnt)]
        most = max((row.count(expert) for expert in range(experts)), default=0)
        if most > room - experts + 1:  # not legal: some expert has no slot left
            with pytest.raises(ArgumentError, match="replicas"):
                maps.commit(0, np.array(row, dtype=np.int64))
            now = [tensor[0] for tensor in (maps.phy2log, maps.log2phy, maps.logcnt)]
            assert all(torch.equal(one, other) for one, other in zip(shown, now, strict=True))
            continue
        maps.commit(0, np.array(row, dtype=np.int64))
        assert maps.phy2log[0].tolist() == row + [-1] * (room - len(row))
        for expert in range(experts):
            slots = [slot for slot, held in enumerate(row) if held == expert]
            assert maps.logcnt[0, expert] == len(slots)
            assert maps.log2phy[0, expert].tolist() == slots + [-1] * (room - experts + 1 - len(slots))
    assert before == [tensor.data_ptr() for tensor in (maps.phy2log, maps.log2phy, maps.logcnt)]
    now = [tensor[1] for tensor in (maps.phy2log, maps.log2phy, maps.logcnt)]
    assert all(torch.equal(one, other) for one, other in zip(others, now, strict=True))


@given(st.integers(0, 1 << 32))
def test_maps_equal_those_of_a_placement(seed):
    rng = np.random.default_rng(seed)
    row = rng.permutation(np.r_[np.arange(5), rng.integers(0, 5, 3)])
    placement, maps = Placement([row], 2, 5), LiveMaps(1, 5, 8)
    maps.commit(0, row)
    width = placement.log2phy.shape[2]
    assert maps.log2phy[0, :, :width].tolist() == placement.log2phy[0].tolist()
    assert (maps.log2phy[0, :, width:] == -1).all()
    assert maps.logcnt[0].tolist() == placement.logcnt[0].tolist()


def test_rows_and_rooms_that_do_not_fit_are_refused():
    with pytest.raises(ArgumentError, match="max_slots"):
        LiveMaps(1, 4, 3)
    with pytest.raises(ArgumentError, match="max_slots"):
        LiveMaps(1, 2, 3).commit(0, np.array([0, 1, 0, 1]))
    with pytest.raises(ArgumentError, match="replicas"):
        LiveMaps(1, 2, 3).commit(0, np.array([0, 1, 2]))
