"""Balance against moves: what a fetch has to earn, and budgets against brute force over all prefixes."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from equipoise.search.budget import Options, choose, worthwhile

Worth = tuple[int, int, float]


def options_of(steps: list[tuple[int, int, int, float]]) -> Options:
    """What prefixes of steps are worth: (fetches, groups, twins, imbalance) that each adds, or takes off."""
    columns = list(zip((0, 0, 0, 0.0), *steps, strict=True))
    fetches, regrouped, parted, gain = (np.cumsum(column) for column in columns)
    return Options(fetches, regrouped, parted, 10.0 - gain.astype(float))


def balance_only(steps: list[tuple[int, float]]) -> Options:
    return options_of([(fetches, 0, 0, gain) for fetches, gain in steps])


GAINS = st.integers(-4, 8).map(float)
BALANCE = st.lists(st.tuples(st.integers(0, 3), GAINS), max_size=6).map(balance_only)
# Gains of balance far above 1000 and counts of both signs: nothing but the order of comparison tells them apart.
HUGE = st.integers(-4, 8).map(lambda gain: gain * 1e6)
ANY = st.lists(
    st.tuples(st.integers(0, 3), st.integers(-1, 1), st.integers(-1, 2), GAINS | HUGE), max_size=6
).map(options_of)
LAYERS = st.lists(ANY, min_size=1, max_size=3)
PRICES = st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0])
BALANCE_LAYERS = st.lists(BALANCE, min_size=1, max_size=3)


def total(layers: list[Options], prefixes: list[int]) -> tuple[int, Worth]:
    """Fetches, and worth (more is better, part by part) of a prefix of each layer."""
    chosen = list(zip(layers, prefixes, strict=True))
    return sum(int(options.fetches[k]) for options, k in chosen), (
        sum(int(options.regrouped[k]) for options, k in chosen),
        sum(int(options.parted[k]) for options, k in chosen),
        -sum(float(options.imbalance[k]) for options, k in chosen),
    )


def ways(layers: list[Options]) -> list[tuple[int, Worth]]:
    return [total(layers, list(way)) for way in product(*(range(len(options.fetches)) for options in layers))]


@given(ANY)
def test_worthwhile_prefixes_are_those_that_nothing_beats(options: Options) -> None:
    every = ways([options])
    expected = {
        (fetches, worth)
        for fetches, worth in every
        if not any((f <= fetches and w > worth) or (f < fetches and w == worth) for f, w in every)
    }
    kept = worthwhile(options)
    assert {every[k] for k in kept} == expected
    assert len(kept) == len(expected)
    assert all(every[i][0] < every[j][0] for i, j in pairwise(kept))


@given(ANY, st.data())
def test_an_infinite_imbalance_is_no_option(options: Options, data: st.DataObject) -> None:
    size = len(options.fetches)
    left_out = data.draw(st.sets(st.integers(1, size - 1))) if size > 1 else set()
    kept = [k for k in range(size) if k not in left_out]
    imbalance = options.imbalance.copy()
    imbalance[list(left_out)] = np.inf
    others = Options(*(field[kept] for field in options))
    assert worthwhile(options._replace(imbalance=imbalance)) == [kept[k] for k in worthwhile(others)]
    assert choose([options._replace(imbalance=imbalance)], None, 0.0) == [kept[worthwhile(others)[-1]]]


@given(LAYERS, st.integers(0, 30), PRICES)
def test_a_budget_buys_what_brute_force_finds(layers: list[Options], budget: int, price: float) -> None:
    fetches, worth = total(layers, choose(layers, budget, price))
    assert fetches <= budget
    best = max((*w[:2], w[2] - price * f) for f, w in ways(layers) if f <= budget)
    assert worth[:2] == best[:2]
    assert np.isclose(worth[2] - price * fetches, best[2])


@given(LAYERS, PRICES)
def test_more_budget_is_never_worse(layers: list[Options], price: float) -> None:
    found = [total(layers, choose(layers, budget, price))[1] for budget in range(25)]
    assert all(
        later >= (*earlier[:2], earlier[2] - 1e-6 * abs(earlier[2])) for earlier, later in pairwise(found)
    )


@given(LAYERS, PRICES)
def test_no_budget_is_a_budget_for_everything(layers: list[Options], price: float) -> None:
    free, large = (total(layers, choose(layers, budget, price)) for budget in (None, 100))
    assert free == large


@given(BALANCE_LAYERS, PRICES)
def test_without_a_budget_every_fetch_earns_its_gain(layers: list[Options], min_gain: float) -> None:
    fetches, worth = total(layers, choose(layers, None, min_gain))
    best = min(-w[2] + min_gain * f for f, w in ways(layers))
    assert np.isclose(-worth[2] + min_gain * fetches, best)


@given(LAYERS, st.sampled_from([0.0, 1.0, 1e9]))
def test_without_a_budget_all_that_can_be_mended_is(layers: list[Options], min_gain: float) -> None:
    _, worth = total(layers, choose(layers, None, min_gain))
    assert worth[:2] == max(w[:2] for _, w in ways(layers))


def test_no_gain_in_balance_outweighs_a_twin_and_no_twin_a_group() -> None:
    balance, twin = options_of([(1, 0, 0, 4000.0)]), options_of([(1, 0, 1, -4000.0)])
    group, twins = options_of([(1, 1, 0, 0.0)]), options_of([(1, 0, 100_000, 0.0)])
    assert choose([balance] * 9 + [twin], 1, 0.0) == [0] * 9 + [1]
    assert choose([twins, balance, group], 1, 0.0) == [0, 0, 1]
    assert choose([twins, balance, group], 2, 0.0) == [1, 0, 1]
    assert choose([twins, balance, group], None, 1e9) == [1, 0, 1]


def test_small_gains_count_beside_many_repairs() -> None:
    # A float that held 10^7 for a group and 10^3 for a twin would have no digits left for these.
    repairs = [options_of([(1, 1, 500, 0.0)])] * 1000
    better, worse = options_of([(1, 0, 0, 2e-9)]), options_of([(1, 0, 0, 1e-9)])
    assert choose([*repairs, worse, better], 1001, 0.0)[-2:] == [0, 1]


def test_rounding_earns_no_fetch() -> None:
    assert worthwhile(balance_only([(2, 1e-15), (1, 0.25), (2, 2e-14)])) == [0, 2]
    assert choose([balance_only([(2, 1e-15)])], 2, 0.0) == [0]


def test_what_does_not_fit_does_not_block_what_does() -> None:
    # Per fetch, the second layer gains most by all its 6 fetches.
    layers = [balance_only([(2, 1.0)]), balance_only([(2, 0.5), (4, 7.0)])]
    assert choose(layers, 5, 0.0) == [1, 1]
    assert choose(layers, 6, 0.0) == [0, 2]


def test_large_budgets() -> None:
    rng = np.random.default_rng(0)
    layers = [balance_only(list(zip(rng.integers(0, 3, 80), rng.random(80), strict=True))) for _ in range(61)]
    for budget in (3000, 1 << 40):
        fetches, _ = total(layers, choose(layers, budget, 0.0))
        assert fetches <= budget
