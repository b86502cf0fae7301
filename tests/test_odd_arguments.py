"""Arguments of the public functions that are nearly right: one line, and no number that wrapped on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import equipoise as eq
from equipoise.errors import ArgumentError

PLACEMENT = eq.Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3)
INTEGERS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)


@pytest.mark.parametrize("dtype", [*INTEGERS, np.float16, np.float32, np.float64])
def test_pair_counts_add_up_whatever_their_type(dtype: Any) -> None:
    most = 100 if dtype == np.int8 else 2000 if np.dtype(dtype).itemsize > 1 else 200
    counts = np.full((1, 2, 2), most, dtype)
    total = eq.PairCounts(counts)
    for _ in range(40):
        total = total + eq.PairCounts(counts)
    assert total.counts.tolist() == np.full((1, 2, 2), 41 * most).tolist()


def test_pair_counts_that_could_wrap_are_refused() -> None:
    half = eq.PairCounts(np.full((1, 2, 2), 2**61, np.int64))
    with pytest.raises(ArgumentError, match=r"below 2\*\*62"):
        half + half


@pytest.mark.parametrize("batches", [0, -1, 2**40 + 1, 2**62, 2**63, 2**64 - 1])
def test_batches_are_in_a_range_that_adds_up(batches: int) -> None:
    with pytest.raises(ArgumentError, match="whole numbers from 1 to"):
        eq.LoadTrace([[[1, 1]]], unit="batches", batches=np.array([batches]))


def test_batches_of_windows_that_are_joined_add_up() -> None:
    found = eq.LoadTrace(np.ones((8, 1, 2)), unit="batches", batches=np.full(8, 2**37)).regroup(8).batches
    assert found is not None
    assert found.tolist() == [2**40]
    many = eq.LoadTrace(np.ones((8, 1, 2)), unit="batches", batches=np.full(8, 2**40))
    with pytest.raises(ArgumentError, match="whole numbers from 1 to"):
        many.regroup(8)


@pytest.mark.parametrize("sweeps", [-1, 1.5, float("nan"), True, None, "a", 10**30])
def test_sweeps_are_a_whole_number(sweeps: Any) -> None:
    for split in (eq.split_batch, eq.split_activated):
        with pytest.raises(ArgumentError, match="sweeps must be a whole number"):
            split([[6, 3, 0]], PLACEMENT, sweeps)


def test_ragged_lists() -> None:
    topology = eq.Topology(2, 2)
    for call in (
        lambda: eq.PairCounts([[[1], [1, 2]]]),
        lambda: eq.assign([[0], [1, 2]], None, PLACEMENT),
        lambda: eq.assign_by_number([[0], [1, 2]], PLACEMENT),
        lambda: eq.assign_near([[0], [1, 2]], None, PLACEMENT, topology),
    ):
        with pytest.raises(ArgumentError, match="ragged"):
            call()


def test_what_is_no_number_or_topology() -> None:
    with pytest.raises(ArgumentError, match="top_k must be a positive integer"):
        eq.PairCounts([[[1]]], top_k="a")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="top_k must be a positive integer"):
        eq.PairCounts([[[1]]], top_k=1.5)  # type: ignore[arg-type]
    for affinity in ("a", True, float("nan"), 0.9, float("inf")):
        with pytest.raises(ArgumentError, match="affinity must be at least 1"):
            eq.Robust(affinity=affinity)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="topology must be a Topology, got NoneType"):
        eq.assign_near([[0]], None, PLACEMENT, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "odd", [{"step": 1.5}, {"steps": "a"}, {"steps": 2.5}, {"step": float("nan")}, {"step": "1"}]
)
def test_steps_of_a_recording(tmp_path: Any, odd: dict[str, Any]) -> None:
    pytest.importorskip("fcntl")
    with (
        eq.TraceWriter(tmp_path / "recording", 1, 2) as writer,
        pytest.raises(ArgumentError, match="whole number"),
    ):
        writer.add([[1, 2]], **odd)


def test_pairs_every() -> None:
    pytest.importorskip("torch")
    from equipoise.runtime import LoadCounter

    for every in (0, True, 1.5, 2**31, 10**30):
        with pytest.raises(ArgumentError, match="pairs_every must be an integer from 1"):
            LoadCounter(1, 2, pairs_every=every)  # type: ignore[arg-type]
