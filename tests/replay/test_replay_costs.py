"""The cost model, its presets, and the gate."""

from __future__ import annotations

import numpy as np
import pytest
from replay_reference import Plain

from equipoise import ArgumentError, LoadTrace, Placement, Topology, rank_loads
from equipoise.control import ACCELERATORS, LINKS, MODELS, WEIGHT_BYTES, CostModel, cost_model
from equipoise.control.gate import Gate
from equipoise.control.presets import model_of_shape
from equipoise.replay import replay
from equipoise.replay.result import FLOOR, GATED, ONCE, POLICY

# Parameters of the whole model as published, in billions.
PUBLISHED = {
    "deepseek-v3": 671,
    "deepseek-r1": 671,
    "deepseek-v2-lite": 15.7,
    "kimi-k2": 1026,
    "qwen3-235b": 235,
    "qwen3-30b": 30.5,
    "qwen3-next": 80,
    "glm-4.5": 355,
    "glm-4.5-air": 106,
    "gpt-oss-120b": 116.8,
    "gpt-oss-20b": 20.9,
    "mixtral-8x7b": 46.7,
    "mixtral-8x22b": 141,
    "olmoe": 6.92,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_experts_are_nearly_all_of_a_model(name):
    model = MODELS[name]
    billions = model.layers * model.experts * model.expert_weights / 1e9
    assert 0.9 * PUBLISHED[name] < billions < PUBLISHED[name]
    assert model.top_k < model.experts
    assert model.experts % model.groups == 0
    assert model.source.startswith("https://")
    assert model_of_shape(model.layers, model.experts).expert_weights == model.expert_weights


def test_bytes_of_an_expert_by_dtype():
    model = MODELS["deepseek-v3"]
    assert model.expert_bytes("bf16") == 3 * 7168 * 2048 * 2
    assert model.expert_bytes() == 3 * 7168 * 2048 + 4 * 3 * (7168 // 128) * (2048 // 128)
    assert MODELS["gpt-oss-20b"].expert_bytes() == 3 * 2880 * 2880 * 4.25 / 8
    assert all(entry.source for table in (WEIGHT_BYTES, LINKS, ACCELERATORS) for entry in table.values())


def test_time_per_token_from_presets():
    model = cost_model("qwen3-30b", accelerator="h100", compute_efficiency=0.5)
    assert model.token_s == pytest.approx(2 * 3 * 2048 * 768 / (989e12 * 0.5))
    # A format that the chip does not multiply is widened.
    assert cost_model("gpt-oss-20b").token_s == pytest.approx(2 * 3 * 2880**2 / (989e12 * 0.5))
    assert cost_model("gpt-oss-20b", accelerator="B200").token_s < cost_model("gpt-oss-20b").token_s / 8
    assert cost_model("olmoe", token_s=1e-7).token_s == 1e-7
    assert cost_model("olmoe", inter="ib-400g", link_efficiency=0.8).inter_bytes_per_s == 40e9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "gpt-5"}, "unknown model 'gpt-5'; known are deepseek-v3"),
        ({"model": "olmoe", "dtype": "fp7"}, "unknown dtype"),
        ({"model": "olmoe", "accelerator": "tpu"}, "unknown accelerator"),
        ({"model": "olmoe", "inter": "avian"}, "unknown link"),
        ({"model": "olmoe", "link_efficiency": 0}, "link_efficiency"),
        ({"model": "olmoe", "token_s": -1.0}, "token_s"),
        ({"model": "olmoe", "tile": 0}, "tile"),
        ({"model": "olmoe", "rank_speed": [1.0, 0.0]}, "rank_speed"),
        ({"model": "olmoe", "rank_speed": []}, "rank_speed"),
        ({"model": "olmoe", "fixed_s": float("nan")}, "fixed_s"),
    ],
)
def test_wrong_figures_are_named(options, words):
    with pytest.raises(ArgumentError, match=words):
        cost_model(**options)


def simple(**changes):
    figures = {"token_s": 1.0, "expert_bytes": 60, "intra_bytes_per_s": 20.0, "inter_bytes_per_s": 10.0}
    return CostModel(**{**figures, **changes})


