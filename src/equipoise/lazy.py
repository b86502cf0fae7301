"""Names of a package that are imported on first use (PEP 562), so that importing the package itself stays quick."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from .errors import MissingDependencyError


def on_first_use(
    package: str, homes: Mapping[str, str], public: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    Parameters
    ----------
    package : its ``__name__``
    homes : the module, inside the package, of each name
    public : its ``__all__``, which `dir` lists before they are imported

    Returns
    -------
    both functions; the first raises `MissingDependencyError` where what a name needs is torch, and that is missing
    """

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(f"{package}.{homes[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise MissingDependencyError(
                f"{package}.{name} needs torch: pip install 'equipoise[torch]'"
            ) from None
        setattr(sys.modules[package], name, value)
        return value

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public})

    return getattr_, dir_
