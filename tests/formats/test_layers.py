"""A layer is the same layer in every file: idle ones stay, dense ones are told apart, numbers do not shift."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import equipoise as eq
import samples
from equipoise import (
    FormatError,
    LoadTrace,
    Placement,
    PlacementError,
    load_placement,
    load_trace,
    save_placement,
)
from equipoise.formats import read_rows, read_trace
from equipoise.formats.models import MODEL_LAYERS, fillers, model_of_moe, model_of_rows, numbered_for


def busy(layers: int, experts: int, idle: tuple[int, ...] = (), seed: int = 0) -> np.ndarray:
    """Counts ``[L, E]`` without a zero, but for the idle layers."""
    counts = np.random.default_rng(seed).integers(1, 100, (layers, experts))
    counts[list(idle)] = 0
    return counts


def stat(folder: Path, counts: np.ndarray) -> Path:
    path = folder / "stat.json"
    path.write_text(json.dumps({"logical_count": counts.tolist()}))
    return path


def statistics(folder: Path, counts: np.ndarray) -> Path:
    """vLLM's lines for an identity map."""
    path = folder / "stats.jsonl"
    record = {"record_type": "eplb_load_stats", "version": 1, "step": 0, "num_ranks": 2}
    table = [list(range(counts.shape[1]))] * len(counts)
    path.write_text(json.dumps({**record, "expert_load": counts.tolist(), "p2l_map": table}) + "\n")
    return path


@pytest.mark.parametrize("idle", [(0,), (1,), (2,), (0, 1), (0, 2)])
def test_an_idle_layer_stays_in_every_format_that_has_no_dense_ones(
    idle: tuple[int, ...], tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    counts = busy(3, 8, idle)
    np.save(tmp_path / "a.npy", counts)
    (tmp_path / "a.csv").write_text("\n".join(",".join(map(str, row)) for row in counts.tolist()))
    (tmp_path / "h.json").write_text(json.dumps({"load_history": [{"logical_expert_load": counts.tolist()}]}))
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "meta_info.json").write_text('{"num_experts": 8, "num_experts_per_token": 2}')
    save_file({f"0_{3 + i}": row for i, row in enumerate(counts)}, folder / "rank0.safetensors")
    files = [
        tmp_path / "a.npy",
        tmp_path / "a.csv",
        tmp_path / "h.json",
        statistics(tmp_path, counts),
        folder,
    ]
    for path in files:
        trace, findings = read_trace(path)
        np.testing.assert_array_equal(trace.counts[0], counts)
        assert trace.layers == ((3, 4, 5) if path == folder else (0, 1, 2))
        assert [(finding.kind, finding.applied) for finding in findings] == [("idle_layers", False)]


@pytest.mark.parametrize(("key", "read"), [("trtllm", "3"), ("vllm", "0"), ("vllm-ascend", "0")])
def test_the_plan_of_a_layer_stands_under_its_number(key: str, read: str, tmp_path: Path) -> None:
    """Layer 1 is idle; the hot expert is 7 in layer 0 and 2 in layer 2, and has the most replicas there."""
    counts = np.ones((3, 8), dtype=np.int64)
    counts[0, 7] = counts[2, 2] = 50
    counts[1] = 0
    trace = load_trace(statistics(tmp_path, counts))
    if key == "trtllm":
        pytest.importorskip("yaml")
        trace = replace(trace, layers=(3, 4, 5))
    placement = eq.plan(trace, eq.Topology(4, 3)).placement
    path = samples.write_placement(tmp_path, key, placement)
    again = load_placement(path, num_ranks=4)
    assert again.phy2log.shape == (3, 12)
    assert again.layers[0] == int(read)
    assert again.logcnt[0].argmax() == 7
    assert again.logcnt[2].argmax() == 2
    assert (again.logcnt[1] > 0).all()
    # The same file fits as the current placement of a later recording.
    assert load_placement(path, num_ranks=4, layers=trace.layers) == placement


