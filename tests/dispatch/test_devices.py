"""Splitting and assigning for tensors, in torch and in Triton's interpreter, against the compiled kernels."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dispatch import batches, check_slots, counts_of

import equipoise as eq

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from equipoise.dispatch import torch_backend  # noqa: E402

BACKENDS: list[Any] = [pytest.param(torch_backend, id="torch")]
if find_spec("triton"):
    from equipoise.dispatch import triton_backend

    BACKENDS.append(pytest.param(triton_backend, id="triton"))
else:
    BACKENDS.append(pytest.param(None, id="triton", marks=pytest.mark.skip(reason="Triton is not installed")))
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def maps_of(placement: eq.Placement, wider: int = 0, dtype: Any = torch.int64) -> eq.DeviceMaps:
    """Its maps, wider than they need be, as an engine's may be."""
    log2phy, *others, num_slots, num_ranks = eq.DeviceMaps.of(placement, "cpu")
    padded = torch.nn.functional.pad(log2phy, (0, wider), value=-1)
    return eq.DeviceMaps(padded.to(dtype), *(tensor.to(dtype) for tensor in others), num_slots, num_ranks)


def rows(topk: np.ndarray) -> Any:
    return torch.from_numpy(topk.reshape(len(topk), -1))


@each_backend
@given(
    batches(), st.sampled_from([0, 1, 3, 8]), st.integers(0, 3), st.sampled_from([torch.int32, torch.int64])
)
@settings(max_examples=20)
def test_shares_are_those_of_the_reference(
    backend: ModuleType, batch: tuple[eq.Placement, np.ndarray], sweeps: int, wider: int, dtype: Any
) -> None:
    placement, topk = batch
    counts = counts_of(topk, placement.num_experts)
    found = backend.split_batch(torch.from_numpy(counts), maps_of(placement, wider, dtype), sweeps)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, eq.split_batch(counts, placement, sweeps), rtol=0, atol=1e-6)
    for row, part in zip(placement.phy2log, found.numpy(), strict=True):
        np.testing.assert_allclose(np.bincount(row, part, placement.num_experts), 1.0, rtol=0, atol=1e-12)


@each_backend
@given(batches(), st.integers(0, 3), st.integers(0, 3), st.sampled_from([torch.int32, torch.int64]))
@settings(max_examples=30)
def test_activated_experts_are_those_of_the_reference(
    backend: ModuleType, batch: tuple[eq.Placement, np.ndarray], sweeps: int, wider: int, dtype: Any
) -> None:
    placement, topk = batch
    counts = counts_of(topk, placement.num_experts)
    found = backend.split_activated(torch.from_numpy(counts), maps_of(placement, wider, dtype), sweeps)
    assert found.dtype == torch.float64
    np.testing.assert_array_equal(found, eq.split_activated(counts, placement, sweeps))


def larger_batch() -> tuple[eq.Placement, np.ndarray]:
    """A placement with many chains of ranks, and counts of two layers."""
    rng = np.random.default_rng(3)
    phy2log = np.stack([rng.permutation(np.r_[np.arange(40), rng.integers(0, 40, 20)]) for _ in range(2)])
    return eq.Placement(phy2log, 12, 40), (rng.lognormal(0, 1.5, (2, 40)) * 1e5).astype(np.int64)


@each_backend
def test_larger_batches(backend: ModuleType) -> None:
    placement, counts = larger_batch()
    found = backend.split_batch(torch.from_numpy(counts), maps_of(placement), 3)
    np.testing.assert_allclose(found, eq.split_batch(counts, placement, 3), rtol=0, atol=1e-6)


def test_many_sweeps_are_the_optimum() -> None:
    """The reference stops where the optimum is proved; devices know no proof and go on."""
    placement, counts = larger_batch()
    end, best = (
        eq.rank_loads(counts, placement, shares).max(axis=1)
        for shares in (
            torch_backend.split_batch(torch.from_numpy(counts), maps_of(placement), 300).numpy(),
            eq.split_batch(counts, placement, 20_000),
        )
    )
    np.testing.assert_allclose(end, best, rtol=1e-6)


