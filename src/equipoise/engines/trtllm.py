"""TensorRT-LLM has no place for a plug-in; its YAML can be checked, which may switch balancing off in silence.

The section ``moe_config.load_balancer`` of its options does nothing, or stops the server, unless architecture,
parallelism, backend and slots fit. What is checked here was read in its sources of September 2026, named with each
check. Nothing of TensorRT-LLM is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ..errors import FormatError
from ..formats.base import PlacementRows, ranges, reading
from ..formats.jsonstream import read_json
from ..formats.trtllm import ASSIGNMENTS, KEYS, assignments_in, load_yaml
from .checks import Check

_REPOSITORY = "https://github.com/NVIDIA/TensorRT-LLM"
_SOURCES = f"{_REPOSITORY}/blob/1f41a4c7d33b2b8e1e3744bf68b5a5d4a1aeb2fc/tensorrt_llm/_torch/moe/fused_moe"
CREATED = f"{_SOURCES}/moe_load_balancer.py (maybe_create_moe_load_balancer)"
ASSERTED = f"{_SOURCES}/interface.py (_init_load_balancer)"
BACKENDS = f"{_SOURCES}/create_moe.py (supported_load_balancer_backends)"
IGNORED = f"{_REPOSITORY}/pull/18626"
UNSET = f"{_REPOSITORY}/pull/12607"
WIDEEP_GONE = f"{_REPOSITORY}/pull/17797"
DRAFT_LAYER = f"{_REPOSITORY}/pull/13974"

ARCHITECTURES = {
    *("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "DeepseekV4ForCausalLM", "GlmMoeDsaForCausalLM"),
    *("GptOssForCausalLM", "KimiK25ForConditionalGeneration", "MixtralForCausalLM"),
    *("Llama4ForConditionalGeneration", "NemotronHForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"),
    *("Qwen3_5MoeForCausalLM", "Qwen3VLMoeForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"),
}
"""its ``moe_model_arch_list``"""
UNBALANCED = {"TRITON", "VANILLA", "MARLIN"}
"""backends that refuse a load balancer"""
EP_SIZE, ATTENTION_DP = "moe_expert_parallel_size", "enable_attention_dp"
CLUSTER = "moe_cluster_parallel_size"
MAX_COUNT = 1 << 20
"""no model has more layers, experts or slots, and no server more ranks"""
OFF = "balancing is off, or the server stops"


def lint(path: Path, num_ranks: int | None = None, model_config: Path | None = None) -> list[Check]:
    """What in a YAML file keeps TensorRT-LLM from balancing as it says.

    Parameters
    ----------
    path : the options of a server (``--extra_llm_api_options``), or the file of a load balancer alone
    num_ranks : EP size, where the command line of the server sets it and not the file
    model_config : the model's ``config.json``, or its folder, for checks of architecture, experts and layers

    Raises
    ------
    FormatError, FileAccessError
        if a file is not YAML or JSON, or cannot be read
    """
    with reading(path):
        content = load_yaml(path)
    if not isinstance(content, dict):
        raise FormatError(path, f"must be a mapping, got {type(content).__name__}")
    model = None if model_config is None else _read_model(model_config)
    alone = ASSIGNMENTS in content or "num_slots" in content
    options = {} if alone else content
    ranks = options.get(EP_SIZE) if num_ranks is None else num_ranks
    checks = [_architecture(model)]
    if not alone:
        checks += [_ep_size(ranks), _attention_dp(options), *_cluster(options), *_backend(options)]
    with reading(path):
        found = (path, content) if alone else _section(path, options)
    if isinstance(found, Check):
        return [*checks, found]
    where, balancer = found
    return [*checks, *_balancer(where, balancer, ranks, model, _speculates(options))]


def _read_model(path: Path) -> dict[str, Any]:
    """The parts of a model's ``config.json`` that count, those of the language model where it is one of several."""
    where = path / "config.json" if path.is_dir() else path
    with reading(where):
        config = read_json(where)
    if not isinstance(config, dict) or not isinstance(config.get("architectures"), list):
        raise FormatError(where, "has no 'architectures': expected the config.json of a model")
    inner = config.get("text_config")
    return {**(inner if isinstance(inner, dict) else config), "architectures": config["architectures"]}


