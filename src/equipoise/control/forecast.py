"""Forecasts: the loads that a plan is made for, from the windows seen so far, and how far off they are."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..trace import LoadTrace

FloatArray = npt.NDArray[np.float64]


class Past:
    """The last windows that were served, and sums of all of them. It hands out copies.

    Parameters
    ----------
    num_layers, num_experts : ``L`` and ``E``
    keep : windows that are remembered one by one
    """

    def __init__(self, num_layers: int, num_experts: int, keep: int) -> None:
        self._shape = (num_layers, num_experts)
        self._windows: deque[tuple[FloatArray, float, str | None]] = deque(maxlen=keep)
        self._seen = 0
        self._total = np.zeros(self._shape)
        self._by_phase: dict[str, FloatArray] = {}

    @property
    def seen(self) -> int:
        """Windows seen so far."""
        return self._seen

    def observe(self, window: FloatArray, steps: float, phase: str | None) -> None:
        """Take in a window ``[L, E]`` of so many steps, which is not modified and must not be."""
        self._windows.append((window, steps, phase))
        self._seen += 1
        self._total += window
        if phase is not None:
            self._by_phase.setdefault(phase, np.zeros(self._shape))
            self._by_phase[phase] += window

    def last(self, windows: int) -> FloatArray:
        """The last windows ``[W, L, E]``, oldest first; fewer if there are not as many."""
        return np.array([window for window, _, _ in self._last(windows)]).reshape(-1, *self._shape)

    def last_steps(self, windows: int) -> FloatArray:
        """The steps ``[W]`` of the last windows."""
        return np.array([steps for _, steps, _ in self._last(windows)])

    def last_phases(self, windows: int) -> tuple[str | None, ...]:
        """The phases of the last windows."""
        return tuple(phase for _, _, phase in self._last(windows))

    def total(self) -> FloatArray:
        """All windows added up ``[L, E]``."""
        return np.array(self._total)

    def phase_total(self, phase: str) -> FloatArray:
        """All windows of one phase added up ``[L, E]``."""
        return np.array(self._by_phase[phase])

    def state(self, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """All of it: arrays are put into ``arrays``, the rest is returned."""
        kept = len(self._windows)
        arrays["windows"], arrays["steps"] = self.last(kept), self.last_steps(kept)
        arrays["total"] = self.total()
        arrays["phase_totals"] = np.array(list(self._by_phase.values())).reshape(-1, *self._shape)
        return {"seen": self._seen, "phases": list(self.last_phases(kept)), "by_phase": list(self._by_phase)}

    def resume(self, state: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take up a state."""
        self._windows.extend(
            (window, float(steps), phase)
            for window, steps, phase in zip(arrays["windows"], arrays["steps"], state["phases"], strict=True)
        )
        self._seen, self._total = state["seen"], np.array(arrays["total"])
        self._by_phase = {
            phase: np.array(total)
            for phase, total in zip(state["by_phase"], arrays["phase_totals"], strict=True)
        }

    def _last(self, windows: int) -> list[tuple[FloatArray, float, str | None]]:
        return list(self._windows)[-windows:]


def last_window(past: Past, history: int) -> FloatArray:
    """The last window as it was."""
    return past.last(1)


def history_sum(past: Past, history: int) -> FloatArray:
    """The last ``history`` windows added up: what engines plan from."""
    return np.asarray(past.last(history).sum(axis=0, keepdims=True))


def ewma(past: Past, history: int) -> FloatArray:
    """The last ``history`` windows with weights that halve every quarter of the history (at least a window)."""
    windows = past.last(history)
    age = np.arange(len(windows))[::-1]
    weights = 0.5 ** (age / max(1.0, history / 4))
    return np.asarray(np.tensordot(weights / weights.sum(), windows, axes=1)[None])


def raw_windows(past: Past, history: int) -> FloatArray:
    """The last ``history`` windows one by one, for policies that plan against their spread."""
    return past.last(history)


def phase_mix(past: Past, history: int) -> FloatArray:
    """The profile of each phase over all the past, mixed by the phases' part of the tokens of the history.

    It remembers what a phase looks like even when the last windows hold little of it, but it is slow to
    follow a drift inside a phase.
    """
    windows, phases = past.last(history), past.last_phases(history)
    mix = np.zeros(windows.shape[1:])
    for phase in sorted({name for name in phases if name is not None}):
        present = windows[[name == phase for name in phases]].sum(axis=(0, 2))  # [L]
        profile = past.phase_total(phase)
        mix += (present / np.maximum(profile.sum(axis=1), 1e-300))[:, None] * profile
    return np.asarray(mix[None])


