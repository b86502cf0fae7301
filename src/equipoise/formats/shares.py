"""Token shares in a file: what Equipoise writes for whoever splits tokens among replicas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..placement import Placement
from .output import write_file

SUFFIX = ".safetensors"
VERSION = 1


def check_shares_file(path: Path) -> None:
    """Raise `ArgumentError` for a name that does not say what the file is."""
    if path.suffix != SUFFIX:
        raise ArgumentError(f"{path} must end in {SUFFIX}: shares are written as safetensors")


def save_shares(placement: Placement, shares: npt.NDArray[np.float64], path: Path) -> None:
    """Write token shares, and the placement whose slots they are for.

    Arrays ``shares [L, R]`` (float64, the part of its expert's tokens that each slot takes; each expert's sum to 1)
    and ``phy2log [L, R]``; the metadata entry ``equipoise`` is JSON: kind ``shares``, version, ranks, experts, the
    model's numbers of the layers.

    Raises `FileAccessError` if the file cannot be written.
    """
    from safetensors.numpy import save

    header = {
        "kind": "shares",
        "version": VERSION,
        "num_ranks": placement.num_ranks,
        "num_experts": placement.num_experts,
        "layers": list(placement.layers),
        "num_model_layers": placement.num_model_layers,
    }
    arrays = {"shares": np.ascontiguousarray(shares), "phy2log": np.ascontiguousarray(placement.phy2log)}
    check_shares_file(path)
    write_file(path, save(arrays, {"equipoise": json.dumps(header)}))
