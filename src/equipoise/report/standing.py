"""Who holds best, and what it is compared with: decided once, for table, figure, page and sentence alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..replay.result import CEILING, COMPETITORS, PAST, POLICY, ForecastError, ReplayResult, Series
from ..topology import Topology

FloatArray = npt.NDArray[np.float64]

HARDLY = 0.01
"""Part of the floor's excess below which a difference in mean imbalance is none to speak of."""


@dataclass(frozen=True)
class Standing:
    """The series of one topology that findings are about."""

    floor: Series
    """does nothing"""
    oracle: Series
    """the reference policy, planned from the very windows that it is scored on"""
    best: Series
    """of the policies in whatever form, the one whose held-out mean imbalance is lowest"""
    past: Series
    """the reference policy, planned from all the past: a reference that can be had"""
    rivals: tuple[Series, ...]
    """other policies re-planned at every interval that hardly differ from the best"""
    favourite: Series | None
    """of the policies in whatever form, the one with the largest net time if that is above zero, else the one whose
    moves pay for themselves soonest; None without a cost model, or where none gains"""

    @property
    def attained(self) -> float | None:
        """The best's part, 0 to 1, of the way from the floor to the oracle; None where it does not lie between.

        It need not: the oracle is a plan of the reference policy, which others may beat without its knowledge.
        """
        floor, best, oracle = (
            series.summary.mean_imbalance for series in (self.floor, self.best, self.oracle)
        )
        return (floor - best) / (floor - oracle) if oracle <= best <= floor and oracle < floor else None


def standing(result: ReplayResult, topology: Topology) -> Standing:
    """How the series of one topology stand to each other; of equals the first one counts."""
    series = result.on(topology)
    policies = [one for one in series if one.role == POLICY]
    competitors = [one for one in series if one.role in COMPETITORS]
    floor = result.floor(topology)
    best = min(competitors, key=lambda one: one.summary.mean_imbalance)
    hardly = HARDLY * (floor.summary.mean_imbalance - 1)
    return Standing(
        floor=floor,
        oracle=next(one for one in series if one.role == CEILING),
        past=next(one for one in series if one.role == PAST),
        best=best,
        rivals=tuple(
            one
            for one in policies
            if one is not best and one.summary.mean_imbalance - best.summary.mean_imbalance < hardly
        ),
        favourite=_favourite(competitors),
    )


def _favourite(competitors: list[Series]) -> Series | None:
    gaining = [one for one in competitors if (one.summary.net_s or 0.0) > 0]
    if gaining:
        return max(gaining, key=lambda one: one.summary.net_s or 0.0)
    # What a short recording holds is less than moves cost; what they bring there says when they have paid.
    paying = [one for one in competitors if one.summary.break_even_windows is not None]
    return min(paying, key=lambda one: one.summary.break_even_windows or 0.0, default=None)


def best_forecast(result: ReplayResult) -> ForecastError:
    """The forecast with the smallest mean error."""
    return min(result.forecasts, key=lambda found: found.mean_error)


def relative_loads(series: Series) -> FloatArray:
    """Rank loads of the last scored interval, for the ranks' speeds, as multiples of their layer's mean ``[L, P]``.

    1 without load.
    """
    mean = series.last_rank_loads.mean(axis=1, keepdims=True)
    times = series.last_rank_loads / np.array(series.topology.speeds)
    return np.where(mean > 0, times / np.where(mean > 0, mean, 1.0), 1.0)
