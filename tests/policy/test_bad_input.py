"""Bad input gets an error that names the argument and the way out, never a wrong answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from equipoise import (
    ArgumentError,
    Chunked,
    Ensemble,
    EquipoiseError,
    LoadTrace,
    Topology,
    contiguous_placement,
    plan,
    rebalance_experts,
)

GOOD: dict[str, Any] = {
    "weight": np.arange(16.0).reshape(2, 8),
    "num_replicas": 16,
    "num_groups": 4,
    "num_nodes": 2,
    "num_gpus": 4,
}

# What is changed, and the words that the message must have: the argument, and the way out where there is one.
BAD_REQUESTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "NaN": ({"weight": [[1.0, 2.0, np.nan, 0.0] * 2]}, ["weight[0, 2] is nan", "finite"]),
    "infinite": ({"weight": [[1.0, np.inf] * 4]}, ["weight[0, 1] is inf", "finite"]),
    "too large to sum": ({"weight": [[1e308] * 8] * 2}, ["weight[0, 0]", "at most 1e+300"]),
    "negative": ({"weight": [[1] * 7 + [-3]]}, ["weight[0, 7] is -3", "not negative"]),
    "one axis": ({"weight": np.ones(8)}, ["weight", "[layers, experts]", "got shape [8]"]),
    "four axes": ({"weight": np.ones((1, 1, 1, 8))}, ["weight", "[windows, layers, experts]"]),
    "no layers": ({"weight": np.ones((0, 8))}, ["weight is empty"]),
    "no experts": ({"weight": np.ones((2, 0))}, ["weight is empty"]),
    "ragged": ({"weight": [[1, 2], [3]]}, ["weight is ragged", "same number of experts"]),
    "words": ({"weight": [["a"] * 8]}, ["weight must be numbers"]),
    "nothing": ({"weight": None}, ["weight must be numbers"]),
    "slots and ranks": ({"num_replicas": 17}, ["num_replicas=17", "num_gpus=4", "use 20 or 16"]),
    "too few slots for a rank": ({"num_replicas": 3}, ["num_replicas=3", "use 8"]),
    "fewer slots than experts": ({"num_replicas": 4}, ["num_replicas=4", "8 experts", "at least 8"]),
    "ranks and nodes": ({"num_nodes": 3}, ["num_gpus=4", "num_nodes=3", "num_nodes=1"]),
    "experts and groups": ({"num_groups": 3}, ["8 experts", "num_groups=3", "num_groups=1"]),
    "no ranks": ({"num_gpus": 0}, ["num_gpus must be a positive integer", "got 0"]),
    "negative nodes": ({"num_nodes": -1}, ["num_nodes must be a positive integer"]),
    "slots as float": ({"num_replicas": 16.0}, ["num_replicas must be a positive integer", "16.0"]),
    "groups as bool": ({"num_groups": True}, ["num_groups must be a positive integer"]),
    "unknown policy": ({"policy": "gredy"}, ["unknown policy 'gredy'", "greedy", "ensemble"]),
    "policy of a wrong type": ({"policy": 3}, ["policy must be a name or an object", "got 3"]),
    "policy class": ({"policy": Ensemble}, ["policy must be a name or an object"]),
    "negative seed": ({"seed": -1}, ["seed must be an integer from 0", "got -1"]),
    "float seed": ({"seed": 1.5}, ["seed must be an integer", "1.5"]),
    "current of other layers": ({"current": np.tile(np.arange(8), (3, 2))}, ["current does not fit"]),
    "current of other slots": ({"current": [[*range(8)]] * 2}, ["current has 8 slots", "num_replicas=16"]),
    "current that ranks do not divide": ({"current": [[0, 1, 2]] * 2}, ["current", "3 slots", "num_ranks=4"]),
    "moves that are not limited": (
        {"current": [[*range(8), *range(8)]] * 2, "max_moves": 3, "policy": "greedy"},
        ["'greedy' does not limit moves"],
    ),
    "moves without current": ({"max_moves": 3}, ["max_moves", "current"]),
    "moves from lost experts": (
        {"current": [[0, 1, 2, 3] * 4] * 2, "max_moves": 3},
        ["max_moves", "every expert a slot"],
    ),
    "current with unknown experts": ({"current": np.full((2, 16), 8)}, ["current", "experts are 0 to 7"]),
    "current of floats": ({"current": np.zeros((2, 16))}, ["current", "integer array"]),
    "current ragged": ({"current": [[1], [1, 2]]}, ["current"]),
}


@pytest.mark.parametrize("tensor", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_rebalance_experts(case: str, tensor: bool) -> None:
    changes, words = BAD_REQUESTS[case]
    request = {**GOOD, **changes}
    if tensor:
        torch = pytest.importorskip("torch")
        try:
            request["weight"] = torch.as_tensor(request["weight"])
        except (ValueError, TypeError, RuntimeError):
            pytest.skip("torch has no such tensor")
    with pytest.raises(ArgumentError) as error:
        rebalance_experts(**request)
    for word in words:
        assert word in str(error.value)


BAD_PLANS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "NaN": ({"trace": [[np.nan] * 8]}, ["trace[0, 0] is nan"]),
    "one axis": ({"trace": np.ones(8)}, ["trace", "[layers, experts]"]),
    "topology of a wrong type": ({"topology": (4, 4)}, ["topology must be an equipoise.Topology"]),
    "too many experts": ({"topology": Topology(2, 2)}, ["8 experts", "4 slots", "slots_per_rank=4"]),
    "experts and groups": ({"topology": Topology(4, 4, 1, 3)}, ["num_groups=3", "num_groups=1"]),
    "unknown policy": ({"policy": "nope"}, ["unknown policy 'nope'", "chunked"]),
    "moves without current": ({"max_moves": 3}, ["max_moves", "current"]),
    "moves as share above 1": (
        {"max_moves": 1.5, "current": contiguous_placement(2, 8, 4, 16)},
        ["max_moves", "1.5"],
    ),
    "moves that are not limited": (
        {"max_moves": 5, "current": contiguous_placement(2, 8, 4, 16), "policy": "greedy"},
        ["'greedy' does not limit moves"],
    ),
    "negative moves": ({"max_moves": -1, "current": contiguous_placement(2, 8, 4, 16)}, ["max_moves", "-1"]),
    "moves as words": ({"max_moves": "many", "current": contiguous_placement(2, 8, 4, 16)}, ["max_moves"]),
    "current of other experts": ({"current": contiguous_placement(2, 9, 4, 16)}, ["current does not fit"]),
    "current as a list": ({"current": [[0] * 16] * 2}, ["current must be an equipoise.Placement or Held"]),
    "moves from other ranks": (
        {"current": contiguous_placement(2, 8, 8, 16), "max_moves": 3},
        ["max_moves", "ranks, slots or experts have come or gone"],
    ),
    "huge seed": ({"seed": 1 << 62}, ["seed"]),
}


@pytest.mark.parametrize("case", BAD_PLANS)
def test_plan(case: str) -> None:
    changes, words = BAD_PLANS[case]
    request: dict[str, Any] = {"trace": GOOD["weight"], "topology": Topology(4, 4, 2, 4), **changes}
    with pytest.raises(ArgumentError) as error:
        plan(**request)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("policy", "settings", "word"),
    [
        (Ensemble, {"lpt": 2}, "lpt"),
        (Ensemble, {"random": -1}, "random"),
        (Ensemble, {"noise": 1.0}, "noise"),
        (Ensemble, {"noise": float("nan")}, "noise"),
        (Ensemble, {"max_swaps": -1}, "max_swaps"),
        (Ensemble, {"lpt": 0, "interleaved": 0, "random": 0, "noisy": 0}, "at least one candidate"),
        (Chunked, {"candidates": 0}, "candidates"),
        (Chunked, {"noise": -0.1}, "noise"),
    ],
)
def test_settings(policy: Any, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        policy(**settings)


def test_all_errors_are_of_one_family() -> None:
    assert issubclass(ArgumentError, EquipoiseError)
    assert issubclass(ArgumentError, ValueError)
    with pytest.raises(ValueError, match="counts"):
        LoadTrace([[-1.0]])


def test_tensors_without_numbers_are_refused_in_our_words():
    torch = pytest.importorskip("torch")
    meta = torch.ones(2, 8, device="meta")
    for call in (
        lambda: rebalance_experts(meta, 16, 1, 1, 4),
        lambda: plan(meta, Topology(4, 4)),
        lambda: LoadTrace(meta),
    ):
        with pytest.raises(ArgumentError, match="is on the meta device: it has a shape and no numbers"):
            call()
    with pytest.raises(ArgumentError, match="current is not a placement of these experts"):
        rebalance_experts(np.ones((2, 8)), 8, 1, 1, 4, current=meta)


def test_models_without_groups():
    """SGLang passes None; the plan is that of one group."""
    loads = np.random.default_rng(0).integers(1, 99, (2, 8))
    for found, expected in zip(
        rebalance_experts(loads, 16, None, 2, 4),
        rebalance_experts(loads, 16, 1, 2, 4),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)
