"""A replay that knows token routes scores every series by where these tokens go, too."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from equipoise import (
    ArgumentError,
    LoadTrace,
    PairCounts,
    Routes,
    Topology,
    contiguous_placement,
    count_pairs,
    plan,
    together,
)
from equipoise.cli import main
from equipoise.plans.communication import communication
from equipoise.replay import ReplayResult, replay
from equipoise.report.tables import balance_table

WINDOWS, TOKENS, EXPERTS = 6, 40, 16


def recorded(padding: bool = False) -> tuple[np.ndarray, LoadTrace, list[Routes]]:
    """Routes ``[L, tokens, k]``, their loads, and the routes of each window."""
    rng = np.random.default_rng(0)
    topk = rng.permuted(np.tile(np.arange(EXPERTS), (2, WINDOWS * TOKENS, 1)), axis=2)[:, :, :3].copy()
    topk[..., 0] = rng.integers(0, 3, topk.shape[:2])
    if padding:
        topk[:, ::7] = -1
    whole = Routes(topk, EXPERTS)
    parts = [whole[window * TOKENS : (window + 1) * TOKENS] for window in range(WINDOWS)]
    counts = [[np.bincount(layer[layer >= 0], minlength=EXPERTS) for layer in part.topk] for part in parts]
    return topk, LoadTrace(np.array(counts)), parts


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_floor_is_that_of_contiguous_placement(nodes: int) -> None:
    _, trace, parts = recorded()
    topology = Topology(4, 4, nodes)
    result = replay(trace, topology, ["robust"], interval=2, history=2, routes=parts)
    floor = contiguous_placement(2, EXPERTS, 4)
    found = [communication(part, floor, topology) for part in parts[2:]]
    summary = result.floor(topology).summary
    assert summary.ranks_per_token == pytest.approx(np.mean([each.ranks_per_token for each in found]))
    assert summary.nodes_per_token == pytest.approx(np.mean([each.nodes_per_token for each in found]))
    names = [column.name for column in balance_table(result, topology).columns]
    assert ("ranks a token" in names, "nodes a token" in names) == (True, nodes > 1)
    again = ReplayResult.from_dict(json.loads(json.dumps(result.as_dict())))
    assert again.floor(topology).summary == summary


def test_without_routes_nothing_is_said() -> None:
    _, trace, _ = recorded()
    topology = Topology(4, 4, 2)
    result = replay(trace, topology, ["greedy"], interval=2, history=2)
    assert result.floor(topology).summary.nodes_per_token is None
    assert "nodes a token" not in [column.name for column in balance_table(result, topology).columns]


def test_routes_of_other_windows_are_refused() -> None:
    _, trace, parts = recorded()
    for wrong in (parts[1:], [part[1:] for part in parts], [part.rows([0]) for part in parts]):
        with pytest.raises(ArgumentError, match="routes"):
            replay(trace, Topology(4, 4), ["greedy"], interval=2, history=2, routes=wrong)


@pytest.mark.parametrize(("nodes", "interval"), [(1, 2), (2, 3)])
def test_pairs_tell_what_lives_together(nodes: int, interval: int) -> None:
    """Of the floor, and of plans, each as long as it is served: the last interval may be shorter."""
    _, trace, parts = recorded()
    pairs = count_pairs(parts[0])
    topology = Topology(4, 6, nodes)
    options = {"interval": interval, "history": 2, "reference": "greedy"}
    result = replay(trace, topology, ["robust"], routes=pairs, **options)  # type: ignore[arg-type]
    floor, oracle = result.floor(topology), result.on(topology)[-1]
    starts = range(2, WINDOWS, interval)
    plans = [plan(trace[start : start + interval], topology, policy="greedy").placement for start in starts]
    served = [min(start + interval, WINDOWS) - start for start in starts]
    for series, placements in ((floor, [contiguous_placement(2, EXPERTS, 4, 24)]), (oracle, plans)):
        found = [together(pairs, each, topology) for each in placements]
        weights = served[: len(placements)]
        rank, node = (
            np.average([value.mean() for value in values], weights=weights)
            for values in ([each.on_rank for each in found], [each.on_node for each in found])
        )
        told = series.summary
        assert (told.pairs_on_one_rank, told.pairs_on_one_node) == pytest.approx((rank, node))
        assert told.ranks_per_token is told.nodes_per_token is None
    table = balance_table(result, topology)
    names = [column.name for column in table.columns]
    assert ("pairs on one rank" in names, "pairs on one node" in names) == (True, nodes > 1)
    assert "need token routes" in table.notes[-1]
    again = ReplayResult.from_dict(json.loads(json.dumps(result.as_dict())))
    assert again.floor(topology).summary == floor.summary


def test_pairs_and_routes_tell_the_same_of_the_same_tokens() -> None:
    """Two experts a token, no replicas, the same tokens in each window: a pair on one rank is a rank less."""
    rng = np.random.default_rng(1)
    topk = rng.permuted(np.tile(np.arange(EXPERTS), (2, TOKENS, 1)), axis=2)[:, :, :2]
    part = Routes(topk, EXPERTS)
    trace = LoadTrace(np.array([[np.bincount(layer.ravel(), minlength=EXPERTS) for layer in topk]] * 5))
    topology = Topology(4, 4, 2)
    by_routes, by_pairs = (
        replay(trace, topology, ["greedy", "robust"], interval=2, history=2, routes=routes)
        for routes in ([part] * 5, count_pairs(part))
    )
    for one, other in zip(by_routes.series, by_pairs.series, strict=True):
        known, told = one.summary, other.summary
        assert told.pairs_on_one_rank is not None
        assert told.pairs_on_one_node is not None
        assert known.ranks_per_token == pytest.approx(2 - told.pairs_on_one_rank)
        assert known.nodes_per_token == pytest.approx(2 - told.pairs_on_one_node)


def test_plans_are_made_without_pairs() -> None:
    _, trace, parts = recorded()
    topology = Topology(4, 4, 2)
    found, bare = (
        replay(trace, topology, ["robust"], interval=2, history=2, routes=routes)
        for routes in (count_pairs(parts[0]), None)
    )
    for one, other in zip(found.series, bare.series, strict=True):
        assert one.last_rank_loads.tolist() == other.last_rank_loads.tolist()
        assert [each.moves for each in one.replans] == [each.moves for each in other.replans]


def test_pairs_of_other_layers_or_experts_are_refused() -> None:
    _, trace, parts = recorded()
    wrong = (count_pairs(parts[0].rows([0])), PairCounts(np.ones((2, EXPERTS - 1, EXPERTS - 1))))
    for pairs in wrong:
        with pytest.raises(ArgumentError, match="routes are PairCounts"):
            replay(trace, Topology(4, 4), ["greedy"], interval=2, history=2, routes=pairs)


@pytest.mark.parametrize("padding", [False, True])
def test_the_command_takes_those_of_the_loads(
    padding: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    topk, trace, parts = recorded(padding)
    path = tmp_path / "routes.npz"
    np.savez(path, topk=topk)
    command = [
        "equipoise",
        "replay",
        str(path),
        "--ranks",
        "4",
        "--nodes",
        "2",
        "--policies",
        "greedy",
        "--json",
    ]
    monkeypatch.setattr(
        sys, "argv", [*command, "--window-tokens", str(TOKENS), "--history", "2", "--interval", "2"]
    )
    with contextlib.suppress(SystemExit):
        main()
    found = ReplayResult.from_dict(json.loads(capsys.readouterr().out))
    topology = Topology(4, 4, 2)
    expected = replay(trace, topology, ["greedy"], interval=2, history=2, routes=parts)
    for one, other in zip(found.on(topology), expected.on(topology), strict=True):
        assert one.summary.nodes_per_token == pytest.approx(other.summary.nodes_per_token)
