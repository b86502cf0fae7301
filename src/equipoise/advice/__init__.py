"""What to serve with: ranks, spare slots, windows and re-planning that recorded loads ask for, with the reasons."""

from __future__ import annotations

from .curve import Choice
from .recommend import Advice, Deployment, Question, recommend
from .splitting import Splitting
from .timing import Replanning, Tried
from .windows import Part, joined, parted

__all__ = [
    "Advice",
    "Choice",
    "Deployment",
    "Part",
    "Question",
    "Replanning",
    "Splitting",
    "Tried",
    "joined",
    "parted",
    "recommend",
]
