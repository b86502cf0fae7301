"""A stand-in for an accelerator: tensors in main memory that say they are elsewhere, and whose copies are counted."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = "xla:0"  # a kind of device that torch knows the name of without a build for it


class Elsewhere(torch.Tensor):
    """A tensor on it; what it holds is ``held``."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Any:
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=DEVICE)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError("outside of a Machine nothing is computed with it")


class Machine(TorchDispatchMode):
    """While it is entered, operations work on such tensors; ``copies`` are those between it and main memory."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        there = any(issubclass(kind, Elsewhere) for kind in types)
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") is not None:
            to_it = torch.device(kwargs.pop("device")) == torch.device(DEVICE)
            if to_it != there:
                self.copies.append(tuple("elsewhere" if it else "cpu" for it in (there, to_it)))  # type: ignore[arg-type]
            there = to_it
        if func is torch.ops.aten._local_scalar_dense.default and there:
            self.copies.append(("elsewhere", "cpu"))
        bare = tree_map(lambda x: x.held if isinstance(x, Elsewhere) else x, (args, kwargs))
        result = func(*bare[0], **bare[1])
        return tree_map(lambda x: Elsewhere(x) if there and isinstance(x, torch.Tensor) else x, result)
