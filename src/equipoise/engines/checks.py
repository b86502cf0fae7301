"""What `equipoise doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["fine", "note", "wrong"]


@dataclass(frozen=True)
class Check:
    """Something that was looked at.

    Parameters
    ----------
    subject : a short name for machines, such as ``vllm`` or ``num_slots``
    state : ``wrong`` keeps something that is switched on from working; ``note`` is worth knowing
    text : one sentence for people
    source : where that can be read up
    """

    subject: str
    state: State
    text: str
    source: str = ""
