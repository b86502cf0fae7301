"""Writers of placements: read back exactly, and accepted by what the engines check."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import samples
from equipoise import (
    ArgumentError,
    FileAccessError,
    FormatError,
    MissingDependencyError,
    Placement,
    PlacementError,
    load_placement,
    save_placement,
)

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("key", samples.FILES)
@quick
@given(data=st.data())
def test_round_trip(key: str, data: st.DataObject, tmp_path: Path) -> None:
    if key == "trtllm":
        pytest.importorskip("yaml")
    placement = data.draw(samples.placements(twins=key != "vllm-ascend"))
    path = samples.write_placement(tmp_path, key, placement)
    again = load_placement(
        path,
        num_ranks=placement.num_ranks,
        layers=placement.layers,
        num_model_layers=placement.num_model_layers,
    )
    assert again == placement


def test_own_format_needs_to_be_told_nothing(tmp_path: Path) -> None:
    path = samples.write_placement(tmp_path, "equipoise")
    assert load_placement(path) == samples.placement()
    with pytest.raises(FormatError, match="is for 4 ranks"):
        load_placement(path, num_ranks=2)


@pytest.mark.parametrize("key", ["sglang", "trtllm", "vllm"])
def test_ranks_must_be_given_where_the_file_does_not_tell(key: str, tmp_path: Path) -> None:
    if key == "trtllm":
        pytest.importorskip("yaml")
    path = samples.write_placement(tmp_path, key)
    with pytest.raises(ArgumentError, match="give num_ranks"):
        load_placement(path)
    with pytest.raises(FormatError, match="12 slots are not divisible by num_ranks=5"):
        load_placement(path, num_ranks=5)


def test_ascend_tells_its_ranks(tmp_path: Path) -> None:
    assert load_placement(samples.write_placement(tmp_path, "vllm-ascend")).num_ranks == 4


def test_layers_that_are_not_there(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    path = samples.write_placement(tmp_path, "trtllm")
    with pytest.raises(FormatError, match="has no layer 3; it has 1, 2, 4"):
        load_placement(path, num_ranks=4, layers=(1, 2, 3))
    path = samples.write_placement(tmp_path, "vllm")
    with pytest.raises(FormatError, match="holds 3 MoE layers, but 2"):
        load_placement(path, num_ranks=4, layers=(1, 2))


def test_sglang_file_has_only_the_one_key_and_every_layer(tmp_path: Path) -> None:
    content = json.loads(samples.write_placement(tmp_path, "sglang").read_text())
    assert list(content) == ["physical_to_logical_map"]
    table = np.array(content["physical_to_logical_map"])
    assert table.shape == (6, samples.SLOTS)
    np.testing.assert_array_equal(table[[1, 2, 4]], samples.phy2log())
    for dense in (0, 3, 5):
        assert table[dense].tolist() == [slot % samples.EXPERTS for slot in range(samples.SLOTS)]


def test_sglang_file_with_another_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"physical_to_logical_map": [[0, 1]], "num_ranks": 2}))
    with pytest.raises(FormatError, match="accepts no other key"):
        load_placement(path, num_ranks=2)


@pytest.fixture(scope="module")
def expert_location() -> Any:
    """SGLang's own module that reads ``--init-expert-location``, from an installed wheel.

    ``pip install --no-deps sglang`` is enough: the module is run from its source with stand-ins for the
    parts of the server that it asks for its configuration.
    """
    pytest.importorskip("torch")
    spec = importlib.machinery.PathFinder.find_spec("sglang")
    # A folder of that name, such as tests/engines/sglang, is no package: it has no origin.
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        pytest.skip("sglang is not installed (pip install --no-deps sglang)")
    source = Path(next(iter(spec.submodule_search_locations))) / "srt" / "eplb" / "expert_location.py"
    module = types.ModuleType("sglang_expert_location")
    context = types.ModuleType("sglang.srt.runtime_context")
    server: dict[str, Any] = {}
    for name in ("get_device", "get_exec", "get_parallel", "get_resources"):
        setattr(context, name, lambda: types.SimpleNamespace(**server))
    saved = {name: sys.modules.get(name) for name in ("sglang", "sglang.srt", "sglang.srt.runtime_context")}
    sys.modules.update({"sglang": types.ModuleType("sglang"), "sglang.srt": types.ModuleType("sglang.srt")})
    sys.modules["sglang.srt.runtime_context"] = context
    sys.modules[module.__name__] = module
    try:
        exec(compile(source.read_text(), str(source), "exec"), module.__dict__)
    except ImportError as error:
        pytest.skip(f"this sglang needs more than its own module: {error}")
    finally:
        for name, old in saved.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old
    module._prefer_same_node_experts = lambda: False  # type: ignore[attr-defined]
    return module, server


@pytest.mark.parametrize("key", ["sglang", "sglang.pt"])
def test_sglang_itself_reads_our_file(key: str, tmp_path: Path, expert_location: Any) -> None:
    module, server = expert_location
    placement = samples.placement()
    path = samples.write_placement(tmp_path, key)
    moe = types.SimpleNamespace(
        init_expert_location=str(path),
        ep_num_redundant_experts=samples.SLOTS - samples.EXPERTS,
        ep_dispatch_algorithm="static",
        ep_join_mode=None,
        moe_a2a_backend="none",
        nnodes=1,
    )
    server.update(device="cpu", moe=moe, ep_size=4, tp_size=4, elastic_ep_initial_size=None, nnodes=1)
    config = types.SimpleNamespace(num_layers=6, num_logical_experts=samples.EXPERTS, num_groups=None)
    module.ModelConfigForExpertLocation.from_model_config = staticmethod(lambda model: config)
    metadata = module.compute_initial_expert_location_metadata(None, moe_ep_rank=0)
    assert metadata.num_layers == 6
    assert metadata.num_local_physical_experts == 3
    np.testing.assert_array_equal(
        metadata.physical_to_logical_map.numpy()[list(placement.layers)], placement.phy2log
    )
    rows = list(placement.layers)
    np.testing.assert_array_equal(
        metadata.logical_to_all_physical_map_num_valid.numpy()[rows], placement.logcnt
    )
    width = placement.log2phy.shape[2]
    np.testing.assert_array_equal(
        metadata.logical_to_all_physical_map.numpy()[rows][:, :, :width], placement.log2phy
    )


def test_trtllm_yaml_passes_a_strict_schema(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load(samples.write_placement(tmp_path, "trtllm").read_text())
    assert set(content) == {"num_slots", "initial_global_assignments", "layer_updates_per_iter"}
    assert type(content["num_slots"]) is int
    assert content["num_slots"] % 4 == 0
    assert content["layer_updates_per_iter"] == 0
    assert list(content["initial_global_assignments"]) == [1, 2, 4]
    for slots in content["initial_global_assignments"].values():
        assert len(slots) == content["num_slots"]
        assert all(type(slot) is int for slot in slots)
        assert set(slots) == set(range(samples.EXPERTS))


def test_trtllm_yaml_as_its_own_tool_writes_it(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    path = tmp_path / "moe.yaml"
    table = {3: [0, 1, 2, 0], 4: [2, 1, 0, 1]}
    content = {"num_slots": 4, "initial_global_assignments": table, "layer_updates_per_iter": 2}
    path.write_text(yaml.dump(content))
    placement = load_placement(path, num_ranks=2)
    assert placement.layers == (3, 4)
    assert placement.phy2log.tolist() == list(table.values())
    path.write_text(yaml.dump({**content, "ep_size": 2}))
    with pytest.raises(FormatError, match="accepts no other keys"):
        load_placement(path, num_ranks=2)


def test_yaml_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = samples.write_placement(tmp_path, "trtllm")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'equipoise\[yaml\]'"):
        load_placement(path, num_ranks=4)


def test_yaml_bomb(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    path = tmp_path / "bomb.yaml"
    lines = ["a: &a [0, 0, 0]"] + [
        f"b{i}: &b{i} [*{'a' if not i else f'b{i - 1}'}{', *a' * 9}]" for i in range(9)
    ]
    path.write_text("\n".join([*lines, "initial_global_assignments: *b8"]))
    with pytest.raises(FormatError, match="anchors or aliases"):
        load_placement(path, num_ranks=1)


@quick
@given(placement=samples.placements(twins=False))
def test_ascend_placement_rules(placement: Placement, tmp_path: Path) -> None:
    """Every expert placed, no twins on a device, devices alike: what vllm-ascend's loader and worker check."""
    content = json.loads(samples.write_placement(tmp_path, "vllm-ascend", placement).read_text())
    assert content["moe_layer_count"] == len(content["layer_list"]) == placement.num_layers
    for index, layer in enumerate(content["layer_list"]):
        devices = [device["device_expert"] for device in layer["device_list"]]
        assert layer["layer_id"] == index
        assert layer["device_count"] == len(devices) == placement.num_ranks
        assert [device["device_id"] for device in layer["device_list"]] == list(range(placement.num_ranks))
        assert {expert for device in devices for expert in device} == set(range(placement.num_experts))
        assert all(len(set(device)) == len(device) for device in devices)
        assert len({len(device) for device in devices}) == 1


