"""TensorRT-LLM's options: what switches balancing off is found, each thing by itself, and nothing else is."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from damage import damage, mutate
from equipoise import EquipoiseError, FormatError, Placement, contiguous_placement, save_placement
from equipoise.engines.trtllm import ARCHITECTURES, lint

yaml = pytest.importorskip("yaml")

LAYERS, EXPERTS, SLOTS, RANKS = 3, 8, 12, 4
MODEL = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "num_hidden_layers": 5,
    "first_k_dense_replace": 2,
    "moe_layer_freq": 1,
    "n_routed_experts": EXPERTS,
    "num_nextn_predict_layers": 1,
}


def balancer(layers: tuple[int, ...] = (2, 3, 4)) -> dict[str, Any]:
    rows = contiguous_placement(len(layers), EXPERTS, RANKS, SLOTS).phy2log.tolist()
    return {
        "num_slots": SLOTS,
        "layer_updates_per_iter": 0,
        "initial_global_assignments": dict(zip(layers, rows, strict=True)),
    }


def options(**more: Any) -> dict[str, Any]:
    fine = {
        "moe_expert_parallel_size": RANKS,
        "enable_attention_dp": True,
        "moe_config": {"backend": "TRTLLM", "load_balancer": balancer()},
    }
    return {**fine, **more}


def with_balancer(**more: Any) -> dict[str, Any]:
    return options(moe_config={"load_balancer": {**balancer(), **more}})


def wrong(tmp_path: Path, content: Any, model: Any = MODEL, **more: Any) -> list[str]:
    """The subjects of what is wrong."""
    path, config = tmp_path / "options.yaml", tmp_path / "config.json"
    path.write_text(yaml.safe_dump(content))
    if model is not None:
        config.write_text(json.dumps(model))
    checks = lint(path, model_config=None if model is None else config, **more)
    for check in checks:
        assert check.state == "fine" or check.text
        assert check.state != "wrong" or check.source or check.subject == "load_balancer"
    return [check.subject for check in checks if check.state == "wrong"]


def test_options_that_are_fine(tmp_path: Path) -> None:
    assert wrong(tmp_path, options()) == []
    assert wrong(tmp_path, options(), model=None) == []
    assert wrong(tmp_path, balancer(), num_ranks=RANKS) == []


@pytest.mark.parametrize(
    ("content", "subject"),
    [
        (options(moe_expert_parallel_size=1), "moe_expert_parallel_size"),
        (options(moe_expert_parallel_size=None), "moe_expert_parallel_size"),
        (options(enable_attention_dp=False), "enable_attention_dp"),
        (options(enable_attention_dp=None), "enable_attention_dp"),
        (options(moe_cluster_parallel_size=2), "moe_cluster_parallel_size"),
        (options(moe_expert_parallel_size=5), "num_slots"),
        (options(moe_config={"backend": "TRITON", "load_balancer": balancer()}), "backend"),
        (options(moe_config={"backend": "TRTLLM"}), "load_balancer"),
        (options(moe_config=None), "load_balancer"),
        (options(moe_config={"load_balancer": 7}), "load_balancer"),
        (options(moe_config={"load_balancer": "nowhere.yaml"}), "load_balancer"),
        (with_balancer(num_slots=0), "num_slots"),
        (with_balancer(num_slots=None), "num_slots"),
        (with_balancer(num_slots="12"), "num_slots"),
        (with_balancer(num_slots=4, initial_global_assignments=None), "num_slots"),
        (with_balancer(num_slots=16), "initial_global_assignments"),
        (with_balancer(initial_global_assignments={2: [0] * SLOTS}), "initial_global_assignments"),
        (with_balancer(initial_global_assignments={2: [99] * SLOTS}), "initial_global_assignments"),
        (with_balancer(initial_global_assignments=[1]), "initial_global_assignments"),
        (options(moe_config={"load_balancer": balancer((2, 4))}), "layers"),
    ],
)
def test_each_thing_that_switches_balancing_off(content: Any, subject: str, tmp_path: Path) -> None:
    assert subject in wrong(tmp_path, content)


def test_the_draft_layer_counts_where_the_server_speculates_with_it(tmp_path: Path) -> None:
    speculating = {"speculative_config": {"decoding_type": "MTP", "num_nextn_predict_layers": 1}}
    assert wrong(tmp_path, options(**speculating)) == ["layers"]
    whole = {"moe_config": {"load_balancer": balancer((2, 3, 4, 5))}}
    assert wrong(tmp_path, options(**speculating, **whole)) == []


def test_architectures(tmp_path: Path) -> None:
    for name in sorted(ARCHITECTURES):
        assert wrong(tmp_path, options(), {**MODEL, "architectures": [name]}) == []
    for names in (["DeepseekV2ForCausalLM"], ["deepseekv3forcausallm"], []):
        assert wrong(tmp_path, options(), {**MODEL, "architectures": names}) == ["architecture"]


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ({"num_hidden_layers": 3, "num_experts": EXPERTS}, (0, 1, 2)),
        ({"num_hidden_layers": 6, "num_experts": EXPERTS, "decoder_sparse_step": 2}, (1, 3, 5)),
        ({"num_hidden_layers": 4, "num_experts": EXPERTS, "mlp_only_layers": [0]}, (1, 2, 3)),
        ({"num_hidden_layers": 5, "n_routed_experts": EXPERTS, "first_k_dense_replace": 2}, (2, 3, 4)),
    ],
)
def test_which_layers_a_model_has(model: dict[str, Any], layers: tuple[int, ...], tmp_path: Path) -> None:
    config = {"architectures": ["Qwen3MoeForCausalLM"], **model}
    nested = {"architectures": ["Qwen3VLMoeForConditionalGeneration"], "text_config": model}
    for told in (config, nested):
        assert wrong(tmp_path, options(moe_config={"load_balancer": balancer(layers)}), told) == []
        fewer = options(moe_config={"load_balancer": balancer(layers[1:])})
        assert wrong(tmp_path, fewer, told) == ["layers"]


def test_a_balancer_in_a_file_of_its_own(tmp_path: Path) -> None:
    placement = Placement(
        contiguous_placement(LAYERS, EXPERTS, RANKS, SLOTS).phy2log, RANKS, EXPERTS, layers=(2, 3, 4)
    )
    save_placement(placement, tmp_path / "balancer.yaml", "trtllm")
    assert wrong(tmp_path, options(moe_config={"load_balancer": "balancer.yaml"})) == []
    found = lint(tmp_path / "balancer.yaml", num_ranks=5)
    assert [check.subject for check in found if check.state == "wrong"] == ["num_slots"]
    (text,) = [check.text for check in found if check.state == "wrong"]
    assert "12 is not divisible by 5 ranks" in text
    assert "use 15" in text


def test_what_the_command_line_sets_counts(tmp_path: Path) -> None:
    unset = options(moe_expert_parallel_size=None)
    assert wrong(tmp_path, unset, num_ranks=RANKS) == []
    assert wrong(tmp_path, options(), num_ranks=5) == ["num_slots"]


def test_what_is_only_worth_knowing(tmp_path: Path) -> None:
    content = with_balancer(layer_updates_per_iter=2, mode="per_iteration")
    content["moe_config"]["backend"] = "WIDEEP"
    path = tmp_path / "o.yaml"
    path.write_text(yaml.safe_dump(content))
    notes = {check.subject for check in lint(path) if check.state == "note"}
    assert notes == {"architecture", "backend", "keys", "layer_updates_per_iter"}
    assert not [check for check in lint(path) if check.state == "wrong"]


@pytest.mark.parametrize("content", ["", "- 1", "7", "a: [", "\x00"])
def test_what_is_no_file_of_options(content: str, tmp_path: Path) -> None:
    path = tmp_path / "o.yaml"
    path.write_text(content)
    with pytest.raises(FormatError):
        lint(path)
    with pytest.raises(EquipoiseError):
        lint(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "/dev/zero", "."])
def test_odd_names_of_the_balancers_file(name: str, tmp_path: Path) -> None:
    try:
        assert wrong(tmp_path, options(moe_config={"load_balancer": name})) == ["load_balancer"]
    except EquipoiseError as error:
        assert "File name too long" in str(error)  # noqa: PT017 - where the system refuses the name


@pytest.mark.parametrize("part", ["options", "model", "bytes"])
def test_hostile_files_are_findings_or_one_line(part: str, tmp_path: Path) -> None:
    path, config = tmp_path / "o.yaml", tmp_path / "config.json"
    for seed in range(150):
        rng = random.Random(seed)
        content, model = options(), json.loads(json.dumps(MODEL))
        if part == "options":
            content = mutate(content, rng)
        elif part == "model":
            model = mutate(model, rng)
        data = yaml.safe_dump(content).encode()
        path.write_bytes(damage(data, rng) if part == "bytes" else data)
        config.write_text(json.dumps(model))
        try:
            checks = lint(path, model_config=config)
        except EquipoiseError as error:
            assert "\n" not in str(error)  # noqa: PT017 - both ends are looked at
        else:
            assert all(len(check.text) < 1000 for check in checks), seed