FORECASTS: dict[str, Callable[[Past, int], FloatArray]] = {
    "last": last_window,
    "sum": history_sum,
    "ewma": ewma,
    "windows": raw_windows,
    "phase-mix": phase_mix,
}
"""Each maps the past and the length of the history to loads ``[W, L, E]`` to plan from, oldest first."""


def possible_forecasts(trace: LoadTrace, wanted: Sequence[str]) -> list[str]:
    """The wanted forecasts, then the others that the trace allows.

    Raises `ArgumentError` for an unknown name, or for ``phase-mix`` on a trace without phases.
    """
    for name in wanted:
        if name not in FORECASTS:
            raise ArgumentError(f"unknown forecast {name!r}; known are {', '.join(FORECASTS)}")
    if trace.phases is None and "phase-mix" in wanted:
        raise ArgumentError(
            "the forecast phase-mix needs a trace whose windows are tagged with phases (prefill, decode); "
            "use last, sum, ewma or windows"
        )
    others = [name for name in FORECASTS if name not in wanted]
    if trace.phases is None:
        others = [name for name in others if name != "phase-mix"]
    return [*wanted, *others]


def forecast_error(forecast: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """Total variation distance ``1/2 sum_e |f_e - a_e|`` of shares, averaged over layers that have load.

    Parameters
    ----------
    forecast : ``[W, L, E]``; its windows are added up. A layer without load counts as an even forecast
    actual : ``[L, E]``, loads that came

    Returns
    -------
    0 (met) to 1 (all tokens elsewhere); 0 if no layer has load
    """
    predicted = np.asarray(forecast, dtype=np.float64).sum(axis=0)
    came = np.asarray(actual, dtype=np.float64)
    busy = came.sum(axis=1) > 0
    if not busy.any():
        return 0.0
    predicted = np.where(predicted.sum(axis=1, keepdims=True) > 0, predicted, 1.0)[busy]
    shares = predicted / predicted.sum(axis=1, keepdims=True)
    truth = came[busy] / came[busy].sum(axis=1, keepdims=True)
    return float(0.5 * np.abs(shares - truth).sum(axis=1).mean())


def noise_floor(actual: npt.ArrayLike) -> float | None:
    """The error that a forecast of the true shares would make on average, by sampling noise alone.

    Tokens are taken as a multinomial sample of the true shares, which are estimated by those that came. The
    mean absolute deviation of a binomial count of ``n`` draws with mean ``k`` (whole) is ``2 k (1 - k / n)``
    times the probability of ``k`` (de Moivre 1730; Diaconis and Zabell, "Closed form summation for classical
    distributions", Statistical Science 6, 1991). Tokens of one text go to similar experts, so real noise is
    larger: this is a lower bound.

    Parameters
    ----------
    actual : ``[L, E]``, whole token counts

    Returns
    -------
    averaged over layers that have load, as in `forecast_error`; None if the counts are not whole
    """
    counts = np.asarray(actual, dtype=np.float64)
    if (counts != np.floor(counts)).any():
        return None
    counts = counts[counts.sum(axis=1) > 0]
    if not len(counts):
        return 0.0
    total = np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape)
    deviation = np.zeros_like(counts)
    drawn = (counts > 0) & (counts < total)
    k, n = counts[drawn], total[drawn]
    # With the mean at k, Loader's form of the probability ("Fast and accurate computation of binomial
    # probabilities", 2000) is the normal one times what Stirling's formula leaves out: nothing cancels.
    normal = np.sqrt(2 * k * (n - k) / (np.pi * n))
    deviation[drawn] = normal * np.exp(_stirling_rest(n) - _stirling_rest(k) - _stirling_rest(n - k))
    return float(0.5 * (deviation / total).sum(axis=1).mean())


_SMALL = 16  # from here on the series is exact to 1e-11


def _stirling_rest(n: FloatArray) -> FloatArray:
    """``log n! - log(sqrt(2 pi n) (n / e)^n)`` of whole numbers from 1, to 1e-11."""
    exact = [
        math.lgamma(m + 1) - 0.5 * math.log(2 * math.pi * m) - m * math.log(m) + m for m in range(1, _SMALL)
    ]
    table = np.array([0.0, *exact])
    series = 1 / (12 * n) - 1 / (360 * n**3) + 1 / (1260 * n**5) - 1 / (1680 * n**7)
    return np.where(n < _SMALL, table[np.minimum(n, _SMALL - 1).astype(np.int64)], series)
