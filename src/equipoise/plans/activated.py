"""Activated experts as a measure: how many weights the busiest rank reads in a batch, by how tokens are split.

A slot is activated by a batch that gives it a token. With counts of single batches that is known for every dispatch.
Counts of batches in which experts were hit say how often each was, and not together with which others: of them the
expected number on a rank is exact where a hit expert is served at one replica, and the busiest rank's is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dispatch.activated import ACTIVATED_SWEEPS
from ..dispatch.slots import tokens_of_slots
from ..dispatch.split import SWEEPS
from ..errors import ArgumentError
from ..metrics import activated_experts, rank_loads
from ..placement import Placement
from ..planning.activated import activate
from ..planning.sweeps import sweep_batch
from ..trace import LoadTrace
from .served import TO_THE_END

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Activated:
    """Activated experts on the busiest rank, means over batches and layers, by how tokens are split."""

    batches: int
    """how many were scored"""
    hit: float
    """different experts of a layer that a batch hits: activated on all ranks together where each is at one replica"""
    even: float
    """split evenly, as `equipoise.assign` does without shares: every replica that gets a token is activated"""
    batch: float
    """split by the load of the batch, as `equipoise.split_batch` does"""
    activated: float
    """every hit expert at one replica, as `equipoise.split_activated` chooses it"""
    optimum: float
    """every hit expert at one replica, chosen as well as this placement allows"""
    least: float
    """no placement on these ranks has less: hit experts over ranks, rounded up"""

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ExpectedActivated:
    """What counts of batches say of activated experts, means over layers; each hit expert is at one replica."""

    batches: int
    """how many were counted"""
    hit: float
    """different experts of a layer that a batch hits, on average"""
    even: float
    """expected on the rank where most are expected, replicas chosen evenly. On the busiest rank of each batch there
    are at least as many, on average"""
    least: float
    """the same, replicas chosen as well as they can be for that: however they are chosen in each batch, the busiest
    rank has at least as many on average"""

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name, for JSON."""
        return asdict(self)


def count_activated(counts: npt.ArrayLike, placement: Placement) -> Activated:
    """Activated experts of batches under a placement.

    Parameters
    ----------
    counts : ``[B, L, E]``, tokens of single batches for each expert, of all ranks together
    placement : of the same layers and experts

    Raises
    ------
    ArgumentError
        if these do not fit each other

    Examples
    --------
    >>> placement = Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3)
    >>> found = count_activated([[[6, 3, 0]], [[6, 0, 1]]], placement)
    >>> found.even, found.activated, found.least
    (2.0, 1.0, 1.0)
    """
    batches = np.asarray(counts)
    expected = (placement.num_layers, placement.num_experts)
    if batches.ndim != 3 or batches.shape[1:] != expected or not len(batches):
        raise ArgumentError(
            f"batches must be [batches, layers, experts] with {list(expected)}, got {list(batches.shape)}"
        )
    hit = batches > 0
    some = hit.sum(axis=2)
    return Activated(
        batches=len(batches),
        hit=float(some.mean()),
        even=_busiest(np.stack([tokens_of_slots(one, None, placement) for one in batches]), placement),
        batch=_busiest(np.stack([_split_by_load(one, placement) for one in batches]), placement),
        activated=_busiest(_at_one_replica(hit, placement, ACTIVATED_SWEEPS), placement),
        optimum=_busiest(_at_one_replica(hit, placement, -1), placement),
        least=float(np.ceil(some / placement.num_ranks).mean()),
    )


def known_activated(
    trace: LoadTrace, batches: LoadTrace | None, placement: Placement
) -> Activated | ExpectedActivated | None:
    """What is known of activated experts: of single batches, else of a trace that counts batches, else nothing.

    Raises `ArgumentError` if ``batches`` are no single batches, or of other layers or experts than the placement.
    """
    if batches is None:
        return expected_activated(trace, placement)
    batches.check_batches()
    return count_activated(batches.counts, placement)


def batches_of_windows(batches: LoadTrace, trace: LoadTrace) -> npt.NDArray[Any]:
    """Single batches ``[T, B, L, E]`` of the ``T`` windows of a trace that was added up from them.

    Raises
    ------
    ArgumentError
        if ``batches`` are no single batches, or the windows are not their sums, as many in each
    """
    batches.check_batches()
    of = batches if trace.unit == "tokens" else batches.hits()
    sums = of.counts.sum(axis=(1, 2), dtype=np.float64).cumsum()
    size = int(sums.searchsorted(trace.counts[0].sum())) + 1  # those of the first window
    enough = size * len(trace) <= len(batches)
    if not enough or not np.array_equal(of.regroup(size).counts[: len(trace)], trace.counts):
        raise ArgumentError(
            f"{len(batches)} batches do not add up to the {len(trace)} windows: every window must be the sum of as "
            "many, window_tokens a multiple of a batch's"
        )
    return batches.counts[: size * len(trace)].reshape(len(trace), size, *batches.counts.shape[1:])


def later_batches(batches: LoadTrace, trace: LoadTrace, windows: int) -> LoadTrace | None:
    """Single batches that no token of the first windows of the same recording is in; None where there are none."""
    of = batches if trace.unit == "tokens" else batches.hits()
    ends = of.counts.sum(axis=(1, 2), dtype=np.float64).cumsum()
    first = int(ends.searchsorted(trace.counts[:windows].sum(dtype=np.float64))) + 1
    return batches[first:] if first < len(batches) else None


def mean_activated(found: Sequence[Activated]) -> Activated:
    """The mean of several, each over its own number of batches."""
    weights = [one.batches for one in found]
    means = {
        field.name: float(np.average([getattr(one, field.name) for one in found], weights=weights))
        for field in fields(Activated)
    }
    return Activated(**{**means, "batches": sum(weights)})  # type: ignore[arg-type]


def _split_by_load(counts: npt.NDArray[Any], placement: Placement) -> npt.NDArray[np.int64]:
    shares = sweep_batch(counts, placement.phy2log, placement.num_ranks, SWEEPS)
    return tokens_of_slots(counts, shares, placement)


def _at_one_replica(hit: npt.NDArray[np.bool_], placement: Placement, sweeps: int) -> npt.NDArray[np.bool_]:
    """Which slots ``[B, L, R]`` are activated by batches ``[B, L, E]``."""
    slots = activate(hit, placement.phy2log, placement.num_ranks, sweeps)
    found = np.zeros((*slots.shape[:2], placement.num_slots + 1), np.bool_)
    np.put_along_axis(found, slots, values=True, axis=2)  # -1, not hit, is the last column
    return found[..., :-1]


def _busiest(slots: npt.NDArray[Any], placement: Placement) -> float:
    return float(activated_experts(slots, placement.num_ranks).max(axis=-1).mean())


def expected_activated(trace: LoadTrace, placement: Placement) -> ExpectedActivated | None:
    """What a trace that counts batches says of activated experts; None of one that counts tokens.

    Examples
    --------
    >>> placement = Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3)
    >>> trace = LoadTrace([[4, 8, 2]], unit="batches", steps=[[0, 8]])
    >>> expected_activated(trace, placement).even
    1.25
    """
    if trace.batches is None:
        return None
    batches = int(trace.batches.sum())
    rates = trace.total() / batches
    best = sweep_batch(rates, placement.phy2log, placement.num_ranks, TO_THE_END)
    return ExpectedActivated(
        batches=batches,
        hit=float(rates.sum(axis=1).mean()),
        even=float(rank_loads(rates, placement).max(axis=1).mean()),
        least=float(rank_loads(rates, placement, best).max(axis=1).mean()),
    )
