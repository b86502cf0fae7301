"""Which layers of a model have experts: by name for known models, by rows that only fill a place for others.

SGLang's files have a row for every hidden layer and TensorRT-LLM's use the model's numbers; vLLM's and
vllm-ascend's count MoE layers from 0. What is recorded in one way and served in the other needs to know which
layers of the model are dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..placement import Placement
from ..trace import LoadTrace
from .base import PlacementRows, ranges


@dataclass(frozen=True)
class ModelLayers:
    """The layers of a model, from ``num_hidden_layers`` and ``first_k_dense_replace`` (or its like) of its
    ``config.json`` on https://huggingface.co."""

    name: str
    num_layers: int
    """hidden layers; those that predict further tokens do not count"""
    num_experts: int
    dense: tuple[int, ...] = ()

    @property
    def moe(self) -> tuple[int, ...]:
        """Numbers of the MoE layers."""
        return tuple(sorted(set(range(self.num_layers)) - set(self.dense)))


_FIRST = (0,)
MODEL_LAYERS = (
    ModelLayers("DeepSeek-V3 or R1", 61, 256, (0, 1, 2)),
    ModelLayers("DeepSeek-V2", 60, 160, _FIRST),
    ModelLayers("DeepSeek-V2-Lite", 27, 64, _FIRST),
    ModelLayers("Kimi-K2", 61, 384, _FIRST),
    ModelLayers("GLM-4.5", 92, 160, (0, 1, 2)),
    ModelLayers("GLM-4.5-Air", 46, 128, _FIRST),
    ModelLayers("Llama-4-Maverick", 48, 128, tuple(range(0, 48, 2))),
    ModelLayers("Qwen3-235B", 94, 128),
    ModelLayers("Qwen3-30B", 48, 128),
    ModelLayers("Qwen3-Next", 48, 512),
    ModelLayers("gpt-oss-120b", 36, 128),
    ModelLayers("gpt-oss-20b", 24, 32),
    ModelLayers("Mixtral-8x7B", 32, 8),
    ModelLayers("Mixtral-8x22B", 56, 8),
    ModelLayers("OLMoE", 16, 64),
)


def model_of_rows(num_rows: int, num_experts: int, fills: npt.NDArray[np.bool_]) -> ModelLayers | None:
    """The known model of this many hidden layers and experts whose dense layers all only fill a place.

    None if there is none, or if rows that all only fill a place would do for several.

    Parameters
    ----------
    fills : ``[rows]``, whether a row holds no load, or nothing but the filler of a placement
    """
    found = [
        model
        for model in MODEL_LAYERS
        if (model.num_layers, model.num_experts) == (num_rows, num_experts) and fills[list(model.dense)].all()
    ]
    if len(found) > 1 and fills.all():
        return None
    return max(found, key=lambda model: len(model.dense), default=None)


def model_of_moe(num_layers: int, num_experts: int) -> ModelLayers | None:
    """The known model with this many MoE layers and experts; None if there is none, or more than one."""
    found = [m for m in MODEL_LAYERS if (len(m.moe), m.num_experts) == (num_layers, num_experts)]
    return found[0] if len(found) == 1 else None


def fillers(phy2log: npt.NDArray[Any], num_experts: int) -> npt.NDArray[np.bool_]:
    """Which rows ``[M]`` of ``phy2log [M, R]`` are what dense layers are filled with: ``slot % experts``."""
    return np.asarray((phy2log == np.arange(phy2log.shape[1]) % num_experts).all(axis=1))


def without_dense(rows: PlacementRows) -> PlacementRows:
    """The rows without the dense layers of a known model of this shape, if they hold nothing but filling."""
    num_experts = int(rows.phy2log.max()) + 1
    model = model_of_rows(len(rows.phy2log), num_experts, fillers(rows.phy2log, num_experts))
    if model is None:
        return rows
    return replace(rows, phy2log=rows.phy2log[list(model.moe)], layers=model.moe)


def is_counted(layers: Sequence[int], num_model_layers: int | None) -> bool:
    """Whether layer numbers may only count MoE layers from 0, rather than be the model's."""
    return num_model_layers is None and tuple(layers) == tuple(range(len(layers)))


def doubt_about_rows(placement: Placement) -> str | None:
    """Why the rows of a placement may include dense layers, in words; None if they do not seem to."""
    if placement.num_model_layers != placement.num_layers:
        return None
    found = np.flatnonzero(fillers(placement.phy2log, placement.num_experts))
    if not len(found):
        return None
    named = rows_named(found.tolist())
    return f"{named} of {placement.num_layers} may be the filling of dense layers (slot % experts)"


def doubt_about_idle(trace: LoadTrace) -> str | None:
    """Why the layers of a trace may include dense ones, in words; None if they do not seem to."""
    idle = np.asarray(~trace.total().any(axis=1))
    if trace.num_model_layers != trace.num_layers or not idle.any():
        return None
    if model_of_rows(trace.num_layers, trace.num_experts, idle) is not None:
        return None
    return f"{rows_named(np.flatnonzero(idle).tolist())} of {trace.num_layers} without load may be dense"


Numbered = TypeVar("Numbered", LoadTrace, Placement)


def numbered_for(what: Numbered, counts: str) -> tuple[Numbered, str | None]:
    """A trace or placement with the numbers that a placement format needs, and a remark if they are a guess.

    Layers that are only counted get the numbers of the known model with this many MoE layers and experts.

    Parameters
    ----------
    counts : as in `PlacementFormat`; only ``model`` asks for the model's numbers
    """
    size = what.num_layers
    if counts != "model" or what.layers != tuple(range(size)) or what.num_model_layers == size:
        return what, None
    model = model_of_moe(size, what.num_experts)
    if model is None:
        return what, (
            f"Its layers are numbered 0 to {size - 1}, which is right only if no dense layer comes before or between "
            "them; else name them with --layers and --model-layers"
        )
    remark = None
    if model.dense:
        remark = (
            f"Its layers have the numbers of {model.name}, {ranges(model.moe)} of {model.num_layers}; if it is "
            "another model, name them with --layers and --model-layers"
        )
    return replace(what, layers=model.moe, num_model_layers=model.num_layers), remark


def numbered_like(trace: LoadTrace, rows: PlacementRows) -> LoadTrace | None:
    """A trace that counts its layers, with the numbers of a placement file that has the model's.

    None if the file has another number of MoE layers.
    """
    assert rows.layers is not None
    if len(rows.layers) == trace.num_layers:
        return replace(trace, layers=rows.layers, num_model_layers=rows.num_model_layers)
    moe = tuple(np.array(rows.layers)[~fillers(rows.phy2log, trace.num_experts)].tolist())
    if rows.num_model_layers == len(rows.layers) and len(moe) == trace.num_layers:
        return replace(trace, layers=moe, num_model_layers=rows.num_model_layers)
    return None


def rows_named(numbers: Sequence[int]) -> str:
    """``layer 3``, ``layers 0 to 2`` or ``layers 0, 3, 5``."""
    return ("layer " if len(numbers) == 1 else "layers ") + ranges(tuple(numbers))