def test_moves_inside_and_between_nodes():
    topology = Topology(4, 2, num_nodes=2)
    old = Placement([[0, 1, 2, 3, 4, 5, 6, 7]], 4, 8)
    assert simple().move_time(old, old, topology) == 0
    # Slots of a rank change places: nothing to fetch. Ranks 0 and 1 exchange an expert inside their node: 3 s.
    near = Placement([[1, 0, 2, 3, 4, 5, 6, 7]], 4, 8)
    assert simple().move_time(near, old, topology) == 0
    swap = Placement([[0, 2, 1, 3, 4, 5, 6, 7]], 4, 8)
    assert simple().move_time(swap, old, topology) == 3
    # Ranks 0 and 2 exchange one across nodes (6 s), while rank 1 and 3 have less to do: the slowest counts.
    far = Placement([[4, 2, 1, 3, 0, 5, 6, 7]], 4, 8)
    assert simple().move_time(far, old, topology) == pytest.approx(6 + 3)
    assert simple().move_time(far, old, Topology(4, 2)) == pytest.approx(3 + 3)


def test_layers_move_one_after_another():
    old = Placement([[0, 1, 2, 3]] * 2, 2, 4)
    new = Placement([[0, 2, 1, 3]] * 2, 2, 4)
    assert simple().move_time(new, old, Topology(2, 2)) == 6


def test_layer_time_with_tiles_and_speeds():
    placement = Placement([[0, 1, 0, 2]], 2, 3)
    counts = np.array([[[40.0, 30.0, 5.0]]])
    loads = rank_loads(counts, placement)
    steps = np.array([2.0])
    assert simple(fixed_s=7.0).layer_times(counts, loads, placement, steps).tolist() == [[14 + 50]]
    # Per step 10 + 15 and 10 + 2.5 tokens; in tiles of 8: 16 + 16 and 16 + 8.
    assert simple(tile=8).layer_times(counts, loads, placement, steps).tolist() == [[64]]
    slow = simple(rank_speed=(1.0, 0.25)).layer_times(counts, loads, placement, steps)
    assert slow.tolist() == [[100]]


def test_gate_trusts_promises_as_far_as_they_were_kept():
    gate = Gate()
    assert gate.trust == 1.0
    assert gate.takes(2.0, 1.0)
    assert not gate.takes(1.0, 1.0)
    assert not gate.takes(-1.0, 0.0)
    gate.learn(10.0, 4.0)
    assert gate.trust == pytest.approx(0.4)
    assert not gate.takes(2.0, 1.0)
    gate.learn(10.0, 10.0)
    assert gate.trust == pytest.approx((2 + 10) / (5 + 10))
    gate.learn(10.0, -100.0)
    assert gate.trust == 0.0
    for _ in range(12):
        gate.learn(10.0, 12.0)
    assert gate.trust == 1.0


def steady(num_windows=40):
    rng = np.random.default_rng(3)
    popularity = np.exp(rng.normal(0, 1.5, (2, 8)))
    return LoadTrace(rng.poisson(1000 * popularity, (num_windows, 2, 8)))


def series_by_role(cost, trace, **options):
    result = replay(
        trace,
        Topology(4, 3),
        [Plain()],
        interval=4,
        history=4,
        reference=Plain(),
        cost=cost,
        gate=True,
        **options,
    )
    return {series.role: series for series in result.series}


def test_gate_moves_always_when_moves_cost_nothing_and_never_when_they_cost_too_much():
    free = series_by_role(simple(expert_bytes=0), steady())
    assert free[GATED].summary.replans >= 1
    assert free[GATED].summary.lost_s == 0
    dear = series_by_role(simple(expert_bytes=10**15), steady())
    assert dear[GATED].summary.replans == 0
    assert dear[GATED].summary.net_s == 0
    assert dear[GATED].mean_imbalance.tolist() == dear[FLOOR].mean_imbalance.tolist()
    assert dear[POLICY].summary.net_s < 0


def test_on_steady_traffic_the_gate_moves_once_and_beats_moving_always():
    found = series_by_role(simple(expert_bytes=60_000), steady(), horizon=36)
    assert found[GATED].summary.replans == 1
    assert found[GATED].summary.net_s == pytest.approx(found[ONCE].summary.net_s)
    assert found[GATED].summary.net_s > max(0, found[POLICY].summary.net_s)
    assert [replan.taken for replan in found[GATED].replans] == [True] + [False] * 8
    assert all(replan.predicted_gain_s is not None for replan in found[GATED].replans)
    assert all(0 <= replan.trust <= 1 for replan in found[GATED].replans)


def test_a_forecast_of_many_windows_promises_no_more_than_one_of_a_single_window():
    gains = []
    for forecast in ("sum", "ewma"):
        found = series_by_role(
            simple(), LoadTrace(np.tile(steady(1).counts, (12, 1, 1))), forecasts=[forecast]
        )
        gains.append(found[GATED].replans[0].predicted_gain_s)
    assert gains[0] == pytest.approx(gains[1])
