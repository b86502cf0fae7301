"""A balancer as a file: safetensors with a JSON header, sealed, so that what is damaged is refused."""

from __future__ import annotations

import os
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ..errors import ArgumentError, FileAccessError, FormatError
from ..formats.native import encode_own, read_own
from ..formats.output import write_file
from ..policy.protocol import Policy
from ..topology import Topology
from .balancer import Balancer
from .cost import CostModel

Arrays = dict[str, npt.NDArray[Any]]

KIND = "balancer"


def save(balancer: Balancer, path: str | os.PathLike[str]) -> None:
    """Write a balancer; see `Balancer.save`."""
    arrays: Arrays = {}
    header: dict[str, Any] = {
        "topology": asdict(balancer.topology),
        "settings": {
            name: getattr(balancer, name)
            for name in ("num_layers", "num_experts", "history", "horizon", "max_moves", "seed", "forecast")
        },
        "policy": balancer.name,
        "policy_settings": _settings(balancer.policy),
        "cost": None if balancer.cost is None else asdict(balancer.cost),
        "state": balancer.state(arrays),
    }
    write_file(path, encode_own(KIND, arrays, header, sealed=True))


def restore(path: str | os.PathLike[str], policy: str | Policy | None) -> Balancer:
    """Read a balancer; see `Balancer.restore`."""
    where = Path(path)
    try:
        arrays, header = read_own(where, KIND)
    except OSError as error:
        raise FileAccessError(where, f"cannot be read: {error.strerror or error}") from None
    if "seal" not in header:
        raise FormatError(where, "is damaged: it has no seal")
    cost = header["cost"]
    balancer = Balancer(
        Topology(**header["topology"]),
        policy=header["policy"] if policy is None else policy,
        cost=None if cost is None else CostModel(**{**cost, "sources": tuple(cost["sources"])}),
        **header["settings"],
    )
    if policy is None and _settings(balancer.policy) != header["policy_settings"]:
        raise ArgumentError(
            f"{where}: was saved with {header['policy_settings'][:200]}, which its name alone does not make: "
            "hand it over as policy="
        )
    balancer.resume(header["state"], arrays)
    return balancer


def _settings(policy: Policy) -> str:
    """A policy's settings as text: policies that are no dataclasses are told apart by their class."""
    kind = type(policy)
    return repr(policy) if is_dataclass(policy) else f"{kind.__module__}.{kind.__qualname__}"