@pytest.mark.parametrize("model", MODEL_LAYERS, ids=lambda model: model.name)
def test_dense_rows_of_known_models_are_left_out_and_idle_ones_kept(model: Any, tmp_path: Path) -> None:
    for idle in ((), (model.moe[0],), (model.moe[-1], model.moe[1])):
        counts = busy(model.num_layers, model.num_experts, (*model.dense, *idle))
        trace, findings = read_trace(stat(tmp_path, counts))
        assert trace.layers == model.moe
        assert trace.num_model_layers == model.num_layers
        np.testing.assert_array_equal(trace.counts[0], counts[list(model.moe)])
        kinds = {finding.kind for finding in findings}
        assert kinds == ({"dense_layers"} if model.dense else set()) | ({"idle_layers"} if idle else set())


@pytest.mark.parametrize(
    ("rows", "experts", "idle"), [(43, 256, (0, 1, 2)), (61, 256, (0, 1)), (6, 8, (0, 3, 5))]
)
def test_zero_rows_that_nobody_calls_dense_stay(
    rows: int, experts: int, idle: tuple[int, ...], tmp_path: Path
) -> None:
    path = stat(tmp_path, busy(rows, experts, idle))
    trace, findings = read_trace(path)
    assert trace.num_layers == rows
    assert findings[0].kind == "idle_layers"
    assert "--layers" in findings[0].message
    wanted = tuple(sorted(set(range(rows)) - set(idle)))
    trace, findings = read_trace(path, layers=wanted)
    assert (trace.layers, trace.num_model_layers, findings) == (wanted, rows, [])


def test_layers_that_contradict_a_file(tmp_path: Path) -> None:
    path = stat(tmp_path, busy(6, 8, (0,)))
    with pytest.raises(FormatError, match="has load in layer 1, which --layers leaves out"):
        load_trace(path, layers=(2, 3, 4, 5))
    with pytest.raises(FormatError, match="has no layer 6, which --layers names; it has 0 to 5"):
        load_trace(path, layers=(4, 5, 6))
    with pytest.raises(FormatError, match="counts 3 MoE layers, but --layers names 2"):
        load_trace(statistics(tmp_path, busy(3, 8)), layers=(1, 2))
    with pytest.raises(eq.ArgumentError, match="strictly increasing"):
        load_trace(path, layers=(2, 1))
    with pytest.raises(eq.ArgumentError, match="num_model_layers must be 1 to"):
        load_trace(path, num_model_layers=0)


def test_models_have_the_layers_of_the_presets() -> None:
    from equipoise.control.presets import MODELS

    shapes = {(len(model.moe), model.num_experts) for model in MODEL_LAYERS}
    assert {(model.layers, model.experts) for model in MODELS.values()} <= shapes


def test_what_cannot_be_told_apart_is_no_known_model() -> None:
    nothing = np.ones(48, dtype=bool)
    assert (
        model_of_rows(48, 128, nothing) is None
    )  # Qwen3-30B, or Llama-4-Maverick with every other row dense
    every_other = np.arange(48) % 2 == 0
    found = model_of_rows(48, 128, every_other)
    assert found is not None
    assert found.name == "Llama-4-Maverick"
    assert model_of_moe(58, 256) is not None
    assert model_of_moe(3, 8) is None


def sglang_file(folder: Path, rows: int, experts: int, slots: int, dense: tuple[int, ...]) -> Path:
    """A placement whose MoE rows are shuffled."""
    rng = np.random.default_rng(1)
    table = np.tile(np.arange(slots) % experts, (rows, 1))
    for row in set(range(rows)) - set(dense):
        table[row] = rng.permutation(table[row])
    path = folder / "sglang.json"
    path.write_text(json.dumps({"physical_to_logical_map": table.tolist()}))
    return path


