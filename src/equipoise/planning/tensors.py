"""Which values are torch tensors, and which of them Triton's kernels can take, without importing either."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor."""
    torch = sys.modules.get("torch")  # a tensor can only come from a torch that is already imported
    return torch is not None and isinstance(value, torch.Tensor)


def has_triton(tensor: Any) -> bool:
    """Whether kernels for Triton can run where a tensor lives: on a GPU, with Triton installed."""
    return bool(tensor.is_cuda) and find_spec("triton") is not None


def device_backend(tensor: Any) -> ModuleType:
    """The module that plans where a tensor lives: Triton's kernels where they can run, else torch operations."""
    if has_triton(tensor):
        from . import triton_backend as backend
    else:
        from . import torch_backend as backend  # type: ignore[no-redef]
    return backend


def to_array(value: Any) -> Any:
    """The numbers of a tensor on the processor as an array, real ones in float64; all else as it is."""
    if not is_tensor(value):
        return value
    tensor = value.detach()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def like(value: Any, array: Any) -> Any:
    """An array as a tensor if ``value`` is one, else as it is."""
    if not is_tensor(value):
        return array
    import torch

    return torch.from_numpy(array)
