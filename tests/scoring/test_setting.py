"""The setting that a program is scored in: taken from the trace, said, and never silently unfit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import HONEST, command

from equipoise.control.presets import MODELS
from equipoise.errors import ArgumentError
from equipoise.formats import save_trace
from equipoise.scoring import drifting_trace, score_program, setting_for
from equipoise.scoring.protocols import FULL_MOVE_SECONDS
from equipoise.scoring.setting import PUBLISHED_TOPOLOGY
from equipoise.synthetic import synthetic_trace
from equipoise.topology import Topology
from equipoise.trace import LoadTrace


def shaped(num_layers: int, num_experts: int) -> LoadTrace:
    return synthetic_trace(num_layers, num_experts, 2, top_k=2, tokens_per_window=1000)


def test_the_published_trace_gets_the_published_setting() -> None:
    setting = setting_for(shaped(58, 256))
    assert setting.topology == PUBLISHED_TOPOLOGY
    assert setting.model.name == "deepseek-v3"
    assert not setting.notes
    assert setting.full_move_seconds == pytest.approx(FULL_MOVE_SECONDS)


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_a_known_models_trace_decides(model) -> None:  # type: ignore[no-untyped-def]
    setting = setting_for(shaped(model.layers, model.experts))
    topology = setting.topology
    assert setting.model.expert_bytes() == model.expert_bytes()
    assert topology.num_groups == model.groups
    assert topology.num_ranks == 32
    assert topology.num_slots >= model.experts + 32
    seconds = topology.slots_per_rank * model.layers * model.expert_bytes() / 50e9
    assert setting.full_move_seconds == pytest.approx(seconds)
    assert bool(setting.notes) == (topology != PUBLISHED_TOPOLOGY)
    assert not any("no known model" in note for note in setting.notes)


@given(
    experts=st.integers(2, 300),
    ranks=st.none() | st.integers(1, 100),
    nodes=st.none() | st.integers(1, 12),
    groups=st.none() | st.integers(1, 12),
    slots=st.none() | st.integers(1, 600),
)
def test_any_setting_fits_or_is_refused_by_the_names_of_options(
    experts: int, ranks: int | None, nodes: int | None, groups: int | None, slots: int | None
) -> None:
    trace = LoadTrace([[1] * experts])
    given = {"ranks": ranks, "slots": slots, "nodes": nodes, "groups": groups}
    topology, message = None, ""
    try:
        topology = setting_for(trace, **given).topology
    except ArgumentError as error:
        message = str(error)
    assert "num_" not in message
    assert "slots_per_rank" not in message
    if topology is None:
        assert any(value is not None for value in given.values()), "defaults alone fit"
        return
    topology.check_experts(experts)
    assert ranks in (None, topology.num_ranks)
    assert nodes in (None, topology.num_nodes)
    assert groups in (None, topology.num_groups)
    assert slots in (None, topology.num_slots)


def test_the_cost_of_moves_is_the_models(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(HONEST)
    trace = synthetic_trace(2, 16, 4, drift=1.0)
    topology = Topology(4, 5)
    outcomes = [
        score_program(program, trace, topology=topology, window=1, model=model, salt="x")
        for model in (None, "deepseek-v3", "olmoe")
    ]
    assert [outcome.model for outcome in outcomes] == ["deepseek-v3", "deepseek-v3", "olmoe"]
    move_costs = [outcome.metrics["move_seconds"] for outcome in outcomes]
    assert move_costs[0] == move_costs[1] > 10 * move_costs[2]
    moves = outcomes[2].metrics["moves"]
    assert move_costs[2] == pytest.approx(moves * 5 * 16 * MODELS["olmoe"].expert_bytes() / 50e9)


def test_the_command_prints_its_setting_and_warns_where_defaults_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "trace.safetensors"
    small = synthetic_trace(3, 64, 4)
    save_trace(small, path)
    done = command("greedy", "--trace", str(path), "--window", "1", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "asked for: 96 slots on 32 ranks of 4 nodes, no expert groups" in done.stdout
    assert (
        "for a trace of 3 layers x 64 experts took --ranks 32, --slots 96, --nodes 4, --groups 1"
        in done.stderr
    )
    assert "no known model has 3 layers x 64 experts" in done.stderr
    assert "can be made again from its seed" in done.stderr
    own = ("--ranks", "8", "--slots", "80", "--nodes", "2", "--groups", "4", "--model", "olmoe")
    done = command("greedy", "--trace", str(path), "--window", "1", *own, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    expected = {"ranks": 8, "slots": 80, "nodes": 2, "groups": 4, "model": "olmoe"}
    assert {name: result[name] for name in expected} == expected
    assert "published setting" not in done.stderr
    assert "olmoe has 16 layers x 64 experts" in done.stderr

    save_trace(replace(drifting_trace(num_windows=2), layers=()), path)
    done = command("greedy", "--trace", str(path), COLUMNS="200")
    assert "asked for: 288 slots on 32 ranks of 4 nodes, 8 expert groups" in done.stdout
    assert not done.stderr
    done = command("greedy", "--trace", str(path), "--window", "50", COLUMNS="200")
    assert "windows have 100 steps, more than --window 50: scored as they are" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slots", "200"], "--slots 200 are too few for 256 experts"),
        (["--nodes", "3"], "--ranks 32 are not divisible by --nodes 3"),
        (["--groups", "7"], "256 experts are not divisible by --groups 7"),
        (["--ranks", "0"], "--ranks must be at least 1"),
        (["--model", "nonesuch"], "unknown model 'nonesuch'; known are deepseek-v3"),
        (["--salt", "a b"], "salt must be"),
        (["--time-limit", "0"], "--time-limit must be positive, got 0"),
        (["--start-limit", "-1"], "--start-limit must be positive, got -1"),
        (["--memory-limit", "0"], "--memory-limit must be positive, got 0"),
        (["--time-limit", "inf"], "--time-limit must be positive, got inf"),
        (["--synthetic", "-1"], "seed must be an integer of at least 0"),
    ],
)
def test_wrong_settings_are_named_by_their_options(options: list[str], message: str) -> None:
    done = command("greedy", *(options if "--synthetic" in options else ["--synthetic", "0", *options]))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
