"""Synthetic loads with the statistics of real ones, for demos, tests and benchmarks.

Real routing is skewed, drifts slowly, and is sampled: the tokens of a step land on experts by chance. The
generator has one part for each of these and nothing else:

- the log popularity of an expert is Gaussian with standard deviation ``spread`` (popularity is log-normal);
- it drifts as a sum of Ornstein-Uhlenbeck processes, which leave that distribution as it is at every moment;
- the tokens of a window are drawn from the popularity, every token going to ``top_k`` different experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ArgumentError
from .placement import read_only
from .trace import LoadTrace

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Drift = float | Sequence[tuple[float, float]]

_DEFAULTS: dict[str, Any] = {
    "spread": 0.75,
    "drift": 0.02,
    "num_groups": 1,
    "group_share": 0.0,
    "tokens_per_window": 65536,
}

# A window of "deepseek-r1-chat" is one step of a decoding batch. Slow drift ages plans; bursts, drawn afresh in
# every step, are what no plan can follow. A window of "scoring" stands for 100 steps.
_SLOW, _BURST = 0.615**2, 0.12**2
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "deepseek-r1-chat": {
            "spread": math.sqrt(_SLOW + _BURST),
            "drift": ((_SLOW / (_SLOW + _BURST), 1.3e-4), (_BURST / (_SLOW + _BURST), math.inf)),
            "tokens_per_window": 2048,
        },
        "scoring": {
            "spread": 0.8,
            "drift": 0.03,
            "num_groups": 8,
            "group_share": 0.25,
            "tokens_per_window": 100 * 8192,
        },
    }
)
"""Settings under a name; what each is calibrated to stands in ``docs/synthetic.md``."""


def synthetic_trace(
    num_layers: int = 58,
    num_experts: int = 256,
    num_windows: int = 1,
    *,
    seed: int = 0,
    tokens_per_window: int | None = None,
    top_k: int = 8,
    spread: float | None = None,
    drift: Drift | None = None,
    num_groups: int | None = None,
    group_share: float | None = None,
    preset: str | None = None,
) -> LoadTrace:
    """A synthetic trace; without arguments a single window shaped like DeepSeek-V3's loads.

    With the default ``spread`` and 256 experts the hottest expert of a layer carries 5 to 8 times the mean
    and the hottest tenth 27 to 36 % of all tokens, both averaged over layers, in every window. Single layers
    scatter around that, as real ones do.

    Parameters
    ----------
    num_layers, num_experts, num_windows : shape of the counts, ``[T, L, E]``
    seed : of everything that is drawn; the first windows do not depend on how many follow
    tokens_per_window : tokens of each window (65,536 unless given); each goes to ``top_k`` experts a layer
    top_k : experts per token, at most ``num_experts``
    spread : standard deviation of log popularity over the experts of a layer (0.75 unless given)
    drift : how fast popularity changes (0.02 unless given). A rate ``r``: the correlation of log popularity
        between windows ``k`` apart is ``exp(-r k)``, 0 for no drift. Or several time scales at once:
        ``[(share, rate), ...]`` whose shares of the variance sum to 1; rate ``math.inf`` is drawn afresh in
        every window, which models bursts
    num_groups : groups of contiguous experts that share a part of their popularity (1 unless given)
    group_share : that part, of the variance of log popularity, 0 to 1 (0 unless given)
    preset : a name in `PRESETS`, which sets what is not given

    Returns
    -------
    `LoadTrace` with int64 counts, ``top_k``, and a ``source`` that says it is synthetic. In every window each
    layer's counts sum to ``tokens_per_window * top_k``, and no expert has more than ``tokens_per_window``.

    Raises
    ------
    ArgumentError
        naming the argument that is out of range, or the known presets

    Examples
    --------
    >>> trace = synthetic_trace(num_layers=2, num_experts=16, num_windows=3, seed=1)
    >>> trace.counts.shape, trace.counts.sum(axis=2).tolist()[0]
    ((3, 2, 16), [524288, 524288])
    """
    if preset is not None and preset not in PRESETS:
        raise ArgumentError(f"unknown preset {preset!r}; known are {', '.join(PRESETS)}")
    settings = {**_DEFAULTS, **(PRESETS[preset] if preset is not None else {})}
    given = {
        "spread": spread,
        "drift": drift,
        "num_groups": num_groups,
        "group_share": group_share,
        "tokens_per_window": tokens_per_window,
    }
    settings.update({name: value for name, value in given.items() if value is not None})

    tokens, groups = settings["tokens_per_window"], settings["num_groups"]
    for name, value in {
        "num_layers": num_layers,
        "num_experts": num_experts,
        "num_windows": num_windows,
        "tokens_per_window": tokens,
        "top_k": top_k,
        "num_groups": groups,
    }.items():
        _check_integer(name, value, at_least=1)
    _check_integer("seed", seed, at_least=0)
    if top_k > num_experts:
        raise ArgumentError(f"top_k={top_k} is more than num_experts={num_experts}")
    if num_experts % groups:
        raise ArgumentError(f"num_experts={num_experts} is not divisible by num_groups={groups}")
    for name, high in (("spread", math.inf), ("group_share", 1.0)):
        value = settings[name]
        if not isinstance(value, Real) or not math.isfinite(float(value)) or not 0 <= float(value) <= high:
            upper = f"{high:g}" if math.isfinite(high) else "any finite number"
            raise ArgumentError(f"{name} must be a number from 0 to {upper}, got {value!r}")
    scales = _time_scales(settings["drift"])

    rng = np.random.default_rng(int(seed))
    popularity = _Popularity(
        rng, (num_layers, num_experts), groups, settings["spread"], settings["group_share"], scales
    )
    counts = np.empty((num_windows, num_layers, num_experts), dtype=np.int64)
    for window in range(num_windows):
        counts[window] = draw_tokens(rng, popularity.next(), int(tokens), int(top_k))
    what = f"preset {preset}" if preset else "log-normal popularity"
    return LoadTrace(
        read_only(counts),
        top_k=int(top_k),
        source=f"synthetic ({what}, seed {int(seed)}), not recorded from a model",
    )


class _Popularity:
    """Log-normal popularity of every expert, one window after the other."""

    def __init__(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int],
        num_groups: int,
        spread: float,
        group_share: float,
        scales: list[tuple[float, float]],
    ) -> None:
        self._rng = rng
        self._shape = shape
        self._num_groups = num_groups
        self._group_share = group_share
        self._weights = [spread * math.sqrt(share) for share, _ in scales]
        self._rates = [rate for _, rate in scales]
        self._states: list[FloatArray] = []

    def next(self) -> FloatArray:
        """Popularity in the next window, ``[L, E]``, not normalised."""
        if not self._states:
            self._states = [self._draw() for _ in self._rates]
        else:
            for state, rate in zip(self._states, self._rates, strict=True):
                if rate > 0:
                    keep = math.exp(-rate)
                    state *= keep
                    state += math.sqrt(1.0 - keep * keep) * self._draw()
        log = np.zeros(self._shape)
        for weight, state in zip(self._weights, self._states, strict=True):
            log += weight * state
        return np.asarray(np.exp(log - log.max(axis=1, keepdims=True)))

    def _draw(self) -> FloatArray:
        own = self._rng.standard_normal(self._shape)
        if self._num_groups == 1 or not self._group_share:
            return own
        common = self._rng.standard_normal((self._shape[0], self._num_groups))
        common = np.repeat(common, self._shape[1] // self._num_groups, axis=1)
        return np.asarray(math.sqrt(1.0 - self._group_share) * own + math.sqrt(self._group_share) * common)


def draw_tokens(rng: np.random.Generator, popularity: FloatArray, tokens: int, top_k: int) -> IntArray:
    """Counts ``[L, E]`` of ``tokens`` tokens that go to ``top_k`` different experts of each layer.

    Parameters
    ----------
    rng : where the draws come from
    popularity : ``[L, E]``, positive
    tokens, top_k : each row of the result sums to ``tokens * top_k``; no entry exceeds ``tokens``
    """
    counts = rng.multinomial(tokens * top_k, popularity / popularity.sum(axis=1, keepdims=True))
    # A token cannot choose an expert twice: what one expert has too much goes to the others by popularity.
    for layer in np.flatnonzero((counts > tokens).any(axis=1)):
        row = counts[layer]
        while (excess := int(np.maximum(row - tokens, 0).sum())) > 0:
            np.minimum(row, tokens, out=row)
            room = np.where(row < tokens, popularity[layer], 0.0)
            row += rng.multinomial(excess, room / room.sum())
    return np.asarray(counts, dtype=np.int64)


def _check_integer(name: str, value: object, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise ArgumentError(f"{name} must be an integer of at least {at_least}, got {value!r}")


def _time_scales(drift: Any) -> list[tuple[float, float]]:
    """``drift`` as pairs of a share of the variance and a rate."""
    try:
        pairs = [(1.0, float(drift))] if isinstance(drift, Real) else [(float(s), float(r)) for s, r in drift]
    except (TypeError, ValueError):
        raise ArgumentError(f"drift must be a rate or a list of pairs (share, rate), got {drift!r}") from None
    shares = sum(share for share, _ in pairs)
    if any(not rate >= 0 or not share >= 0 for share, rate in pairs) or abs(shares - 1.0) > 1e-6:
        raise ArgumentError(f"drift needs rates from 0 and shares that sum to 1, got {drift!r}")
    return pairs