def test_filling_rows_of_a_known_model_are_left_out(tmp_path: Path) -> None:
    path = sglang_file(tmp_path, 61, 256, 288, (0, 1, 2))
    placement = load_placement(path, num_ranks=32)
    assert placement.layers == tuple(range(3, 61))
    assert placement.num_model_layers == 61
    save_placement(placement, tmp_path / "map.jsonl", "vllm")
    table = json.loads((tmp_path / "map.jsonl").read_text())["initial_global_assignments"]
    assert list(table) == [str(layer) for layer in range(58)]
    assert table["0"] == placement.phy2log[0].tolist()
    save_placement(placement, tmp_path / "again.json", "sglang")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(path.read_text())


def test_sglang_is_not_given_a_known_model_without_its_dense_rows(tmp_path: Path) -> None:
    placement = eq.contiguous_placement(58, 256, 32, 288)
    with pytest.raises(PlacementError, match="layers 0 to 2 are dense: give the model's numbers"):
        save_placement(placement, tmp_path / "p.json", "sglang")
    numbered, remark = numbered_for(placement, "model")
    assert numbered.layers == tuple(range(3, 61))
    assert remark is not None
    assert "DeepSeek-V3" in remark
    save_placement(numbered, tmp_path / "p.json", "sglang")
    assert len(json.loads((tmp_path / "p.json").read_text())["physical_to_logical_map"]) == 61


def test_numbers_are_a_guess_only_where_they_may_be_wrong() -> None:
    counted = LoadTrace(busy(3, 8))
    assert numbered_for(counted, "moe") == (counted, None)
    same, remark = numbered_for(counted, "model")
    assert same is counted
    assert remark is not None
    assert "numbered 0 to 2" in remark
    for sure in (replace(counted, num_model_layers=3), replace(counted, layers=(1, 2, 3))):
        assert numbered_for(sure, "model") == (sure, None)
    all_moe, remark = numbered_for(LoadTrace(busy(94, 128)), "model")
    assert (all_moe.num_model_layers, remark) == (94, None)  # Qwen3-235B has no dense layer


def test_fillers() -> None:
    table = np.array([[0, 1, 2, 0], [0, 1, 2, 1], [1, 2, 0, 0]])
    assert fillers(table, 3).tolist() == [True, False, False]


def test_what_a_file_holds_that_is_no_whole_placement(tmp_path: Path) -> None:
    """Empty slots, lost experts and other ranks come back as they are; as a placement each is one line."""
    record = {"record_type": "eplb_initial_mapping", "version": 1, "num_redundant_experts": 2, "num_slots": 6}
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({**record, "initial_global_assignments": {"0": [0, 1, 3, -1, 1, -1]}}))
    rows = read_rows(path, num_ranks=3)
    assert rows.phy2log.tolist() == [[0, 1, 3, -1, 1, -1]]
    assert (rows.num_ranks, rows.num_experts, rows.layers) == (3, 4, None)
    with pytest.raises(FormatError, match=r"2 of 6 slots without an expert \(-1\) and lacks 1 experts"):
        load_placement(path, num_ranks=3)
    own = samples.write_placement(tmp_path, "equipoise")
    assert read_rows(own, num_ranks=2).num_ranks == 4
    with pytest.raises(FormatError, match="is for 4 ranks, but num_ranks=2"):
        load_placement(own, num_ranks=2)
    lost = tmp_path / "lost.json"
    lost.write_text('{"physical_to_logical_map": [[0, 1, 3, 3]]}')
    assert read_rows(lost, num_ranks=2).phy2log.tolist() == [[0, 1, 3, 3]]
    with pytest.raises(FormatError, match="expert 2 has no slot"):
        load_placement(lost, num_ranks=2)


def test_a_prediction_layer_of_vllm_ascend_with_fewer_slots(tmp_path: Path) -> None:
    devices = [
        [{"device_expert": [0, 1, 2]}, {"device_expert": [2, 3, 0]}],
        [{"device_expert": [0, 1]}, {"device_expert": [2, 3]}],
    ]
    content = {"layer_list": [{"device_list": device} for device in devices]}
    path = tmp_path / "m.json"
    path.write_text(json.dumps(content))
    rows = read_rows(path)
    assert rows.phy2log.tolist() == [[0, 1, 2, 2, 3, 0], [0, 1, -1, 2, 3, -1]]
    assert rows.num_ranks == 2
    with pytest.raises(FormatError, match="2 of 12 slots without an expert"):
        load_placement(path)


