"""Windows: merged with their neighbours, and counting alike whatever they carry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise import Topology
from equipoise.planning.scale import sum_windows
from equipoise.planning.windows import merge_windows, steady_layers, to_vectors
from equipoise.search.fresh import planned_vectors
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


def samples(
    tokens: float, windows: int, experts: int, *, alone: float = 0.0, together: float = 0.0
) -> np.ndarray:
    """Counts ``[W, 120, E]`` of about so many tokens from one distribution a layer, or one that changes.

    Parameters
    ----------
    alone : how much each expert changes by itself
    together : how much experts change with others, one half of them rising where the other one falls
    """
    rng = np.random.default_rng(int(tokens) + windows)
    shares = np.exp(rng.normal(0.0, 0.9, (120, experts)))
    shares /= shares.sum(axis=1, keepdims=True)
    shares = shares * rng.lognormal(0.0, alone, (windows, 120, experts))
    side = rng.choice([-1.0, 1.0], (120, experts))
    shares = shares * np.exp(rng.normal(0.0, together, (windows, 120, 1)) * side)
    return rng.poisson(shares * tokens).astype(np.float64)


def steady(loads: np.ndarray) -> np.ndarray:
    """Which layers say no more than their sum."""
    vectors = to_vectors(loads, 8)
    before = loads.copy(), vectors.copy()
    found = steady_layers(loads, vectors)
    assert np.array_equal(loads, before[0])
    assert np.array_equal(vectors, before[1])
    return found


@pytest.mark.parametrize("windows", [2, 3, 4, 16])
@pytest.mark.parametrize("tokens", [500.0, 2000.0, 20000.0])
def test_samples_of_one_distribution_are_steady(tokens: float, windows: int) -> None:
    assert steady(samples(tokens, windows, 256)).mean() > 0.7


@pytest.mark.parametrize("windows", [2, 3, 4, 16])
@pytest.mark.parametrize("tokens", [5000.0, 1e6])
def test_experts_that_change_together_are_not(tokens: float, windows: int) -> None:
    assert steady(samples(tokens, windows, 256, together=0.8)).mean() < 0.3


def test_experts_that_change_each_by_itself_are_from_five_windows_on() -> None:
    """Of fewer windows counts alone are, which scatter as counts do."""
    shares = {windows: steady(samples(1e6, windows, 256, alone=0.3)).mean() for windows in (2, 3, 4, 5, 16)}
    assert max(shares[2], shares[3], shares[4]) < 0.1
    assert min(shares[5], shares[16]) > 0.7


def test_of_two_windows_only_counts_are() -> None:
    counts = samples(2000.0, 2, 64)
    noisy = counts * np.random.default_rng(0).uniform(1.0, 1.001, counts.shape)
    assert steady(counts).mean() > 0.7
    assert not steady(noisy).any()


def test_all_windows_equal_are() -> None:
    loads = samples(2000.0, 1, 64)
    assert steady(np.repeat(loads, 3, axis=0)).all()
    assert steady(np.repeat(loads, 5, axis=0) * np.array([1.0, 0.1, 0.3, 0.7, 0.9])[:, None, None]).all()


@pytest.mark.parametrize(("windows", "experts"), [(1, 64), (4, 31)])
def test_one_window_or_few_experts_do_not_tell(windows: int, experts: int) -> None:
    assert not steady(samples(2000.0, windows, experts)).any()


@pytest.mark.parametrize("windows", [2, 3, 5])
def test_a_single_window_with_load_does_not_tell(windows: int) -> None:
    loads = np.zeros((windows, 120, 64))
    loads[1] = samples(2000.0, 1, 64)[0]
    loads[:, 7] = 0.0
    assert not steady(loads).any()


@pytest.mark.parametrize("windows", [2, 3, 4])
def test_windows_of_other_sizes_are_samples_too(windows: int) -> None:
    sizes = np.array([500.0, 20000.0, 3000.0, 50.0])[:windows, None, None]
    rng = np.random.default_rng(windows)
    shares = rng.lognormal(0.0, 0.9, (120, 128)) / 200.0
    loads = rng.poisson(shares * sizes).astype(np.float64)
    found = steady(loads)
    assert found.mean() > 0.6
    planned = planned_vectors(loads, Topology(72, 2))
    total = to_vectors(sum_windows(loads)[None], 72)
    assert np.array_equal(planned[found], np.repeat(total[found], windows, axis=1))
    assert np.array_equal(planned[~found], to_vectors(loads, 72)[~found])


def test_with_four_slots_a_rank_windows_stay_as_they_are() -> None:
    loads = samples(2000.0, 4, 64)
    assert steady(loads).any()
    assert np.array_equal(planned_vectors(loads, Topology(17, 4)), to_vectors(loads, 17))


@pytest.mark.parametrize("windows", [2, 3, 4, 16])
def test_it_depends_neither_on_scale_nor_on_other_layers(windows: int) -> None:
    loads = np.concatenate([samples(2000.0, windows, 64), samples(2000.0, windows, 64, together=0.3)], axis=1)
    found = steady(loads)
    assert 0.3 < found.mean() < 0.7
    for scale in (2.0**30, 1.0 / 3.0, 1e290, 2.0**-1070):
        assert np.array_equal(steady(loads * scale), found)
    assert np.array_equal(steady(loads[:, ::-1]), found[::-1])
    assert np.array_equal(steady(loads[:, :5]), found[:5])


@given(st.sampled_from(KINDS), st.integers(1, 6), st.integers(30, 40), st.integers(0, 1 << 20))
def test_any_loads_are_told(kind: str, windows: int, experts: int, seed: int) -> None:
    with np.errstate(all="raise", under="ignore"):
        found = steady(loads_of(kind, (windows, 3, experts), seed))
    assert found.shape == (3,)
    assert found.dtype == np.bool_
