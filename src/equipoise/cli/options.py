"""Options that several commands share, and what their text means."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ArgumentError, EquipoiseError
from ..topology import Topology

POLICIES = ("greedy", "chunked", "ensemble", "robust")
LOADS = ("equipoise", "segments", "sglang", "sglang-records", "trtllm", "adrs", "vllm", "routes", "array")
PLACEMENTS = ("equipoise", "sglang", "trtllm", "vllm-ascend", "vllm")
MODELS = (
    *("deepseek-v3", "deepseek-r1", "deepseek-v2-lite", "kimi-k2", "qwen3-235b", "qwen3-30b", "qwen3-next"),
    *("glm-4.5", "glm-4.5-air", "gpt-oss-120b", "gpt-oss-20b", "mixtral-8x7b", "mixtral-8x22b", "olmoe"),
)
"""Names as help and completion know them; a test holds them to the registries, whose import takes longer."""


def among(names: Sequence[str]) -> Callable[[str], list[str]]:
    """A completion of one of several names."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


Ranks = Annotated[int, typer.Option("--ranks", help="EP ranks (GPUs).")]
Nodes = Annotated[int, typer.Option("--nodes", help="Servers; ranks are contiguous per node.")]
Groups = Annotated[
    int, typer.Option("--groups", help="Expert groups; kept on nodes where the nodes divide them.")
]
Routes = Annotated[
    Path | None,
    typer.Option(
        "--routes",
        help="Token routes or pair counts of the same model; those of LOAD itself where it has some.",
    ),
]
Batches = Annotated[
    str | None,
    typer.Option(
        "--batches",
        metavar="N|steps",
        help="Count the experts that a batch activates on the busiest rank: batches are N tokens of LOAD's token "
        "routes, or the steps that it recorded.",
    ),
]
Unit = Annotated[
    str,
    typer.Option(
        "--unit",
        help="Plan from tokens, or from the batches in which experts were hit (for decode; needs --batches).",
        autocompletion=among(("tokens", "batches")),
    ),
]
TokenBytes = Annotated[
    float | None,
    typer.Option(
        "--token-bytes",
        help="Bytes of a token on its way to a rank (hidden size x bytes), for token routes.",
        min=1,
    ),
]
RankSpeed = Annotated[
    str | None,
    typer.Option(
        "--rank-speed", help="Relative speed of every rank: 1,1,0.9,...; times are then balanced, not loads."
    ),
]
Redundant = Annotated[
    int, typer.Option("--redundant", help="Slots per layer beyond one for each expert; all ranks together.")
]
PolicyName = Annotated[
    str,
    typer.Option(
        "--policy",
        help=f"{', '.join(POLICIES)}, or one of another package.",
        autocompletion=among(POLICIES),
    ),
]
Split = Annotated[
    str,
    typer.Option(
        "--split",
        help="How tokens are split among replicas: even, as engines do, or batch, by the load of every batch.",
        autocompletion=among(("even", "batch")),
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Same input and seed, same plan.")]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        help="The model's numbers of the MoE layers, as in 3-60 or 1,3,5, where the file does not say.",
    ),
]
ModelLayers = Annotated[
    int | None,
    typer.Option(
        "--model-layers",
        help="Layers of the whole model, dense ones too, where the file does not say.",
        min=1,
    ),
]
WindowSteps = Annotated[
    int | None,
    typer.Option(
        "--window-steps", help="Sum this many windows of the file (steps, as a rule) into one.", min=1
    ),
]
WindowTokens = Annotated[
    int | None, typer.Option("--window-tokens", help="Tokens per window, for token routes.", min=1)
]
Experts = Annotated[
    int | None,
    typer.Option("--experts", help="Experts per layer, for token routes that do not say.", min=1),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", help="Experts per token, where the file does not say.", min=1)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LoadFormatName = Annotated[
    str | None,
    typer.Option(
        "--from",
        help=f"Format of LOAD: {', '.join(LOADS)}; found from its content unless given.",
        autocompletion=among(LOADS),
    ),
]
COST = "Cost model"
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help=f"Preset of the model; by layers and experts unless given: {', '.join(MODELS)}.",
        rich_help_panel=COST,
        autocompletion=among(MODELS),
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Of the expert weights: bf16, fp8, mxfp4, nvfp4.", rich_help_panel=COST),
]
AcceleratorName = Annotated[
    str, typer.Option("--accelerator", help="a100, h100, h200, b200.", rich_help_panel=COST)
]
IntraLink = Annotated[
    str,
    typer.Option(
        "--intra-link", help="Inside a node: nvlink3, nvlink4, nvlink5, pcie4, pcie5.", rich_help_panel=COST
    ),
]
InterLink = Annotated[
    str,
    typer.Option("--inter-link", help="Between nodes: ib-200g, ib-400g, ib-800g.", rich_help_panel=COST),
]
TokenUs = Annotated[
    float | None,
    typer.Option("--token-us", help="Measured microseconds for a token in an expert.", rich_help_panel=COST),
]
FixedUs = Annotated[
    float,
    typer.Option(
        "--fixed-us", help="Microseconds of a layer and step whatever its load.", rich_help_panel=COST
    ),
]
Traffic = Annotated[
    float | None,
    typer.Option(
        "--traffic",
        help="Tokens a second that the deployment serves: moves then pay after minutes, not tokens.",
        rich_help_panel=COST,
    ),
]
SplitUs = Annotated[
    float | None,
    typer.Option(
        "--split-us",
        help="Microseconds that splitting takes in a layer and step, with the exchange of counts.",
        rich_help_panel=COST,
    ),
]


