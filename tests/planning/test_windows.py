"""Windows: merged with their neighbours, and counting alike whatever they carry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.planning.windows import average_steady, merge_windows, to_vectors
from problems import KINDS, loads_of


@given(st.integers(1, 70), st.integers(1, 20))
def test_merging_keeps_every_token_in_order(windows: int, most: int) -> None:
    loads = np.random.default_rng(windows).integers(0, 1000, (windows, 2, 3)).astype(np.float64)
    merged = merge_windows(loads, most)
    assert len(merged) <= most
    if windows <= most:
        assert merged is loads
        return
    size = -(-windows // most)
    assert len(merged) == -(-windows // size)
    ends = [windows - size * k for k in range(len(merged))][::-1]  # the newest groups are the full ones
    starts = [0, *ends[:-1]]
    for group, start, end in zip(merged, starts, ends, strict=True):
        assert np.array_equal(group, loads[start:end].sum(axis=0))


def test_merging_does_not_touch_its_input() -> None:
    loads = np.ones((5, 1, 2))
    merge_windows(loads, 2)[:] = 7.0
    assert (loads == 1.0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_window_has_a_mean_rank_load_of_one(kind: str) -> None:
    loads = loads_of(kind, (3, 4, 10), 2)
    vectors = to_vectors(loads, 5)
    assert vectors.shape == (4, 3, 10)
    assert vectors.flags.c_contiguous
    carries = loads.sum(axis=2).T > 0
    assert np.allclose(vectors.sum(axis=2), np.where(carries, 5.0, 0.0))
    shares = loads / np.maximum(loads.sum(axis=2, keepdims=True), np.finfo(float).tiny)
    assert np.allclose(vectors[carries], 5 * shares.transpose(1, 0, 2)[carries], atol=1e-7)


def test_vectors_do_not_depend_on_the_scale_of_a_window() -> None:
    loads = loads_of("log-normal", (3, 2, 8), 3)
    factors = np.array([1e-9, 1.0, 1e9])[:, None, None]
    assert np.allclose(to_vectors(loads, 4), to_vectors(loads * factors, 4), rtol=1e-8)
    assert np.array_equal(to_vectors(loads, 4), to_vectors(loads * 2.0**40, 4))


def samples(tokens: float, windows: int, experts: int, *, changes: float = 0.0) -> np.ndarray:
    """Counts ``[W, 40, E]`` of about so many tokens from one distribution a layer, or one that changes."""
    rng = np.random.default_rng(int(tokens) + windows)
    shares = np.exp(rng.normal(0.0, 0.9, (40, experts)))
    shares /= shares.sum(axis=1, keepdims=True)
    shares = shares * rng.lognormal(0.0, changes, (windows, 40, experts))
    return rng.poisson(shares * tokens).astype(np.float64)


def averaged_layers(vectors: np.ndarray) -> np.ndarray:
    """Which layers were averaged, every other one being as it was."""
    found = average_steady(vectors)
    mean = np.broadcast_to(vectors.mean(axis=1, keepdims=True), vectors.shape)
    averaged: np.ndarray = np.isclose(found, mean, rtol=1e-12, atol=0.0).all(axis=(1, 2))
    assert np.array_equal(found[~averaged], vectors[~averaged])
    assert (found[averaged] == found[averaged, :1]).all()
    return averaged


@pytest.mark.parametrize("windows", [3, 4, 16])
@pytest.mark.parametrize("tokens", [500.0, 2000.0, 20000.0])
def test_samples_of_one_distribution_are_averaged(tokens: float, windows: int) -> None:
    assert averaged_layers(to_vectors(samples(tokens, windows, 256), 8)).mean() > 0.9


@pytest.mark.parametrize("windows", [3, 4, 16])
def test_loads_that_change_are_not_averaged(windows: int) -> None:
    assert averaged_layers(to_vectors(samples(1e6, windows, 256, changes=0.3), 8)).mean() < 0.1


@pytest.mark.parametrize(("windows", "experts"), [(1, 64), (2, 64), (4, 31)])
def test_few_windows_or_experts_do_not_tell(windows: int, experts: int) -> None:
    vectors = to_vectors(samples(2000.0, windows, experts), 4)
    assert np.array_equal(average_steady(vectors), vectors)


def test_averaging_depends_neither_on_scale_nor_on_other_layers() -> None:
    vectors = to_vectors(samples(2000.0, 4, 64, changes=0.05), 4)
    before = vectors.copy()
    averaged = averaged_layers(vectors)
    assert np.array_equal(vectors, before)
    assert 0.05 < averaged.mean() < 0.95
    assert np.array_equal(averaged_layers(vectors * 2.0**30), averaged)
    assert np.array_equal(average_steady(vectors[::-1]), average_steady(vectors)[::-1])