def test_convert_and_plan_say_or_ask(run: Any, tmp_path: Path) -> None:
    """The commands: what is known is used, what may be wrong is said, what cannot be known is asked for."""
    dumped = stat(tmp_path, busy(6, 8, (0, 3)))
    plan = ("plan", dumped, "--ranks", 4, "--redundant", 4, "--policy", "greedy")
    code, _, err = run(*plan, "--format", "vllm", "-o", tmp_path / "m.jsonl")
    assert code == 2
    assert "layers 0, 3 of 6 without load may be dense: name the MoE layers with --layers" in err
    code, out, _ = run(*plan, "--format", "vllm", "-o", tmp_path / "m.jsonl", "--layers", "1-2,4-5")
    assert code == 0
    assert len(load_placement(tmp_path / "m.jsonl", num_ranks=4).layers) == 4
    counted = statistics(tmp_path, busy(3, 8))
    code, out, _ = run("plan", counted, "--ranks", 4, "--redundant", 4, "-o", tmp_path / "s.json")
    assert code == 0
    assert "Its layers are numbered 0 to 2, which is right only if no dense layer" in " ".join(out.split())
    options = ("--layers", "1-3", "--model-layers", 5)
    code, out, _ = run("plan", counted, "--ranks", 4, "--redundant", 4, *options, "-o", tmp_path / "s.json")
    assert "Its layers" not in out
    assert len(json.loads((tmp_path / "s.json").read_text())["physical_to_logical_map"]) == 5
    # The served placement knows the numbers of layers that the statistics only count.
    current = ("--current", tmp_path / "s.json")
    code, out, err = run("plan", counted, "--ranks", 4, "--redundant", 4, *current, "-o", tmp_path / "t.json")
    assert (code, err) == (0, "")
    assert len(json.loads((tmp_path / "t.json").read_text())["physical_to_logical_map"]) == 5
    assert "Its layers" not in out
    code, _, err = run(
        "convert", tmp_path / "s.json", tmp_path / "a.json", "--to", "vllm-ascend", "--ranks", 4
    )
    assert code == 2
    assert "layers 0, 4 of 5 may be the filling of dense layers" in err
    more = ("--ranks", 4, "--layers", "1-3")
    code, _, err = run("convert", tmp_path / "s.json", tmp_path / "a.json", "--to", "vllm-ascend", *more)
    assert (code, err) == (0, "")
    np.testing.assert_array_equal(
        load_placement(tmp_path / "a.json").phy2log,
        load_placement(tmp_path / "s.json", num_ranks=4, layers=(1, 2, 3)).phy2log,
    )
    more = ("--to", "sglang", "--ranks", 4)
    code, out, _ = run("convert", tmp_path / "a.json", tmp_path / "b.json", *more)
    assert code == 0
    assert "Its layers are numbered 0 to 2" in out


def test_a_placement_of_another_number_of_layers_than_counted_loads(run: Any, tmp_path: Path) -> None:
    current = sglang_file(tmp_path, 7, 8, 12, (0,))
    code, _, err = run(
        "plan", statistics(tmp_path, busy(3, 8)), "--ranks", 4, "--redundant", 4, "--current", current
    )
    assert code == 2
    assert "has the model's layers 0 to 6, the loads count 3 MoE layers from 0: say with --layers" in err


def test_placement_of_a_shape_that_nobody_knows_keeps_its_rows(tmp_path: Path) -> None:
    path = sglang_file(tmp_path, 7, 8, 12, (0,))
    assert load_placement(path, num_ranks=4).num_layers == 7
    assert load_placement(path, num_ranks=4, layers=range(1, 7)).layers == (1, 2, 3, 4, 5, 6)  # type: ignore[arg-type]
    assert isinstance(load_placement(path, num_ranks=4), Placement)
