"""TensorRT-LLM: folders of expert statistics, and ``moe_load_balancer.yaml``.

Statistics as ``tensorrt_llm/_torch/expert_statistic.py`` writes them, the configuration as the strict
``MoeLoadBalancerConfig`` of ``tensorrt_llm/llmapi/llm_args.py`` reads it. Both use the model's layer numbers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError, MissingDependencyError
from ..placement import Placement
from .base import (
    LoadFormat,
    PlacementFormat,
    PlacementRows,
    ReadOptions,
    Recording,
    id_array,
    layer_number,
    load_array,
    model_layers,
)
from .jsonstream import read_json
from .native import open_safetensors

META = "meta_info.json"
RANK = re.compile(r"rank(\d+)\.safetensors")
KEY = re.compile(r"(\d{1,12})_(\d{1,6})")
ASSIGNMENTS = "initial_global_assignments"
KEYS = {"num_slots", ASSIGNMENTS, "layer_updates_per_iter"}
MAX_YAML = 1 << 27


def _detect_statistics(path: Path, head: bytes) -> bool:
    return path.is_dir() and ((path / META).is_file() or bool(_rank_files(path)))


def _rank_files(folder: Path) -> dict[int, Path]:
    found = ((RANK.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match.group(1)): path for match, path in sorted(found, key=str) if match}


def _read_statistics(path: Path, options: ReadOptions) -> Recording:
    if not path.is_dir():
        raise FormatError(path, f"must be the folder with {META} and rank0.safetensors, ...")
    num_experts, top_k = _meta(path / META)
    files = _rank_files(path)
    missing = sorted(set(range(max(files, default=0) + 1)) - set(files))
    if missing:
        raise FormatError(path, f"holds no rank{missing[0]}.safetensors; every rank's file is needed")
    sizes = {rank: file.stat().st_size for rank, file in files.items()}
    loads: dict[tuple[int, int], npt.NDArray[Any]] = {}
    first: list[int] = []
    for rank, file in files.items():
        layers = _add_rank(file, num_experts, loads)
        if rank == 0:
            first = layers
        elif layers != first:
            raise FormatError(file, f"has {len(layers)} layers, but rank 0 has {len(first)} (or other ones)")
        if options.progress is not None:
            options.progress(sum(sizes[done] for done in range(rank + 1)), sum(sizes.values()))
    iterations = sorted({iteration for iteration, _ in loads})
    if iterations[-1] - iterations[0] + 1 != len(iterations):
        gap = min(set(range(iterations[0], iterations[-1])) - set(iterations))
        raise FormatError(path, f"has iterations {iterations[0]} to {iterations[-1]}, but not {gap}")
    for iteration in iterations:
        for layer in first:
            if (iteration, layer) not in loads:
                raise FormatError(path, f"has no key '{iteration}_{layer}' on any rank")
    counts = np.array([[loads[iteration, layer] for layer in first] for iteration in iterations])
    return Recording(
        counts,
        layers=model_layers(path, tuple(first), "the keys of rank0.safetensors"),
        steps=np.stack([np.array(iterations), np.array(iterations) + 1], axis=1),
        top_k=top_k,
        source=f"TensorRT-LLM statistics of {len(files)} ranks in {path.name}",
    )


def _meta(path: Path) -> tuple[int, int]:
    meta = read_json(path)
    values = []
    for key in ("num_experts", "num_experts_per_token"):
        value = meta.get(key) if isinstance(meta, dict) else None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise FormatError(path, f"has no positive integer {key!r}")
        values.append(value)
    return values[0], values[1]


def _add_rank(file: Path, num_experts: int, loads: dict[tuple[int, int], npt.NDArray[Any]]) -> list[int]:
    """Add one rank's counts to the sums; the layers that it has."""
    arrays, _ = open_safetensors(file)
    layers = set()
    for key, array in arrays.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise FormatError(file, f"has the key {key[:40]!r}, expected '{{iteration}}_{{layer}}'")
        if array.shape != (num_experts,):
            raise FormatError(file, f"{key} must be [{num_experts}], got {list(array.shape)}")
        place = int(match.group(1)), int(match.group(2))
        count = load_array(file, key, array, (1,))
        loads[place] = loads[place] + count if place in loads else count
        layers.add(place[1])
    if not layers:
        raise FormatError(file, "holds no counts")
    return sorted(layers)


def _detect_yaml(path: Path, head: bytes) -> bool:
    return re.search(rb"^%s\s*:" % ASSIGNMENTS.encode(), head, re.MULTILINE) is not None


def _read_yaml(path: Path) -> PlacementRows:
    content = _load_yaml(path)
    if not isinstance(content, dict):
        raise FormatError(path, f"must be a mapping with {ASSIGNMENTS!r}, got {type(content).__name__}")
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        raise FormatError(path, f"has the key {str(unknown[0])[:40]!r}; TensorRT-LLM accepts no other keys")
    table = content.get(ASSIGNMENTS)
    if not isinstance(table, dict) or not table:
        raise FormatError(path, f"{ASSIGNMENTS} must map layer numbers to slots, got {type(table).__name__}")
    rows = {layer_number(path, ASSIGNMENTS, layer): slots for layer, slots in table.items()}
    num_slots = content.get("num_slots")
    for layer, slots in rows.items():
        # A list of lists would multiply in NumPy's hands: only plain integers go there.
        if not isinstance(slots, list) or not all(type(slot) is int for slot in slots):
            raise FormatError(path, f"{ASSIGNMENTS}[{layer}] must be a list of expert ids")
        if len(slots) != num_slots:
            raise FormatError(
                path, f"{ASSIGNMENTS}[{layer}] has {len(slots)} slots, but num_slots is {str(num_slots)[:20]}"
            )
    layers = tuple(sorted(rows))
    return PlacementRows(id_array(path, ASSIGNMENTS, [rows[layer] for layer in layers], 2), layers=layers)


def _load_yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingDependencyError(
            f"{path}: reading YAML needs PyYAML; install it with: pip install 'equipoise[yaml]'"
        ) from None
    data = path.read_bytes()
    if len(data) > MAX_YAML:
        raise FormatError(path, f"has {len(data)} bytes, more than the {MAX_YAML} of a plausible file")
    if b"&" in data or b"*" in data:  # aliases of aliases can stand for more than memory holds
        raise FormatError(path, "uses YAML anchors or aliases, which this file has no need of")
    try:
        return yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, OverflowError, AttributeError) as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise FormatError(path, f"is not valid YAML{where}: {' '.join(str(problem).split())[:100]}") from None


def _write_yaml(placement: Placement, path: Path) -> None:
    lines = [f"num_slots: {placement.num_slots}", "layer_updates_per_iter: 0", f"{ASSIGNMENTS}:"]
    for layer, slots in zip(placement.layers, placement.phy2log.tolist(), strict=True):
        lines.append(f"  {layer}: [{', '.join(map(str, slots))}]")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


LOADS = LoadFormat(
    "trtllm",
    "TensorRT-LLM expert statistics: folder with meta_info.json",
    _detect_statistics,
    _read_statistics,
)
PLACEMENT = PlacementFormat(
    "trtllm", "TensorRT-LLM moe_load_balancer.yaml", (".yaml", ".yml"), _detect_yaml, _read_yaml, _write_yaml
)