def cost_figures(
    dtype: str | None,
    accelerator: str,
    intra_link: str,
    inter_link: str,
    token_us: float | None,
    fixed_us: float,
) -> dict[str, Any]:
    """What the options of the cost model say, as arguments of `equipoise.control.cost.cost_for`."""
    return {
        "dtype": dtype,
        "accelerator": accelerator,
        "intra": intra_link,
        "inter": inter_link,
        "token_s": in_seconds(token_us),
        "fixed_s": in_seconds(fixed_us),
    }


def in_seconds(microseconds: float | None) -> float | None:
    """Seconds for options that take microseconds; ``None`` where it is not given."""
    return None if microseconds is None else microseconds * 1e-6


def names(text: str | None) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def integers(text: str, option: str) -> list[int]:
    """A list of whole numbers, none negative; `ArgumentError` names the option."""
    try:
        found = [int(part) for part in names(text)]
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise ArgumentError(f"{option} must be whole numbers like 32 or 32,64, got {text!r}")
    return found


def topology_for(
    num_experts: int, ranks: int, redundant: int, nodes: int, groups: int, rank_speed: str | None = None
) -> Topology:
    """The topology that the options describe for a model of ``num_experts`` experts.

    Raises `ArgumentError` naming the option; for slots that the ranks do not divide, with the nearest number
    of redundant slots that works.
    """
    for name, value, least in (("ranks", ranks, 1), ("nodes", nodes, 1), ("groups", groups, 1)):
        if value < least:
            raise ArgumentError(f"--{name} must be at least {least}, got {value}")
    if redundant < 0:
        raise ArgumentError(f"--redundant must not be negative, got {redundant}")
    slots = num_experts + redundant
    if slots % ranks:
        more = redundant + -slots % ranks
        fewer = redundant - slots % ranks
        ways = f"{fewer} or {more}" if fewer >= 0 else f"{more}"
        raise ArgumentError(
            f"{num_experts} experts + --redundant {redundant} are {slots} slots, not divisible by --ranks {ranks}: "
            f"use --redundant {ways}"
        )
    topology = Topology.from_slots(slots, ranks, nodes, groups)
    speeds = numbers(rank_speed, "--rank-speed")
    return topology if speeds is None else replace(topology, rank_speed=tuple(speeds))


