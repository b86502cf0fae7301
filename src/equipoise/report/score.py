"""The table of a scored program."""

from __future__ import annotations

from ..scoring import Score
from ..scoring.messages import bounded
from .table import TOTAL, Table, columns, row

LABELS = {
    "balancedness_score_gpu": "GPU balance, held out (ratio of sums)",
    "balancedness_score_expert": "expert balance, held out (ratio of sums)",
    "times_algorithm": "mean time of a plan",
    "times_inference": "mean time of plan and simulation",
    "moves": "experts fetched at a re-plan, share of slots",
    "move_seconds": "time to fetch them",
    "balancedness_score": "points for balance",
    "speed_score": "speed score",
    "slow_penalty": "penalty for slowness",
}


def score_table(outcome: Score) -> Table:
    """What was measured, and the score that it makes."""
    measured = []
    for name, value in outcome.metrics.items():
        seconds = name.startswith("times_") or name == "move_seconds"
        measured.append(row(LABELS[name], f"{value * 1e3:.2f} ms" if seconds else f"{value:.4f}"))
    total = row("combined score", f"{outcome.combined_score:.4f}", role=TOTAL)
    return Table(
        f"{bounded(outcome.program)} under {outcome.protocol}",
        columns("measured", ""),
        (tuple(measured), (total,)),
    )
