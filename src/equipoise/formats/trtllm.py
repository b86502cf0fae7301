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
    Peek,
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
from .safetensorsfile import read_safetensors
from .source import check_plain

META = "meta_info.json"
RANK = re.compile(r"rank(\d{1,6})\.safetensors")
KEY = re.compile(r"(\d{1,12})_(\d{1,6})")
ASSIGNMENTS = "initial_global_assignments"
KEYS = {"num_slots", ASSIGNMENTS, "layer_updates_per_iter"}
MAX_YAML = 1 << 20


def _detect_statistics(peek: Peek) -> bool:
    return peek.path.is_dir() and ((peek.path / META).is_file() or bool(_rank_files(peek.path)))


def _rank_files(folder: Path) -> dict[int, Path]:
    found = ((RANK.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match.group(1)): path for match, path in sorted(found, key=str) if match}


def _read_statistics(path: Path, options: ReadOptions) -> Recording:
    if not path.is_dir():
        raise FormatError(path, f"must be the folder with {META} and rank0.safetensors, ...")
    num_experts, top_k = read_meta(path / META)
    files = _rank_files(path)
    missing = sorted(set(range(max(files, default=0) + 1)) - set(files))
    if missing:
        raise FormatError(path, f"holds no rank{missing[0]}.safetensors; every rank's file is needed")
    sizes = {rank: file.stat().st_size for rank, file in files.items()}
    loads: dict[tuple[int, int], npt.NDArray[Any]] = {}
    keys: list[set[tuple[int, int]]] = []
    for rank, file in files.items():
        keys.append(_add_rank(file, num_experts, loads))
        layers, first = _layers(keys[rank]), _layers(keys[0])
        if layers != first:
            raise FormatError(file, f"has {len(layers)} layers, but rank 0 has {len(first)} (or other ones)")
        if options.progress is not None:
            options.progress(sum(sizes[done] for done in range(rank + 1)), sum(sizes.values()))
    layers = _layers(keys[0])
    whole, notes = _whole_iterations(path, keys, layers)
    counts = np.array([[loads[iteration, layer] for layer in layers] for iteration in whole])
    return Recording(
        counts,
        layers=model_layers(path, tuple(layers), "the keys of rank0.safetensors"),
        steps=np.stack([np.array(whole), np.array(whole) + 1], axis=1),
        top_k=top_k,
        source=f"TensorRT-LLM statistics of {len(files)} ranks in {path.name}",
        notes=notes,
    )


def _layers(keys: set[tuple[int, int]]) -> list[int]:
    return sorted({layer for _, layer in keys})


def _whole_iterations(
    path: Path, keys: list[set[tuple[int, int]]], layers: list[int]
) -> tuple[list[int], tuple[str, ...]]:
    """The iterations that every rank recorded whole, and what is to be said about the others.

    Parameters
    ----------
    keys : what each rank has, as (iteration, layer)
    """
    everything = set().union(*keys)
    iterations = sorted({iteration for iteration, _ in everything})
    lacking: dict[int, int] = {}
    for rank, held in enumerate(keys):
        for iteration in iterations:
            if any((iteration, layer) not in held for layer in layers):
                lacking.setdefault(iteration, rank)
    whole = [iteration for iteration in iterations if iteration not in lacking]
    if not whole:
        raise FormatError(
            path,
            f"has no iteration that all {len(keys)} ranks recorded whole: rank {lacking[iterations[0]]} "
            f"lacks iteration {iterations[0]} or a layer of it",
        )
    notes = []
    if lacking:
        left_out = ", ".join(map(str, list(lacking)[:5])) + (", ..." if len(lacking) > 5 else "")
        notes.append(
            f"{len(lacking)} of {len(iterations)} iterations left out ({left_out}), which not every rank recorded "
            f"whole (rank {next(iter(lacking.values()))} lacks the first of them)"
        )
    gaps = iterations[-1] - iterations[0] + 1 - len(iterations)
    if gaps:
        notes.append(f"{gaps} iterations between {iterations[0]} and {iterations[-1]} are on no rank")
    return whole, tuple(notes)


def read_meta(path: Path) -> tuple[int, int]:
    """Experts per layer and experts per token."""
    meta = read_json(path)
    values = []
    for key in ("num_experts", "num_experts_per_token"):
        value = meta.get(key) if isinstance(meta, dict) else None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise FormatError(path, f"has no positive integer {key!r}")
        values.append(value)
    return values[0], values[1]


