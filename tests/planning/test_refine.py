"""Separating twins and refining by swaps, against plain Python."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.planning import refine


def heaviest_first(row: list[int], weights: list[int]) -> list[int]:
    return sorted(row, key=lambda item: (-weights[item], item))


def plain_refine(
    weights: list[int], experts: list[int], ranks: list[list[int]], max_swaps: int
) -> list[list[int]]:
    for _ in range(max_swaps):
        loads = [sum(weights[item] for item in row) for row in ranks]
        p = loads.index(max(loads))
        best = (loads[p],)
        for q, i, j in product(range(len(ranks)), range(len(ranks[p])), range(len(ranks[p]))):
            mine, theirs = ranks[p][i], ranks[q][j]
            change = weights[mine] - weights[theirs]
            value = max(loads[p] - change, loads[q] + change)
            left = [experts[item] for item in ranks[p] if item != mine]
            met = [experts[item] for item in ranks[q] if item != theirs]
            if q != p and experts[theirs] not in left and experts[mine] not in met:
                best = min(best, (value, q, i, j))
        if len(best) == 1:
            break
        _, q, i, j = best
        ranks[p][i], ranks[q][j] = ranks[q][j], ranks[p][i]
        ranks[p], ranks[q] = heaviest_first(ranks[p], weights), heaviest_first(ranks[q], weights)
    return ranks


def plain_separate(weights: list[int], experts: list[int], ranks: list[list[int]]) -> list[list[int]]:
    def names(row: list[int]) -> list[int]:
        return [experts[item] for item in row]

    while True:
        avoidable = [
            (p, i)
            for p, row in enumerate(ranks)
            for i, item in enumerate(row)
            if names(row).count(experts[item]) > 1
            and any(experts[item] not in names(other) for other in ranks)
        ]
        if not avoidable:
            return ranks
        p, i = avoidable[0]
        loads = [sum(weights[item] for item in row) for row in ranks]
        mine = ranks[p][i]
        ways = []
        for q, row in enumerate(ranks):
            if experts[mine] in names(row):
                continue
            for j, theirs in enumerate(row):
                change = weights[mine] - weights[theirs]
                makes_twin = experts[theirs] in names(ranks[p]) and names(row).count(experts[theirs]) == 1
                if not makes_twin:
                    ways.append((max(loads[p] - change, loads[q] + change), q, j))
        _, q, j = min(ways)  # there always is one
        ranks[p][i], ranks[q][j] = ranks[q][j], mine
        ranks[p], ranks[q] = heaviest_first(ranks[p], weights), heaviest_first(ranks[q], weights)


@st.composite
def replicas_on_ranks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Weights and experts of items, equal for equal experts, dealt out to ranks at random."""
    ranks = draw(st.integers(1, 5))
    count = ranks * draw(st.integers(1, 4))
    experts = draw(st.lists(st.integers(0, count), min_size=count, max_size=count))
    largest = draw(st.sampled_from([3, 40, 1 << 30]))
    loads = draw(st.lists(st.integers(0, largest), min_size=count + 1, max_size=count + 1))
    weights = [loads[expert] for expert in experts]
    dealt = draw(st.permutations(range(count)))
    rows = [heaviest_first(list(dealt[r::ranks]), weights) for r in range(ranks)]
    return np.array(weights), np.array(experts), rows


@given(replicas_on_ranks(), st.integers(0, 8))
@settings(max_examples=300)
def test_refine_matches_plain_python(case: tuple, max_swaps: int) -> None:
    weight, experts, rows = case
    members, loads = np.array(rows), weight[np.array(rows)].sum(axis=1)
    before = loads.max()
    done = refine.refine_layer(weight, experts, max_swaps, members, loads)
    assert members.tolist() == plain_refine(weight.tolist(), experts.tolist(), rows, max_swaps)
    assert loads.tolist() == weight[members].sum(axis=1).tolist()
    assert loads.max() <= before
    assert done <= max_swaps


@given(replicas_on_ranks())
@settings(max_examples=300)
def test_separate_matches_plain_python(case: tuple) -> None:
    weight, experts, rows = case
    members, loads = np.array(rows), weight[np.array(rows)].sum(axis=1)
    refine.separate_layer(weight, experts, members, loads)
    assert members.tolist() == plain_separate(weight.tolist(), experts.tolist(), rows)
    assert loads.tolist() == weight[members].sum(axis=1).tolist()