@each_backend
@given(batches(), st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_slots_are_those_of_the_reference(
    backend: ModuleType, batch: tuple[eq.Placement, np.ndarray], wider: int, random: Any
) -> None:
    placement, topk = batch
    counts = counts_of(topk, placement.num_experts)
    some = np.random.default_rng(random.randrange(2**32)).random(placement.phy2log.shape)
    some *= some > 0.3  # slots without a share, and experts without any
    maps = maps_of(placement, wider)
    for shares in (None, some, eq.split_batch(counts, placement)):
        given_shares = None if shares is None else torch.from_numpy(shares)
        found = backend.assign(rows(topk), given_shares, maps).view(topk.shape)
        assert found.dtype == torch.int64
        np.testing.assert_array_equal(found, eq.assign(topk, shares, placement))
    turns = backend.by_number(torch.from_numpy(topk), maps.log2phy, maps.logcnt)
    np.testing.assert_array_equal(turns, eq.assign_by_number(topk, placement))


@each_backend
def test_several_blocks_of_entries_in_order(backend: ModuleType) -> None:
    rng = np.random.default_rng(5)
    placement = eq.Placement(np.tile(np.r_[np.arange(20), np.arange(12)], (2, 1)), 4, 20)
    topk = rng.integers(-1, 20, (2, 110, 4))  # 440 entries: four blocks, the last of them not full
    shares = eq.split_batch(counts_of(topk, 20), placement)
    found = backend.assign(rows(topk).to(torch.int32), torch.from_numpy(shares), maps_of(placement, 14))
    np.testing.assert_array_equal(found.view(topk.shape), eq.assign(topk, shares, placement))


def test_activated_experts_of_a_larger_batch() -> None:
    placement, counts = larger_batch()
    counts[:, ::3] = 0
    for sweeps in (0, 2):
        found = torch_backend.split_activated(torch.from_numpy(counts), maps_of(placement), sweeps)
        np.testing.assert_array_equal(found, eq.split_activated(counts, placement, sweeps))


def test_another_placement_is_committed_into_the_same_tensors() -> None:
    one, other = eq.Placement([[0, 1, 0, 2]], 2, 3), eq.Placement([[1, 0, 2, 1]], 2, 3)
    maps = maps_of(one)
    kept = [tensor.data_ptr() for tensor in maps[:-2]]
    maps.commit(other)
    assert [tensor.data_ptr() for tensor in maps[:-2]] == kept
    for found, expected in zip(maps[:-2], maps_of(other)[:-2], strict=True):
        assert torch.equal(found, expected)
    with pytest.raises(eq.ArgumentError, match="of 2 ranks, the placement of 4"):
        maps.commit(eq.Placement([[0, 1, 0, 2]], 4, 3))
    with pytest.raises(eq.ArgumentError, match="has the placement's axes"):
        maps.commit(eq.Placement([[0, 1, 0, 2]] * 2, 2, 3))
    assert torch.equal(maps.log2phy, maps_of(other).log2phy)


@each_backend
def test_an_expert_without_a_slot_gets_none(backend: ModuleType) -> None:
    """As an engine's own maps have it, where ranks are gone."""
    log2phy, logcnt = torch.tensor([[[0, 2, 3], [-1] * 3, [1, -1, -1]]]), torch.tensor([[3, 0, 1]])
    maps = maps_of(eq.Placement([[0, 1, 0, 0]], 2, 2))._replace(log2phy=log2phy, logcnt=logcnt)
    topk, renamed = np.array([[[0, 1], [0, 2], [-1, 0]]]), np.array([[0, -1], [0, 1], [-1, 0]])
    whole = eq.Placement([[0, 1, 0, 0]], 2, 2)
    found = backend.assign(rows(topk), None, maps).view(3, 2)
    np.testing.assert_array_equal(found, eq.assign(renamed, None, whole))
    turns = backend.by_number(torch.from_numpy(topk), maps.log2phy, maps.logcnt)[0]
    np.testing.assert_array_equal(turns, eq.assign_by_number(renamed, whole))
    shares = backend.split_activated(torch.tensor([[2, 1, 1]]), maps, 2)
    assert shares.sum() == 2.0


@each_backend
def test_nothing_hangs_on_the_order_of_layers(backend: ModuleType) -> None:
    rng = np.random.default_rng(0)
    phy2log = np.stack([rng.permutation(np.r_[np.arange(12), rng.integers(0, 12, 8)]) for _ in range(4)])
    topk, order = rng.integers(-1, 12, (4, 50, 3)), rng.permutation(4)
    counts = torch.from_numpy(counts_of(topk, 12))
    one, other = (maps_of(eq.Placement(rows_, 4, 12)) for rows_ in (phy2log, phy2log[order]))
    shares = backend.split_batch(counts, one, 3)
    assert torch.equal(backend.split_batch(counts[order], other, 3), shares[order])
    slots = backend.assign(rows(topk), shares, one)
    assert torch.equal(backend.assign(rows(topk[order]), shares[order], other), slots[order])


def test_even_is_a_dispatch_of_one_layer() -> None:
    """Chosen experts and the maps of one layer to slots: what an engine's layer calls."""
    placement = eq.Placement([[0, 1, 0, 2]], 2, 3)
    maps = maps_of(placement)
    chosen = torch.tensor([[0, 1], [0, 2], [1, 0]])
    expected = eq.assign_by_number(chosen.numpy(), placement)
    np.testing.assert_array_equal(torch_backend.by_number(chosen, maps.log2phy[0], maps.logcnt[0]), expected)


class Reads(TorchDispatchMode):
    """What would make the host wait: a value read back, or a shape that hangs on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "index")
        if func.__name__.split(".")[0] in names:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def served(topk: Any, counts: Any, maps: eq.DeviceMaps) -> list[Any]:
    shares = eq.split_batch(counts, maps)
    return [
        shares,
        eq.split_activated(counts, maps),
        eq.assign(topk, shares, maps),
        eq.assign(topk, None, maps),
        eq.assign_by_number(topk, maps),
    ]


def test_nothing_is_read_back() -> None:
    placement = eq.Placement(np.tile(np.arange(24) % 16, (3, 1)), 4, 16)
    maps = maps_of(placement, 3)
    topk = torch.from_numpy(np.random.default_rng(0).integers(-1, 16, (3, 30, 2)))
    counts = torch.from_numpy(counts_of(topk.numpy(), 16))
    with Reads() as reads:
        results = served(topk, counts, maps)
    assert reads.found == []
    with Reads() as reads:  # the check can fail
        bool(topk.any())
        topk[topk > 0]
    assert len(reads.found) == 2
    # Tensors of the device "meta" have shapes and no values: whoever looks at one raises.
    nowhere = [tensor.to("meta") for tensor in (topk, counts)]
    empty = eq.DeviceMaps(*(tensor.to("meta") for tensor in maps[:-2]), maps.num_slots, maps.num_ranks)
    for found, expected in zip(served(*nowhere, empty), results, strict=True):
        assert (found.shape, found.dtype, found.device.type) == (expected.shape, expected.dtype, "meta")


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "bfloat16"])
def test_tensors_on_the_processor_take_the_compiled_kernels(dtype: str) -> None:
    placement = eq.Placement([[0, 1, 0, 2]], 2, 3)
    counts = torch.tensor([[60, 30, 10]], dtype=getattr(torch, dtype))
    shares = eq.split_batch(counts, placement)
    np.testing.assert_array_equal(shares, eq.split_batch(counts.double().numpy(), placement))
    topk = torch.tensor([[0, 1], [0, 2], [0, -1]], dtype=torch.int32)
    slots = eq.assign(topk, shares, placement)
    check_slots(placement, topk[None].numpy(), slots[None].numpy())
    np.testing.assert_array_equal(slots, eq.assign(topk.numpy(), shares.numpy(), placement))
    np.testing.assert_array_equal(
        eq.assign_by_number(topk, placement), eq.assign_by_number(topk.numpy(), placement)
    )


def test_what_does_not_fit_is_refused() -> None:
    placement = eq.Placement([[0, 1, 0, 2]], 2, 3)
    maps = maps_of(placement)
    with pytest.raises(eq.ArgumentError, match=r"counts has \[layers, experts\] = \[1, 2\]"):
        eq.split_batch(torch.ones(1, 2), maps)
    with pytest.raises(eq.ArgumentError, match="negative"):
        eq.split_batch(torch.ones(1, 3), maps, -1)
    with pytest.raises(eq.ArgumentError, match="pass a Placement with ndarray"):
        eq.split_batch(np.ones((1, 3)), maps)
    with pytest.raises(eq.ArgumentError, match="the maps are on cpu"):
        eq.split_batch(torch.ones(1, 3, device="meta"), maps)
    for topk in (
        torch.zeros(2, 2),
        torch.zeros(2, 2, 2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
    ):
        for call in (lambda t: eq.assign(t, None, maps), lambda t: eq.assign_by_number(t, maps)):
            with pytest.raises(eq.ArgumentError, match="topk must be integers"):
                call(topk)
    with pytest.raises(eq.ArgumentError, match=r"shares has \[layers, slots\]"):
        eq.assign(torch.zeros(2, 2, dtype=torch.int64), torch.ones(1, 3), maps)
