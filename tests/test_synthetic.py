"""The synthetic loads have the statistics they promise, and conserve tokens."""

from __future__ import annotations

import math
import random
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.errors import ArgumentError
from equipoise.synthetic import draw_tokens, synthetic_trace


@pytest.mark.parametrize("seed", range(6))
def test_skew_is_that_of_real_loads_in_every_window(seed: int) -> None:
    trace = synthetic_trace(num_windows=20, seed=seed, drift=0.2)
    share = np.sort(trace.counts / trace.counts.sum(axis=2, keepdims=True), axis=2)[:, :, ::-1]
    hottest = 256 * share[:, :, 0].mean(axis=1)
    tenth = share[:, :, :26].sum(axis=2).mean(axis=1)
    assert 5 < hottest.min() <= hottest.max() < 8
    assert 0.27 < tenth.min() <= tenth.max() < 0.36


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(1, 4),
    experts=st.integers(1, 24),
    windows=st.integers(1, 4),
    tokens=st.integers(1, 200),
    spread=st.floats(0, 8),
    data=st.data(),
)
def test_tokens_are_conserved_and_no_expert_is_chosen_twice(
    layers: int, experts: int, windows: int, tokens: int, spread: float, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts))
    trace = synthetic_trace(
        layers, experts, windows, seed=3, tokens_per_window=tokens, top_k=top_k, spread=spread
    )
    assert trace.counts.shape == (windows, layers, experts)
    assert (trace.counts.sum(axis=2) == tokens * top_k).all()
    assert trace.counts.max() <= tokens
    assert trace.counts.min() >= 0
    assert trace.top_k == top_k


def test_an_expert_that_would_overflow_passes_its_tokens_on() -> None:
    popularity = np.array([[1.0, 1e-6, 1e-7, 1e-8]])
    counts = draw_tokens(np.random.default_rng(0), popularity, tokens=1000, top_k=2)
    assert counts[0, 0] == 1000
    assert counts.sum() == 2000


def test_the_seed_decides_everything_and_global_state_is_left_alone() -> None:
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    before = (np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    first = synthetic_trace(2, 32, 5, seed=9)
    np.random.seed(6)  # noqa: NPY002
    again = synthetic_trace(2, 32, 5, seed=9)
    np.random.seed(5)  # noqa: NPY002
    assert np.array_equal(first.counts, again.counts)
    assert not np.array_equal(first.counts, synthetic_trace(2, 32, 5, seed=10).counts)
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert before[1] == random.getstate()


def test_earlier_windows_do_not_depend_on_later_ones() -> None:
    long = synthetic_trace(2, 32, 6, seed=4)
    short = synthetic_trace(2, 32, 3, seed=4)
    assert np.array_equal(long.counts[:3], short.counts)


def test_popularity_forgets_at_the_rate_that_was_asked_for() -> None:
    trace = synthetic_trace(20, 256, 40, seed=0, tokens_per_window=1_000_000, drift=0.05)
    log = np.log(trace.counts + 0.5)
    log -= log.mean(axis=2, keepdims=True)
    correlation = np.mean([np.corrcoef(log[0, layer], log[20, layer])[0, 1] for layer in range(20)])
    assert correlation == pytest.approx(math.exp(-1), abs=0.08)


def test_without_drift_only_sampling_noise_is_left() -> None:
    trace = synthetic_trace(3, 64, 30, seed=1, drift=0.0)
    mean = trace.counts.mean(axis=0)
    assert trace.counts.var(axis=0).sum() == pytest.approx(mean.sum(), rel=0.2)


def test_groups_share_popularity() -> None:
    alone = synthetic_trace(30, 256, seed=2, num_groups=8)
    together = synthetic_trace(30, 256, seed=2, num_groups=8, group_share=0.5)
    spread = [trace.counts.reshape(30, 8, 32).sum(axis=2).std() for trace in (alone, together)]
    assert spread[1] > 1.5 * spread[0]


def test_it_says_what_it_is() -> None:
    assert "synthetic" in synthetic_trace(1, 16).source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 0}, "num_layers"),
        ({"num_windows": 1.5}, "num_windows"),
        ({"seed": -1}, "seed"),
        ({"top_k": 5}, "top_k=5 is more than num_experts=4"),
        ({"num_groups": 3}, "num_groups=3"),
        ({"drift": -0.1}, "drift"),
        ({"drift": [(0.5, 0.1)]}, "sum to 1"),
        ({"drift": "fast"}, "drift"),
        ({"spread": math.nan}, "spread"),
        ({"group_share": 1.5}, "group_share"),
        ({"preset": "nonesuch"}, "unknown preset 'nonesuch'; known are"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        synthetic_trace(**{"num_layers": 1, "num_experts": 4, "top_k": 2, **arguments})


def test_the_preset_decays_with_plan_age_as_published() -> None:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "decay_of_balance.py"
    benchmark = runpy.run_path(str(path))
    results = benchmark["table"](8, 0, ranks=(32, 64))
    for ranks, row in results.items():
        for published, (whole, after) in zip(benchmark["PUBLISHED"][ranks], row, strict=True):
            assert whole == pytest.approx(published, rel=0.15)
            assert after == pytest.approx(published, rel=0.15)
