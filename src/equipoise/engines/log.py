"""One line for each decision, for the log of an engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ..errors import printable

if TYPE_CHECKING:
    from ..control import Proposal


def decision_line(
    proposal: Proposal,
    *,
    part: str = "",
    expert_bytes: int = 0,
    seconds: float | None = None,
    observing: bool = False,
) -> str:
    """What was decided and why, as ``key=value`` pairs in one line.

    Parameters
    ----------
    proposal : what `Balancer.propose` returned
    part : which model of the engine, where there are several
    expert_bytes : weights of one expert of one layer in bytes, where known; the moves are then also told in bytes
    seconds : how long it took to plan
    observing : whether nothing is moved, whatever was decided

    Examples
    --------
    >>> from equipoise import Proposal
    >>> decision_line(Proposal(None, None, reason="keep: no load has been observed"), part="target")
    'equipoise part=target decision=keep moves=0 reason="keep: no load has been observed"'
    """
    decision = "keep" if proposal.keep else ("would-move" if observing else "move")
    pairs = {
        "part": part or None,
        "decision": decision,
        "imbalance": _rounded(proposal.imbalance_now),
        "planned": _rounded(proposal.imbalance_planned),
        "moves": str(proposal.moves),
        "bytes": str(proposal.moves * expert_bytes) if expert_bytes else None,
        "gain_s": _short(proposal.gain_s),
        "cost_s": _short(proposal.cost_s),
        "seconds": _short(seconds),
        "reason": json.dumps(proposal.reason, ensure_ascii=False),
    }
    line = " ".join(f"{name}={value}" for name, value in pairs.items() if value is not None)
    return printable(f"equipoise {line}")


def _rounded(imbalance: float | None) -> str | None:
    return None if imbalance is None else f"{imbalance:.4f}"


def _short(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.3g}"
