"""The trained model as one rank of a group serves it, on text whose kind changes."""

from __future__ import annotations

import hashlib

import torch

from ..engines.torch_moe import Group, torch_moe
from ..placement import Placement
from .model import load_model
from .texts import Stream


class Served:
    """The model with the experts of one rank.

    Parameters
    ----------
    placement : 8 layers of 64 experts
    stream : the text
    group : of `torch.distributed`, see `torch_moe`

    Attributes
    ----------
    layers : for a runtime, see `equipoise.engines.torch_moe.MoeLayers`
    """

    def __init__(self, placement: Placement, stream: Stream, group: Group = None) -> None:
        self.model, self.stream = load_model(), stream
        self.layers = torch_moe(self.model, placement, group)

    def serve(self, number: int, rank: int) -> str:
        """Serve a pass of a rank's text; a digest of all bits of the logits. All ranks call it together."""
        with torch.no_grad():
            logits = self.model(torch.from_numpy(self.stream.batch(number, rank)))
        return hashlib.blake2b(logits.numpy().tobytes(), digest_size=16).hexdigest()
