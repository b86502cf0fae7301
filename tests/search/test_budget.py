"""Balance against moves: the hull, and budgets against brute force over all prefixes."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from equipoise.search.budget import Options, best_steps, choose, hull


def options_of(steps: list[tuple[int, float]]) -> Options:
    """Fetches and values of the prefixes of steps (fetches added, value taken off)."""
    fetches = np.cumsum([0, *(max(0, f) for f, _ in steps)])
    values = 10.0 - np.cumsum([0.0, *(gain for _, gain in steps)])
    return fetches, values


STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(-4, 8).map(float)), max_size=6)
LAYERS = st.lists(STEPS.map(options_of), min_size=1, max_size=3)


def cost(layers: list[Options], prefixes: list[int]) -> tuple[int, float]:
    fetches = sum(int(f[k]) for (f, _), k in zip(layers, prefixes, strict=True))
    return fetches, sum(float(v[k]) for (_, v), k in zip(layers, prefixes, strict=True))


@given(STEPS.map(options_of), st.floats(0, 6))
def test_the_hull_has_the_best_prefix_for_every_price_of_a_fetch(options: Options, price: float) -> None:
    fetches, values = options
    paid = values + price * fetches
    assert np.isclose(paid[hull(options)].min(), paid.min())


@given(STEPS.map(options_of))
def test_the_hull_is_convex_and_starts_without_a_fetch(options: Options) -> None:
    fetches, values = options
    kept = hull(options)
    assert fetches[kept[0]] == 0
    assert values[kept[0]] == values[fetches == 0].min()
    slopes = np.diff(values[kept]) / np.diff(fetches[kept])
    assert (slopes < 0).all()
    assert (np.diff(slopes) > 0).all()


@given(LAYERS, st.integers(0, 30))
def test_a_budget_buys_what_brute_force_finds(layers: list[Options], budget: int) -> None:
    fetches, value = cost(layers, choose(layers, budget, 0.0))
    assert fetches <= budget
    ways = [cost(layers, list(way)) for way in product(*(range(len(f)) for f, _ in layers))]
    assert np.isclose(value, min(v for f, v in ways if f <= budget))


@given(LAYERS)
def test_more_budget_is_never_worse(layers: list[Options]) -> None:
    values = [cost(layers, choose(layers, budget, 0.0))[1] for budget in range(25)]
    assert (np.diff(values) <= 1e-9).all()


@given(LAYERS, st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
def test_without_a_budget_every_fetch_earns_its_gain(layers: list[Options], min_gain: float) -> None:
    fetches, value = cost(layers, choose(layers, None, min_gain))
    ways = [cost(layers, list(way)) for way in product(*(range(len(f)) for f, _ in layers))]
    assert np.isclose(value + min_gain * fetches, min(v + min_gain * f for f, v in ways))


@given(LAYERS)
def test_best_steps_come_by_falling_gain_and_add_up(layers: list[Options]) -> None:
    taken = [hull(options)[0] for options in layers]
    last = np.inf
    for layer, prefix, fetches, gain in best_steps(layers):
        assert gain / fetches <= last * (1 + 1e-12)
        last = gain / fetches
        before = layers[layer][0][taken[layer]], layers[layer][1][taken[layer]]
        assert fetches == layers[layer][0][prefix] - before[0]
        assert np.isclose(gain, before[1] - layers[layer][1][prefix])
        taken[layer] = prefix
    assert taken == [hull(options)[-1] for options in layers]


def test_what_does_not_fit_does_not_block_what_does() -> None:
    # On the hull, the second layer goes from nothing to its last prefix in one step of 6 fetches.
    layers = [options_of([(2, 1.0)]), options_of([(2, 0.5), (4, 7.0)])]
    assert choose(layers, 5, 0.0) == [1, 1]
    assert choose(layers, 6, 0.0) == [0, 2]


def test_large_budgets() -> None:
    rng = np.random.default_rng(0)
    layers = [options_of(list(zip(rng.integers(0, 3, 80), rng.random(80), strict=True))) for _ in range(61)]
    for budget in (3000, 1 << 40):
        fetches, _ = cost(layers, choose(layers, budget, 0.0))
        assert fetches <= budget
