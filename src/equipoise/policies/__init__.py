"""The registry of policies: names to policy classes, built in and from other packages."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from ..errors import ArgumentError, PolicyError
from .base import Policy

_BUILT_IN = {
    "greedy": "greedy:Greedy",
    "chunked": "chunked:Chunked",
    "ensemble": "ensemble:Ensemble",
}
DEFAULT = "ensemble"


class Registry(Mapping[str, Policy]):
    """A read-only mapping from names to policies with their default settings.

    Built-in names come first; other packages add theirs through the entry-point group
    ``equipoise.policies``. A built-in name cannot be replaced.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Policy] = {}

    def _external(self) -> dict[str, Any]:
        found = entry_points(group="equipoise.policies")
        return {point.name: point for point in found if point.name not in _BUILT_IN}

    def __getitem__(self, name: str) -> Policy:
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> Policy:
        if name in _BUILT_IN:
            module, attribute = _BUILT_IN[name].split(":")
            found = getattr(import_module(f"{__name__}.{module}"), attribute)
        else:
            external = self._external()
            if name not in external:
                raise KeyError(name)
            try:
                found = external[name].load()
            except Exception as error:
                raise PolicyError(f"policy {name!r} cannot be loaded: {error}") from error
        policy = found() if isinstance(found, type) else found
        if not isinstance(policy, Policy):
            raise PolicyError(f"policy {name!r} has no method place(loads, topology, ...)")
        return policy

    def __iter__(self) -> Iterator[str]:
        yield from _BUILT_IN
        yield from sorted(self._external())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Registry({', '.join(self)})"


policies = Registry()


class _Package(ModuleType, Mapping[str, Policy]):
    """This package as the registry.

    Python binds ``equipoise.policies`` to the package once any module in it is imported, and the public name
    means the registry; so the package answers like it.
    """

    def __getitem__(self, name: str) -> Policy:
        return policies[name]

    def __iter__(self) -> Iterator[str]:
        return iter(policies)

    def __len__(self) -> int:
        return len(policies)

    __eq__ = ModuleType.__eq__
    __hash__ = ModuleType.__hash__


sys.modules[__name__].__class__ = _Package


def find_policy(policy: str | Policy) -> tuple[str, Policy]:
    """The name and the policy that an argument ``policy=`` means.

    Raises
    ------
    ArgumentError
        for an unknown name (the message lists the known ones) or an object that is not a policy
    """
    if isinstance(policy, str):
        try:
            return policy, policies[policy]
        except KeyError:
            raise ArgumentError(f"unknown policy {policy!r}; known are {', '.join(policies)}") from None
    if isinstance(policy, type) or not isinstance(policy, Policy):
        raise ArgumentError(
            f"policy must be a name or an object with a method place(loads, topology, ...), got {policy!r}"
        )
    return str(getattr(policy, "name", type(policy).__name__.lower())), policy