def test_ascend_refuses_twins_and_leaves_no_file(tmp_path: Path) -> None:
    twins = Placement([[0, 1, 2, 2]], 2, 3, layers=(7,))
    with pytest.raises(PlacementError, match="rank 1 of layer 7"):
        save_placement(twins, tmp_path / "a.json", "vllm-ascend")
    assert not list(tmp_path.iterdir())


def test_vllm_mapping_as_proposed(tmp_path: Path) -> None:
    record = json.loads(samples.write_placement(tmp_path, "vllm").read_text())
    assert record["record_type"] == "eplb_initial_mapping"
    assert record["num_redundant_experts"] == samples.SLOTS - samples.EXPERTS
    assert list(record["initial_global_assignments"]) == ["0", "1", "2"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(PlacementError):
        save_placement(Placement([[0, 0]], 1, 1), path, "vllm-ascend")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_arguments(tmp_path: Path) -> None:
    placement = samples.placement()
    with pytest.raises(ArgumentError, match="does not tell the format"):
        save_placement(placement, tmp_path / "p.json")
    with pytest.raises(ArgumentError, match="unknown placement format 'sg'"):
        save_placement(placement, tmp_path / "p.json", "sg")
    with pytest.raises(ArgumentError, match=r"must end in \.yaml or \.yml"):
        save_placement(placement, tmp_path / "p.json", "trtllm")
    with pytest.raises(FileAccessError, match="does not exist"):
        save_placement(placement, tmp_path / "no" / "p.json", "sglang")
    with pytest.raises(FormatError, match="is a load file"):
        load_placement(samples.stat_json(tmp_path))
    save_placement(placement, tmp_path / "p.yaml")
    assert (tmp_path / "p.yaml").read_text().startswith("num_slots: 12")


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ([[0, 1, 2, 9]], "expert 3 has no slot|too few for 10 experts"),
        ([[0, 1, 1, 3]], "expert 2 has no slot"),
        ([[0, -1, 1, 2]], r"1 of 4 slots without an expert \(-1\)"),
        ([[0, -2, 1, 2]], "holds expert -2"),
        ([[0, 1], [0]], "ragged"),
        ([[0.5, 1.0]], "must be integers"),
        ([0, 1], "must have 2 axes"),
        ([], "must be integers|must have 2 axes"),
        ([[10**30, 1]], "must be integers"),
    ],
)
def test_broken_tables(table: Any, problem: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"physical_to_logical_map": table}))
    with pytest.raises(FormatError, match=problem):
        load_placement(tmp_path / "p.json", num_ranks=1)
