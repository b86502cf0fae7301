"""The registry of policies: names to policies, built in and from other packages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from ..errors import ArgumentError, EquipoiseError, PolicyError
from ..placement import SPLITS
from .protocol import Policy, check_abilities

_BUILT_IN = {
    "greedy": "greedy:Greedy",
    "chunked": "chunked:Chunked",
    "ensemble": "ensemble:Ensemble",
    "robust": "robust:Robust",
}
DEFAULT = "robust"


@contextlib.contextmanager
def blamed(name: str, what: str = "failed") -> Iterator[None]:
    """Turn whatever a policy raises, `SystemExit` included, into a `PolicyError` that names it."""
    try:
        yield
    except (KeyboardInterrupt, EquipoiseError):
        raise
    except BaseException as error:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise PolicyError(f"policy {name!r} {what}: {text}") from error


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
            found = getattr(import_module(f".{module}", __package__), attribute)
        else:
            external = self._external()
            if name not in external:
                raise KeyError(name)
            with blamed(name, "cannot be loaded"):
                found = external[name].load()
        with blamed(name, "cannot be made"):
            policy: Policy = found() if isinstance(found, type) else found
            fits = isinstance(policy, Policy)
        if not fits:
            raise PolicyError(f"policy {name!r} has no method place(problem)")
        check_abilities(name, policy)
        return policy

    def __iter__(self) -> Iterator[str]:
        yield from _BUILT_IN
        yield from sorted(self._external())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Registry({', '.join(self)})"


policies = Registry()
"""The policies that there are, by name."""


def for_split(policy: Policy, split: str) -> Policy:
    """A policy told for which split to plan: "even" or "batch" (see `equipoise.Robust`).

    Raises
    ------
    ArgumentError
        for another split, or a policy that plans for an even one alone
    """
    if split not in SPLITS:
        raise ArgumentError(f"split must be {' or '.join(SPLITS)}, got {split!r}")
    if split == "even":
        return policy
    from .robust import Robust

    if not isinstance(policy, Robust):
        raise ArgumentError("split='batch' needs the policy robust: the others plan for an even split")
    return replace(policy, split="batch")


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
            f"policy must be a name or an object with a method place(problem), got {policy!r}"
        )
    name = str(getattr(policy, "name", type(policy).__name__.lower()))
    check_abilities(name, policy)
    return name, policy
