"""Traces of loads: slices, groups of windows, and what is none."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise import (
    ArgumentError,
    LoadTrace,
)

COUNTS = np.arange(5 * 2 * 3).reshape(5, 2, 3)


def trace() -> LoadTrace:
    return LoadTrace(
        COUNTS,
        layers=(3, 4),
        num_model_layers=6,
        steps=[[0, 10], [10, 20], [20, 30], [35, 40], [40, 41]],  # type: ignore[arg-type]
        phases=("prefill", "prefill", "decode", "prefill", "mixed"),
        top_k=2,
        source="somewhere",
    )


def test_a_trace() -> None:
    found = trace()
    assert (len(found), found.num_windows, found.num_layers, found.num_experts) == (5, 5, 2, 3)
    assert found.total().tolist() == [[60, 65, 70], [75, 80, 85]]
    assert found.counts.dtype == np.int64
    assert LoadTrace([[1, 2]]).counts.shape == (1, 1, 2), "one window"
    assert LoadTrace([[1, 2]]).steps.tolist() == [[0, 1]]  # type: ignore[union-attr]
    assert LoadTrace([[1, 2]]).layers == (0,)
    assert LoadTrace(np.array([[1, 2]], np.float32)).counts.dtype == np.float64
    assert LoadTrace(np.array([[1, 2]], np.uint8)).counts.dtype == np.int64
    beyond = LoadTrace(np.array([[1, 1 << 63]], np.uint64))
    assert beyond.counts.tolist() == [[[1.0, 2.0**63]]]


def test_slices_of_a_trace() -> None:
    last = trace()[-2:]
    assert np.array_equal(last.counts, COUNTS[-2:])
    assert last.steps.tolist() == [[35, 40], [40, 41]]  # type: ignore[union-attr]
    assert last.phases == ("prefill", "mixed")
    assert (last.layers, last.num_model_layers, last.top_k, last.source) == ((3, 4), 6, 2, "somewhere")
    assert np.shares_memory(last.counts, trace()[:].counts) is False
    whole = trace()
    assert np.shares_memory(whole[1:].counts, whole.counts)
    assert trace()[::2].phases == ("prefill", "decode", "mixed")
    with pytest.raises(ArgumentError, match="none of the 5 windows"):
        trace()[7:]
    with pytest.raises(TypeError, match="slice"):
        trace()[0]  # type: ignore[index]


def test_regroup() -> None:
    found = trace().regroup(2)
    assert np.array_equal(found.counts, [COUNTS[0] + COUNTS[1], COUNTS[2] + COUNTS[3]])
    assert found.steps.tolist() == [[0, 20], [20, 40]]  # type: ignore[union-attr]
    assert found.phases == ("prefill", "mixed")
    assert found.layers == (3, 4)
    assert np.array_equal(trace().regroup(1).counts, COUNTS)
    assert np.array_equal(trace().regroup(5).counts[0], trace().total())
    with pytest.raises(ValueError, match="read-only"):
        found.counts[0, 0, 0] = 1
    for size in (0, -1, 6):
        with pytest.raises(ArgumentError, match=f"5 windows by {size}"):
            trace().regroup(size)


@given(st.integers(1, 9), st.integers(1, 9))
def test_regrouping_keeps_the_tokens_of_whole_groups(windows: int, size: int) -> None:
    counts = np.random.default_rng(windows).integers(0, 99, (windows, 2, 3))
    if size <= windows:
        found = LoadTrace(counts).regroup(size)
        assert len(found) == windows // size
        assert np.array_equal(found.total(), counts[: windows // size * size].sum(axis=0))


def test_a_trace_cannot_be_changed() -> None:
    counts = COUNTS.copy()
    found = LoadTrace(counts)
    counts[0, 0, 0] = 77
    assert found.counts[0, 0, 0] == 0
    assert counts.flags.writeable
    for array in (found.counts, found[1:].counts, found.steps):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.top_k = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("counts", "options", "words"),
    [
        ([1, 2], {}, ["counts", "[layers, experts]", "[2]"]),
        (np.ones((1, 1, 1, 1)), {}, ["[1, 1, 1, 1]"]),
        (np.ones((0, 2, 3)), {}, ["empty", "[0, 2, 3]"]),
        ([[1, -2]], {}, ["counts[0, 1]", "-2"]),
        ([[np.nan, 1]], {}, ["counts[0, 0]", "nan"]),
        ([[1, np.inf]], {}, ["counts[0, 1]", "inf"]),
        ([[1, 2], [3]], {}, ["ragged"]),
        ([["a"]], {}, ["numbers"]),
        (COUNTS, {"layers": (1, 2, 3)}, ["3 layers", "2"]),
        (COUNTS, {"layers": (2, 2)}, ["strictly increasing"]),
        (COUNTS, {"num_model_layers": 1}, ["num_model_layers is 1"]),
        (COUNTS, {"steps": [[0, 1]]}, ["steps", "[5, 2]", "[1, 2]"]),
        (COUNTS, {"steps": [[0, 0]] * 5}, ["first < end"]),
        (COUNTS, {"phases": ("decode",)}, ["phases", "1 tags", "5 windows"]),
        (COUNTS, {"top_k": 0}, ["top_k", "0"]),
    ],
)
def test_traces_that_are_none(counts: Any, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ArgumentError) as error:
        LoadTrace(counts, **options)
    for word in words:
        assert word in str(error.value)


def of_batches() -> LoadTrace:
    return LoadTrace(
        [[[1, 0, 2]], [[3, 3, 0]], [[1, 4, 1]]],
        unit="batches",
        steps=[[0, 2], [5, 8], [8, 12]],  # type: ignore[arg-type]
    )


def test_counts_of_batches() -> None:
    trace = of_batches()
    assert trace.unit == "batches"
    assert trace.batches is not None
    assert trace.batches.tolist() == [2, 3, 4], "one a step"
    assert trace[1:].batches.tolist() == [3, 4]  # type: ignore[union-attr]
    pairs = trace.regroup(2)
    assert (pairs.unit, pairs.batches.tolist()) == ("batches", [5])  # type: ignore[union-attr]
    assert pairs.steps.tolist() == [[0, 8]], "three steps of the span were not counted"  # type: ignore[union-attr]
    assert "batches" in repr(trace)
    with pytest.raises(ValueError, match="read-only"):
        trace.batches[0] = 7
    ranks = LoadTrace([[[8, 0]]], unit="batches", batches=[8])  # type: ignore[arg-type]
    assert ranks.batches.tolist() == [8], "a step of eight ranks that count their own"  # type: ignore[union-attr]
    assert LoadTrace([[1, 2]]).unit == "tokens"
    assert LoadTrace([[1, 2]]).batches is None


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 7)), min_size=1, max_size=6),
    st.data(),
)
def test_no_expert_is_hit_in_more_batches_than_there_were(windows: Any, data: Any) -> None:
    """What is refused is what has a count beyond its batches, and the message names it."""
    counts = np.array([[[hit, 0]] for _, hit in windows])
    batches = [number for number, _ in windows]
    beyond = [w for w, (number, hit) in enumerate(windows) if hit > number]
    if not beyond:
        assert LoadTrace(counts, unit="batches", batches=batches).batches.tolist() == batches  # type: ignore
        return
    with pytest.raises(ArgumentError, match=rf"counts\[{beyond[0]}, 0, 0\] is {windows[beyond[0]][1]}"):
        LoadTrace(counts, unit="batches", batches=batches)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unit": "token"}, ["unit must be tokens or batches", "'token'"]),
        ({"batches": [9]}, ["unit='batches'"]),
        ({"unit": "batches", "batches": [9, 9]}, ["[windows] = [1]", "[2]"]),
        ({"unit": "batches", "batches": [0]}, ["numbers from 1 to"]),
        ({"unit": "batches", "batches": [9.5]}, ["whole numbers", "float64"]),
        ({"unit": "batches"}, ["counts[0, 0, 1] is 2", "1 batches"]),
    ],
)
def test_counts_of_batches_that_are_none(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ArgumentError) as error:
        LoadTrace([[[1, 2]]], **options)
    for word in words:
        assert word in str(error.value)
