"""Stand-ins for packages that SGLang imports at its top and that cannot be had, or are too large, without a GPU.

They hold nothing: what is imported from them swallows calls. None is used by the recorder, the
manager or the updater, which are the engine's own code. `install` has to be called before anything of SGLang is
imported, in every process.
"""

from __future__ import annotations

import abc
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

NAMES = (
    "IPython",
    "compressed_tensors",
    "gguf",
    "sentencepiece",
    "sgl_kernel",
    "torchvision",
    "triton",
    "tvm_ffi",
)


class Swallow(abc.ABCMeta):
    """Classes that are what is asked of them: a function, a decorator, a module, a type hint, a base class."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__


class Nothing(metaclass=Swallow):
    """Stands for any name of a package that is not there. A class, since it may be asked for in `isinstance`."""


class EmptyModule(types.ModuleType):
    """A module in which every name is `Nothing`."""

    def __getattr__(self, name: str) -> type[Nothing]:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages of `NAMES`, where nothing else has found them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in NAMES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return EmptyModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    """Let the packages be imported. Transformers and torch first look for the real ones, and are to find none."""
    import torch._inductor.compile_fx  # noqa: F401
    import transformers.utils

    transformers.utils.is_torchvision_available()
    sys.meta_path.append(Finder())