def _architecture(model: dict[str, Any] | None) -> Check:
    if model is None:
        text = "architecture, experts and layers are not checked: --model names the model's config.json"
        return Check("architecture", "note", text)
    name = str(model["architectures"][0])[:80] if model["architectures"] else "none"
    if name in ARCHITECTURES:
        return Check("architecture", "fine", f"{name} is on its list", CREATED)
    return Check(
        "architecture", "wrong", f"{name} is not on its list of architectures: {OFF}", f"{IGNORED}, {UNSET}"
    )


def _ep_size(ranks: Any) -> Check:
    if ranks is None:
        text = f"{EP_SIZE} is not set and then 1: {OFF}; --ranks tells what the server's command line sets"
        return Check(EP_SIZE, "wrong", text, CREATED)
    if not _is_count(ranks) or ranks == 1:
        return Check(EP_SIZE, "wrong", f"{EP_SIZE} is {str(ranks)[:20]}, must be above 1: {OFF}", CREATED)
    return Check(EP_SIZE, "fine", f"{ranks} expert-parallel ranks")


def _attention_dp(options: dict[str, Any]) -> Check:
    if options.get(ATTENTION_DP) is True:
        return Check(ATTENTION_DP, "fine", "attention data parallelism is on")
    text = f"{ATTENTION_DP} is not true: {OFF}"
    return Check(ATTENTION_DP, "wrong", text, f"{ASSERTED}, {IGNORED}")


def _cluster(options: dict[str, Any]) -> Iterator[Check]:
    size = options.get(CLUSTER)
    if _is_count(size) and size > 1:
        yield Check(CLUSTER, "wrong", f"{CLUSTER} is {size}: balancing is off with the smart router", CREATED)


def _backend(options: dict[str, Any]) -> Iterator[Check]:
    moe = options.get("moe_config")
    name = str(moe.get("backend", "AUTO")).upper()[:40] if isinstance(moe, dict) else "AUTO"
    if name in UNBALANCED:
        yield Check(
            "backend", "wrong", f"the backend {name} takes no load balancer: the server stops", BACKENDS
        )
    if name == "WIDEEP":
        text = (
            "newer versions have no backend WIDEEP: use DEEPGEMM for FP8 block scales, else TRTLLM or CUTLASS"
        )
        yield Check("backend", "note", text, WIDEEP_GONE)


def _section(path: Path, options: dict[str, Any]) -> tuple[Path, dict[str, Any]] | Check:
    """The balancer's configuration and the file it is in, or why there is none."""
    moe = options.get("moe_config")
    found = moe.get("load_balancer") if isinstance(moe, dict) else None
    if found is None:
        return Check("load_balancer", "wrong", "moe_config.load_balancer is not set: balancing is off")
    if isinstance(found, dict):
        return path, found
    if not isinstance(found, str):
        return Check("load_balancer", "wrong", f"load_balancer is {str(found)[:40]}, no mapping and no file")
    named = Path(found)
    where = named if named.is_file() else path.parent / named  # the server looks where it is started
    if not where.is_file():
        return Check("load_balancer", "wrong", f"load_balancer names {found[:200]}, which is not there")
    content = load_yaml(where)
    if not isinstance(content, dict):
        return Check("load_balancer", "wrong", f"{where} must be a mapping, got {type(content).__name__}")
    return where, content


def _balancer(
    path: Path, content: dict[str, Any], ranks: Any, model: dict[str, Any] | None, speculates: bool
) -> Iterator[Check]:
    unknown = [str(key)[:40] for key in content if key not in KEYS]
    if unknown:
        yield Check("keys", "note", f"{path} has the key {unknown[0]}, which is not known here")
    slots, experts = content.get("num_slots"), _experts(model)
    if not _is_count(slots):
        yield Check("num_slots", "wrong", f"num_slots is {str(slots)[:20]}: {OFF}", ASSERTED)
        return
    if _is_count(ranks) and slots % ranks:
        text = f"num_slots {slots} is not divisible by {ranks} ranks: the server stops"
        yield Check("num_slots", "wrong", f"{text}; use {slots - slots % ranks + ranks}", ASSERTED)
    elif experts is not None and slots < experts:
        yield Check("num_slots", "wrong", f"num_slots {slots} is less than {experts} experts", ASSERTED)
    else:
        yield Check("num_slots", "fine", f"{slots} slots a layer" + _per_rank(slots, ranks))
    updates = content.get("layer_updates_per_iter", 0)
    if _is_count(updates):
        text = f"layer_updates_per_iter is {updates}: the server re-plans by itself, from the placement on"
        yield Check("layer_updates_per_iter", "note", text)
    if content.get(ASSIGNMENTS) is None:
        yield Check(ASSIGNMENTS, "note", "no placement: the server begins with its own")
    else:
        yield from _assignments(path, content, model, speculates)