def numbers(text: str | None, option: str) -> list[float] | None:
    """What an option that takes numbers with commas between them says; ``None`` where it is not given."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ArgumentError(f"{option} must be numbers like 1,1,0.9, got {text!r}") from None


_PYTHON = {
    **{
        name: name
        for name in ("current", "forecasts", "layers", "gate", "history", "horizon", "interval", "model")
    },
    **{
        name: name
        for name in (
            "policies",
            "policy",
            "reference",
            "seed",
            "shares",
            "split",
            "tile",
            "traffic",
            "window",
        )
    },
    **{name: name.replace("_", "-") for name in ("max_moves", "rank_speed", "top_k")},
    **{name: name.replace("_", "-") for name in ("window_steps", "window_tokens", "gpus_per_node")},
    "gpus": "gpus",
    "fixed_s": "fixed-us",
    "num_model_layers": "model-layers",
    "split_s": "split-us",
    "token_s": "token-us",
    **{f"num_{name}": name for name in ("experts", "groups", "nodes", "ranks")},
}
"""Arguments of Python functions and the options that set them."""

_NAMED = re.compile(
    r"(?P<quoted>'[^']*'|\"[^\"]*\")"  # the user's own words
    rf"|(?<![\w/.-])(?P<name>{'|'.join(_PYTHON)})"
    r"(?:=(?P<value>[\w.'-]*)|(?P<rest>(?![\w/.=-])(?: must| needs| names)?))"
)
_TWICE = re.compile(r"\(?[\w-]+ \((--[\w-]+)\)|(--[\w-]+), or \w+=(?=\))")


def in_options(error: EquipoiseError) -> str:
    """The message of an error for somebody who has options to set, and no arguments of Python functions."""

    def option(found: re.Match[str]) -> str:
        name = found["name"]
        word = found["value"] is None and "_" not in (name or "")
        if found["quoted"] or (word and (found.start() or not found["rest"])):
            return found[0]  # "seed" inside a sentence is a word
        return f"--{_PYTHON[name]}" + (f" {found['value']}" if found["value"] else found["rest"] or "")

    text = str(error)
    if isinstance(error, ArgumentError):  # the names in errors of files are those of their fields
        text = _NAMED.sub(option, text)
    return _TWICE.sub(lambda found: found[1] or found[2], text)


def parse_max_moves(text: str | None) -> int | float | None:
    """``--max-moves``: an integer is a number of fetches; ``5%`` and ``0.05`` are shares of all slots."""
    if text is None:
        return None
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100.0
        return float(text) if "." in text else int(text)
    except ValueError:
        raise ArgumentError(
            f"--max-moves must be a number of fetches (100) or a share of all slots (5% or 0.05), got {text!r}"
        ) from None


def layer_numbers(text: str | None) -> tuple[int, ...] | None:
    """``--layers``: ``3-60`` or ``1,3,5-7`` as numbers."""
    if text is None:
        return None
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            if int(last or first) - int(first) > 100_000:
                raise ValueError
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        numbers = []
    if not numbers or any(after <= before for before, after in pairwise(numbers)) or numbers[0] < 0:
        raise ArgumentError(f"--layers must be rising numbers like 3-60 or 1,3,5, got {text!r}")
    return tuple(numbers)


def check_output(
    path: Path, inputs: Sequence[Path], updated: Path | None = None, force: bool = False
) -> None:
    """Fail before the work, not after it, where a file could not be written or would replace one that is read.

    ``updated`` is an input that may be replaced by what was made from it, if ``force`` says so.
    """
    from ..formats.output import check_writable, refuse_overwriting

    refuse_overwriting(path, inputs)
    if updated is not None and not force:
        refuse_overwriting(path, [updated], ", or say --force to replace it")
    check_writable(path)


def check_page(path: Path | None) -> None:
    """Raise `ArgumentError` where ``--html`` names something else than a web page."""
    if path is not None and path.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"{path} must end in .html: --html writes a web page")
