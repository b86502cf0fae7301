"""Windows: merged with their neighbours, and counting alike whatever they carry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.planning.windows import merge_windows, to_vectors
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
