"""Figures of common models, accelerators and links, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from ..errors import ArgumentError

_HF = "https://huggingface.co/{}/blob/main/config.json"


@dataclass(frozen=True)
class Model:
    """The expert layers of a model."""

    name: str
    layers: int
    """MoE layers ``L``; dense layers and multi-token-prediction layers do not count"""
    experts: int
    """logical experts ``E`` of a layer"""
    top_k: int
    hidden: int
    """width of the residual stream"""
    intermediate: int
    """inner width of one expert"""
    groups: int
    """expert groups ``G`` of group-limited routing, 1 if there are none"""
    dtype: str
    """in which the expert weights are published; a key of `WEIGHT_BYTES`"""
    source: str

    @property
    def expert_weights(self) -> int:
        """Weights of one expert: the gate, up and down matrices. Biases are left out: under 0.2 %."""
        return 3 * self.hidden * self.intermediate

    def expert_bytes(self, dtype: str | None = None) -> int:
        """Bytes of one expert, scales included."""
        return round(self.expert_weights * find(WEIGHT_BYTES, dtype or self.dtype, "dtype").bytes)

    @property
    def token_flops(self) -> int:
        """Operations for one token in one expert: a multiplication and an addition for each weight."""
        return 2 * self.expert_weights


@dataclass(frozen=True)
class WeightFormat:
    """Bytes of a weight, its share of the scales included."""

    bytes: float
    source: str


@dataclass(frozen=True)
class Accelerator:
    """Peak dense tensor throughput in operations per second, by the format that is multiplied."""

    name: str
    flops: Mapping[str, float]
    source: str
    memory_bytes: float

    def peak(self, dtype: str) -> float:
        """Peak for weights of a format; formats that the chip does not multiply are widened to bf16."""
        return self.flops.get(dtype, self.flops["bf16"])


@dataclass(frozen=True)
class Link:
    """What one rank can receive, in bytes per second: the peak of one direction."""

    name: str
    bytes_per_s: float
    source: str


WEIGHT_BYTES: dict[str, WeightFormat] = {
    "bf16": WeightFormat(2.0, "16 bits"),
    "fp8": WeightFormat(
        1.0 + 4.0 / 128**2,
        "8 bits and one fp32 scale for each 128 x 128 block; "
        "https://github.com/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md",
    ),
    "mxfp4": WeightFormat(
        4.25 / 8,
        "4 bits and one 8-bit scale for 32 weights; OCP Microscaling Formats (MX) v1.0, "
        "https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf",
    ),
    "nvfp4": WeightFormat(
        4.5 / 8,
        "4 bits and one fp8 scale for 16 weights; "
        "https://developer.nvidia.com/blog/introducing-nvfp4-for-efficient-and-accurate-low-precision-inference/",
    ),
}


def _model(
    name: str,
    shape: tuple[int, int, int],
    widths: tuple[int, int],
    dtype: str,
    repository: str,
    groups: int = 1,
) -> Model:
    return Model(name, *shape, *widths, groups, dtype, _HF.format(repository))


# (MoE layers, experts, top-k), (hidden size, expert's intermediate size)
_MODELS = (
    _model("deepseek-v3", (58, 256, 8), (7168, 2048), "fp8", "deepseek-ai/DeepSeek-V3", groups=8),
    _model("deepseek-r1", (58, 256, 8), (7168, 2048), "fp8", "deepseek-ai/DeepSeek-R1", groups=8),
    _model("deepseek-v2-lite", (26, 64, 6), (2048, 1408), "bf16", "deepseek-ai/DeepSeek-V2-Lite"),
    _model("kimi-k2", (60, 384, 8), (7168, 2048), "fp8", "moonshotai/Kimi-K2-Instruct"),
    _model("qwen3-235b", (94, 128, 8), (4096, 1536), "bf16", "Qwen/Qwen3-235B-A22B"),
    _model("qwen3-30b", (48, 128, 8), (2048, 768), "bf16", "Qwen/Qwen3-30B-A3B"),
    _model("qwen3-next", (48, 512, 10), (2048, 512), "bf16", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
    _model("glm-4.5", (89, 160, 8), (5120, 1536), "bf16", "zai-org/GLM-4.5"),
    _model("glm-4.5-air", (45, 128, 8), (4096, 1408), "bf16", "zai-org/GLM-4.5-Air"),
    _model("gpt-oss-120b", (36, 128, 4), (2880, 2880), "mxfp4", "openai/gpt-oss-120b"),
    _model("gpt-oss-20b", (24, 32, 4), (2880, 2880), "mxfp4", "openai/gpt-oss-20b"),
    _model("mixtral-8x7b", (32, 8, 2), (4096, 14336), "bf16", "mistralai/Mixtral-8x7B-v0.1"),
    _model("mixtral-8x22b", (56, 8, 2), (6144, 16384), "bf16", "mistralai/Mixtral-8x22B-v0.1"),
    _model("olmoe", (16, 64, 8), (2048, 1024), "bf16", "allenai/OLMoE-1B-7B-0924"),
)
MODELS: dict[str, Model] = {model.name: model for model in _MODELS}

_ACCELERATORS = (
    Accelerator(
        "a100",
        {"bf16": 312e12},
        "https://www.nvidia.com/en-us/data-center/a100/ (without sparsity)",
        80e9,
    ),
    Accelerator(
        "h100",
        {"bf16": 989e12, "fp8": 1979e12},
        "https://www.nvidia.com/en-us/data-center/h100/ (SXM; half of the figures with sparsity)",
        80e9,
    ),
    Accelerator(
        "h200",
        {"bf16": 989e12, "fp8": 1979e12},
        "https://www.nvidia.com/en-us/data-center/h200/ (SXM; half of the figures with sparsity)",
        141e9,
    ),
    Accelerator(
        "b200",
        {"bf16": 2250e12, "fp8": 4500e12, "mxfp4": 9000e12, "nvfp4": 9000e12},
        "https://www.nvidia.com/en-us/data-center/hgx/ (HGX B200, an eighth of the dense figures)",
        180e9,
    ),
)
ACCELERATORS: dict[str, Accelerator] = {item.name: item for item in _ACCELERATORS}

_LINKS = (
    Link("nvlink3", 300e9, "600 GB/s both ways; https://www.nvidia.com/en-us/data-center/nvlink/ (A100)"),
    Link(
        "nvlink4", 450e9, "900 GB/s both ways; https://www.nvidia.com/en-us/data-center/nvlink/ (H100, H200)"
    ),
    Link("nvlink5", 900e9, "1,800 GB/s both ways; https://www.nvidia.com/en-us/data-center/nvlink/ (B200)"),
    Link("pcie4", 32e9, "16 GT/s x 16 lanes; https://pcisig.com/specifications"),
    Link("pcie5", 64e9, "32 GT/s x 16 lanes; https://pcisig.com/specifications"),
    Link("ib-200g", 25e9, "200 Gb/s a port; https://www.nvidia.com/en-us/networking/infiniband-adapters/"),
    Link("ib-400g", 50e9, "400 Gb/s a port; https://www.nvidia.com/en-us/networking/infiniband-adapters/"),
    Link("ib-800g", 100e9, "800 Gb/s a port; https://www.nvidia.com/en-us/networking/infiniband-adapters/"),
)
LINKS: dict[str, Link] = {link.name: link for link in _LINKS}

Preset = TypeVar("Preset")


def find(presets: Mapping[str, Preset], name: str, argument: str) -> Preset:
    """The preset of that name, in any case; `ArgumentError` lists the known ones."""
    try:
        return presets[name.lower()]
    except KeyError:
        raise ArgumentError(f"unknown {argument} {name!r}; known are {', '.join(presets)}") from None


def model_of_shape(num_layers: int, num_experts: int) -> Model | None:
    """The first preset whose expert layers have this shape; None if there is none."""
    return next((m for m in _MODELS if (m.layers, m.experts) == (num_layers, num_experts)), None)
