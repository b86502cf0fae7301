"""The registry of policies: names to policy classes, built in and from other packages."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, cast

from ..errors import ArgumentError, PolicyError
from .base import Policy

_BUILT_IN = {
    "greedy": "greedy:Greedy",
    "chunked": "chunked:Chunked",
    "ensemble": "ensemble:Ensemble",
    "robust": "robust:Robust",
}
DEFAULT = "robust"


@contextlib.contextmanager
def _blamed(name: str, what: str) -> Iterator[None]:
    """Turns whatever a policy of another package raises, ``SystemExit`` included, into an error that names it."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise PolicyError(f"policy {name!r} {what}: {text}") from error


class _Foreign:
    """A policy of another package, whose failures are errors that name it."""

    def __init__(self, name: str, policy: Any) -> None:
        self._name, self._policy = name, policy

    def place(self, *arguments: Any, **more: Any) -> Any:
        """`Policy.place` of the policy."""
        with _blamed(self._name, "failed"):
            return self._policy.place(*arguments, **more)

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._policy, attribute)
        if attribute != "place_tensor":
            return found

        def place_tensor(*arguments: Any, **more: Any) -> Any:
            with _blamed(self._name, "failed"):
                return found(*arguments, **more)

        return place_tensor

    def __repr__(self) -> str:
        return repr(self._policy)


class Registry(ModuleType, Mapping[str, Policy]):  # type: ignore[misc]
    """A read-only mapping from names to policies with their default settings.

    Built-in names come first; other packages add theirs through the entry-point group
    ``equipoise.policies``. A built-in name cannot be replaced.

    It is also the class of this module: ``equipoise.policies`` is the package of policies and the registry in
    one, since a package and a mapping cannot both have that name otherwise.
    """

    _loaded: dict[str, Policy] = {}  # noqa: RUF012 - there is one registry

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
            with _blamed(name, "cannot be loaded"):
                found = external[name].load()
        with _blamed(name, "cannot be made"):
            policy = found() if isinstance(found, type) else found
            fits = isinstance(policy, Policy)
        if not fits:
            raise PolicyError(f"policy {name!r} has no method place(loads, topology, ...)")
        return policy if name in _BUILT_IN else _Foreign(name, policy)

    def __iter__(self) -> Iterator[str]:
        yield from _BUILT_IN
        yield from sorted(self._external())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    __eq__ = object.__eq__  # as modules compare and hash
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Registry({', '.join(self)})"


sys.modules[__name__].__class__ = Registry
policies = cast("Registry", sys.modules[__name__])


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