def _per_rank(slots: int, ranks: Any) -> str:
    return f", {slots // ranks} a rank" if _is_count(ranks) else "; --ranks checks that they can be divided"


def _assignments(
    path: Path, content: dict[str, Any], model: dict[str, Any] | None, speculates: bool
) -> Iterator[Check]:
    try:
        rows = assignments_in(path, content)
    except FormatError as error:
        yield Check(ASSIGNMENTS, "wrong", str(error), ASSERTED)
        return
    experts = _experts(model)
    most = min(int(rows.phy2log.max()) + 1, rows.phy2log.shape[1])
    lacking = _lacking(rows, most if experts is None else experts)
    if lacking:
        yield Check(ASSIGNMENTS, "wrong", f"{lacking}: the server stops", ASSERTED)
    layers = rows.layers or ()
    needed = None if model is None else _moe_layers(model, speculates)
    missing = tuple(sorted(set(needed or ()) - set(layers)))
    if missing:
        words = f"lacks layer {ranges(missing)}, which the model has: the server stops"
        if speculates and needed is not None and missing[-1] == needed[-1]:
            words += " (the draft layer counts)"
        yield Check("layers", "wrong", words, DRAFT_LAYER)
    elif not lacking:
        checked = "" if needed is not None else "; whether that is all is not checked"
        yield Check(ASSIGNMENTS, "fine", f"layers {ranges(layers)}{checked}")


def _lacking(rows: PlacementRows, experts: int) -> str | None:
    """The first layer without some expert, or with one that there is not, in words."""
    for layer, slots in zip(rows.layers or (), rows.phy2log, strict=True):
        strange = slots[(slots < 0) | (slots >= experts)]
        if strange.size:
            return f"layer {layer} has expert {strange[0]}, expected 0 to {experts - 1}"
        missing = np.setdiff1d(np.arange(experts), slots)
        if missing.size:
            return f"layer {layer} has no slot for expert {missing[0]}"
    return None


def _speculates(options: dict[str, Any]) -> bool:
    """Whether the server runs draft layers of the model itself, which are MoE layers too."""
    found = options.get("speculative_config")
    return isinstance(found, dict) and "MTP" in str(found.get("decoding_type", "")).upper()


def _experts(model: dict[str, Any] | None) -> int | None:
    names = ("n_routed_experts", "num_experts", "num_local_experts")
    return next((model[name] for name in names if _is_count(model.get(name))), None) if model else None


def _moe_layers(model: dict[str, Any], speculates: bool) -> tuple[int, ...] | None:
    """The model's numbers of its MoE layers; ``None`` where its configuration says that in some other way."""
    total = model.get("num_hidden_layers")
    others = ("hybrid_override_pattern", "interleave_moe_layer_step", "layers_block_type")
    if not _is_count(total) or total > 10_000 or any(model.get(name) for name in others):
        return None
    first, every = model.get("first_k_dense_replace") or 0, model.get("moe_layer_freq") or 1
    step, dense = model.get("decoder_sparse_step") or 1, model.get("mlp_only_layers") or []
    if not all(type(number) is int for number in (first, every, step)) or not isinstance(dense, list):
        return None
    layers = [i for i in range(first, total) if i % every == 0 and (i + 1) % step == 0 and i not in dense]
    draft = model.get("num_nextn_predict_layers") if speculates else 0
    return (*layers, *range(total, total + (draft if _is_count(draft) else 0)))


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value < MAX_COUNT