def _add_rank(
    file: Path, num_experts: int, loads: dict[tuple[int, int], npt.NDArray[Any]]
) -> set[tuple[int, int]]:
    """Add one rank's counts to the sums; the iterations and layers that it has."""
    arrays, _ = read_safetensors(file)
    places = set()
    for key, array in arrays.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise FormatError(file, f"has the key {key[:40]!r}, expected '{{iteration}}_{{layer}}'")
        if array.shape != (num_experts,):
            raise FormatError(file, f"{key} must be [{num_experts}], got {list(array.shape)}")
        place = int(match.group(1)), int(match.group(2))
        if place in places:
            raise FormatError(file, f"has iteration {place[0]} of layer {place[1]} twice (as {key})")
        count = load_array(file, key, array, (1,))
        loads[place] = loads[place] + count if place in loads else count
        places.add(place)
    if not places:
        raise FormatError(file, "holds no counts")
    return places


def _detect_yaml(peek: Peek) -> bool:
    return (
        re.search(rb"^[ \t]*['\"]?%s['\"]?\s*:" % ASSIGNMENTS.encode(), peek.head, re.MULTILINE) is not None
    )


def _read_yaml(path: Path) -> PlacementRows:
    content = load_yaml(path)
    if isinstance(content, dict) and ASSIGNMENTS not in content:
        content = _inside_options(path, content)
    if not isinstance(content, dict):
        raise FormatError(path, f"must be a mapping with {ASSIGNMENTS!r}, got {type(content).__name__}")
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        raise FormatError(path, f"has the key {str(unknown[0])[:40]!r}; TensorRT-LLM accepts no other keys")
    return assignments_in(path, content)


def assignments_in(path: Path, content: dict[Any, Any]) -> PlacementRows:
    """The slots of each layer in a balancer's configuration; `FormatError` if they are not as many as it says."""
    table = content.get(ASSIGNMENTS)
    if not isinstance(table, dict) or not table:
        raise FormatError(path, f"{ASSIGNMENTS} must map layer numbers to slots, got {type(table).__name__}")
    rows = {layer_number(path, ASSIGNMENTS, layer): slots for layer, slots in table.items()}
    if len(rows) < len(table):
        raise FormatError(path, f"{ASSIGNMENTS} has a layer twice, as a number and as a string")
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


def _inside_options(path: Path, content: dict[Any, Any]) -> Any:
    """The balancer's configuration from the options of a whole server, where it may stand in place of a file name."""
    inner = content.get("moe_config")
    inner = inner.get("load_balancer") if isinstance(inner, dict) else None
    if isinstance(inner, str):
        raise FormatError(path, f"names its placement in another file: give {inner[:80]!r}")
    if not isinstance(inner, dict):
        keys = ", ".join(str(key)[:30] for key in list(content)[:8])
        raise FormatError(path, f"has no {ASSIGNMENTS!r}, nor moe_config.load_balancer; its keys are {keys}")
    return inner


def load_yaml(path: Path) -> Any:
    """The content of a YAML file: plain values, no key twice, no anchors; `FormatError` for anything else."""
    check_plain(path)
    try:
        import yaml
    except ImportError:
        raise MissingDependencyError(
            f"{path}: reading YAML needs PyYAML; install it with: pip install 'equipoise[yaml]'"
        ) from None
    size = path.stat().st_size
    if size > MAX_YAML:
        raise FormatError(path, f"has {size} bytes, more than the {MAX_YAML} of a plausible file")
    data = path.read_bytes()
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(fast):  # type: ignore[misc, valid-type]
        """PyYAML's safe loader, which lets a key of a mapping occur twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            if len(found) < len(node.value):
                raise FormatError(path, f"has a key twice in the mapping in line {node.start_mark.line + 1}")
            return found

    try:
        # Aliases of aliases can stand for more than memory holds. In comments the marks mean nothing.
        if (b"&" in data or b"*" in data) and any(
            getattr(event, "anchor", None) is not None for event in yaml.parse(data, Loader=fast)
        ):
            raise FormatError(path, "uses YAML anchors or aliases, which this file has no need of")
        return yaml.load(data, Loader=Loader)
    except FormatError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, OverflowError, AttributeError) as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise FormatError(path, f"is not valid YAML{where}: {' '.join(str(problem).split())[:100]}") from None


def _encode_yaml(placement: Placement, suffix: str) -> bytes:
    lines = [f"num_slots: {placement.num_slots}", "layer_updates_per_iter: 0", f"{ASSIGNMENTS}:"]
    for layer, slots in zip(placement.layers, placement.phy2log.tolist(), strict=True):
        lines.append(f"  {layer}: [{', '.join(map(str, slots))}]")
    return ("\n".join(lines) + "\n").encode()


LOADS = LoadFormat(
    "trtllm",
    "TensorRT-LLM expert statistics: folder with meta_info.json",
    _detect_statistics,
    _read_statistics,
)
PLACEMENT = PlacementFormat(
    "trtllm",
    "TensorRT-LLM moe_load_balancer.yaml",
    (".yaml", ".yml"),
    _detect_yaml,
    _read_yaml,
    _encode_yaml,
    "model",
)
