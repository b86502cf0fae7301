"""Forecasts, their error, and the noise floor."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise import ArgumentError, LoadTrace
from equipoise.control.forecast import FORECASTS, Past, forecast_error, noise_floor, possible_forecasts


def past_of(counts, seen, phases=None):
    past = Past(*counts.shape[1:], keep=8)
    for window in range(seen):
        see(past, counts, window, phases)
    return past


def see(past, counts, window, phases=None):
    past.observe(counts[window].astype(float), 1.0, None if phases is None else phases[window])


def test_each_forecast_is_what_it_says():
    counts = np.arange(5 * 2 * 3).reshape(5, 2, 3)
    past = past_of(counts, 4)
    assert np.array_equal(FORECASTS["last"](past, 2), counts[3:4])
    assert np.array_equal(FORECASTS["sum"](past, 2), counts[2:4].sum(axis=0)[None])
    assert np.array_equal(FORECASTS["windows"](past, 3), counts[1:4])
    assert np.array_equal(past.total(), counts[:4].sum(axis=0))
    # History 4: a weight halves every window.
    expected = np.einsum("w,wle->le", np.array([1, 2, 4, 8]) / 15, counts[:4])
    assert FORECASTS["ewma"](past, 4)[0] == pytest.approx(expected)
    # History 8 of which 4 are there: a weight halves every two.
    weights = 0.5 ** (np.array([3, 2, 1, 0]) / 2)
    expected = np.einsum("w,wle->le", weights / weights.sum(), counts[:4])
    assert FORECASTS["ewma"](past, 8)[0] == pytest.approx(expected)


def test_phase_mix_knows_a_phase_that_the_last_windows_barely_hold():
    prefill, decode = np.array([[60, 30, 10]]), np.array([[0, 10, 10]])
    counts = np.stack([prefill, prefill * 3, decode * 5, decode * 2, prefill])
    phases = ("prefill", "prefill", "decode", "decode", "prefill")
    past = past_of(counts, 4, phases)
    assert FORECASTS["phase-mix"](past, 1)[0] == pytest.approx(decode * 2)
    see(past, counts, 4, phases)
    # 40 tokens of decode and 100 of prefill in the last two windows.
    assert FORECASTS["phase-mix"](past, 2)[0] == pytest.approx(decode * 2 + prefill)


def test_phase_mix_survives_a_layer_without_load():
    counts = np.array([[[1, 1], [0, 0]]] * 3)
    assert FORECASTS["phase-mix"](past_of(counts, 2, ("a", "b", "a")), 2)[0].tolist() == [[2, 2], [0, 0]]


def test_forecasts_are_copies():
    counts = np.ones((4, 1, 2), dtype=np.int64)
    phases = ("a",) * 4
    past = past_of(counts, 3, phases)
    for name, forecast in FORECASTS.items():
        forecast(past, 2)[:] = 99
        assert forecast(past, 2).max() < 99, name


def test_phase_mix_needs_phases_only_if_asked_for():
    trace = LoadTrace(np.ones((2, 1, 2)))
    assert possible_forecasts(trace, ["ewma"]) == ["ewma", "last", "sum", "windows"]
    assert "phase-mix" in possible_forecasts(LoadTrace(np.ones((1, 1, 2)), phases=("a",)), [])
    with pytest.raises(ArgumentError, match="tagged with phases"):
        possible_forecasts(trace, ["phase-mix"])


def test_the_error_is_the_part_of_tokens_on_the_wrong_expert():
    assert forecast_error([[[1, 1, 0]]], [[0, 5, 5]]) == pytest.approx(0.5)
    assert forecast_error([[[1, 0]]], [[0, 3]]) == 1.0
    assert forecast_error([[[1, 3]], [[3, 1]]], [[7, 7]]) == 0.0
    # A forecast of nothing is an even one; a layer without load does not count.
    assert forecast_error([[[0, 0], [1, 0]]], [[4, 0], [0, 0]]) == pytest.approx(0.5)
    assert forecast_error([[[1, 0]]], [[0, 0]]) == 0.0


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.1, 1e9))
def test_the_error_does_not_depend_on_scale(left, right, scale):
    actual = [[left, right]]
    one = forecast_error([[[3.0, 1.0]]], actual)
    assert one == pytest.approx(forecast_error([[[3.0 * scale, scale]]], actual))
    assert 0 <= one <= 1


@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_the_floor_is_the_mean_error_of_a_perfect_forecast(tokens):
    rng = np.random.default_rng(0)
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    samples = rng.multinomial(tokens * 8, shares, size=20000)
    errors = 0.5 * np.abs(samples / (tokens * 8) - shares).sum(axis=1)
    expected_counts = (shares * tokens * 8)[None]
    assert noise_floor(expected_counts) == pytest.approx(errors.mean(), rel=0.02)


def test_the_floor_stays_exact_for_large_counts():
    # For large n the mean absolute deviation tends to sqrt(2 n p (1 - p) / pi).
    total = 2.0**40
    floor = noise_floor([[total / 4, total * 3 / 4]])
    assert floor == pytest.approx(np.sqrt(2 * 0.25 * 0.75 / (np.pi * total)), rel=1e-9)


@pytest.mark.parametrize(
    ("tokens", "mean"), [(1, 1), (2, 1), (15, 14), (16, 3), (40, 17), (400, 200), (400, 1)]
)
def test_the_floor_equals_the_sum_over_all_outcomes(tokens, mean):
    share = mean / tokens
    chances = [comb(tokens, x) * share**x * (1 - share) ** (tokens - x) for x in range(tokens + 1)]
    deviation = sum(chance * abs(x - mean) for x, chance in enumerate(chances)) / tokens
    assert noise_floor([[mean, tokens - mean]]) == pytest.approx(deviation, rel=1e-9, abs=1e-15)


def test_the_floor_of_special_loads():
    assert noise_floor([[0.5, 2.0]]) is None
    assert noise_floor([[0, 0]]) == 0.0
    assert noise_floor([[9, 0]]) == 0.0
    assert noise_floor([[9, 0], [0, 0]]) == 0.0
