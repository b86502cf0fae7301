"""What a replay found: frozen, plain, and the same after a round trip through JSON.

A `ReplayResult` holds one `Series` per (topology, policy, forecast, role). Every series of a result is scored
on the same windows, so that any two of them may be compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FileAccessError, FormatError
from ..placement import read_only
from ..plans.activated import Activated
from ..plans.served import Splits
from ..topology import Topology

FloatArray = npt.NDArray[np.float64]
FORMAT, VERSION = "equipoise.replay", 1

FLOOR = "do-nothing"
PAST = "all-past"
CEILING = "oracle"
POLICY = "policy"
GATED = "gated"
ONCE = "once"
ROLES = {
    FLOOR: "the contiguous placement that an engine starts from, never changed",
    POLICY: "re-planned at every interval",
    GATED: "re-planned only when the predicted gain exceeds the cost of the moves",
    ONCE: "the first plan, kept to the end",
    PAST: "the reference policy, planned from all windows so far; a cluster can have it",
    CEILING: "the reference policy, planned from the very windows that it is scored on; nobody can have it",
}
"""Role of a series: what it is in the comparison."""

COMPETITORS = (POLICY, GATED, ONCE)
"""Roles of a policy that is being judged."""
REFERENCES = (FLOOR, PAST, CEILING)
"""Roles of what it is judged by."""


@dataclass(frozen=True)
class ReplaySettings:
    """What was replayed, and how."""

    source: str
    """where the loads came from, in words"""
    num_windows: int
    """windows ``T`` of the trace, after regrouping"""
    num_experts: int
    """logical experts ``E`` of a layer"""
    layers: tuple[int, ...]
    """the model's own numbers of the ``L`` MoE layers"""
    steps_per_window: float
    """mean length of a window in steps"""
    interval: int
    """windows between two re-plannings"""
    history: int
    """windows that a plan is made from"""
    policies: tuple[str, ...]
    forecasts: tuple[str, ...]
    topologies: tuple[Topology, ...]
    reference: str
    """policy behind ``all-past`` and ``oracle``"""
    max_moves: int | float | None
    seed: int
    gate: bool
    horizon: int
    """windows over which the gate lets a move pay for itself"""
    cost: dict[str, Any] | None
    """the cost model's figures and where they come from (`CostModel.as_dict`); None if there is none"""
    picks_per_window: float | None = None
    """expert picks (tokens times top-k) through one layer in a window, on average; None in older files"""
    top_k: int | None = None
    """experts per token, of the trace or else of the cost model's preset"""
    traffic: float | None = None
    """tokens a second that the deployment serves, where the user says so"""
    split_s: float | None = None
    """seconds that splitting a batch takes in each layer and step, the exchange of counts included, where given"""
    unit: str = "tokens"
    """what the loads count, see `LoadTrace`"""

    @property
    def tokens_per_window(self) -> float | None:
        """Tokens of a window, on average; None where top-k is not known."""
        known = self.picks_per_window is not None and self.top_k is not None
        return self.picks_per_window / self.top_k if known else None  # type: ignore[operator]

    @property
    def window_s(self) -> float | None:
        """Seconds that a window stands for at this `traffic`; None where that is not given."""
        tokens = self.tokens_per_window
        return None if self.traffic is None or tokens is None else tokens / self.traffic


@dataclass(frozen=True)
class Replan:
    """One visit to the planner: what was proposed, whether it was taken, and what it cost."""

    window: int
    """first window that the plan was made for; it knows only the windows before (except for ``oracle``)"""
    taken: bool
    """false if the gate kept the placement"""
    in_sample: float
    """mean imbalance of the proposal on the loads handed to the policy"""
    held_out: float
    """mean imbalance of the placement in force until the next re-planning, the gate's answer included"""
    moves: int
    """fetches, over all layers, that the proposal needs"""
    bytes: int | None
    """bytes that those fetches carry"""
    move_s: float | None
    """estimated seconds that they take"""
    planning_s: float
    """measured seconds that the policy took"""
    predicted_gain_s: float | None
    """gate only: seconds that the proposal was predicted to save over the horizon, after `trust`"""
    trust: float | None
    """gate only: the part of their predicted gain that earlier proposals really brought, 0 to 1"""


@dataclass(frozen=True)
class Summary:
    """A series in one line. All imbalances are held-out unless they say otherwise.

    With ``i[t, l] = max_p g / mean_p g`` over the scored windows ``t`` and layers ``l``.
    """

    mean_imbalance: float
    """mean of ``i`` over all windows and layers"""
    p95_imbalance: float
    """95th percentile of ``i`` over all windows and layers"""
    worst_layer: float
    """mean over windows of ``max_l i``"""
    mean_of_ratios: float
    """SGLang's balancedness: mean of ``1 / i``"""
    ratio_of_sums: float
    """vLLM's balancedness, ``sum_l mean_p g / sum_l max_p g``, averaged over windows"""
    in_sample: float | None
    """mean over re-plannings of the proposal's imbalance on what it was planned from"""
    proposals: int
    """visits to the planner"""
    replans: int
    """proposals that were taken"""
    moves: int
    """fetches of all re-plannings taken, over all layers"""
    moves_share: float
    """fetches of one taken re-planning as a share of all slots, on average; 0 if none was taken"""
    bytes: int | None
    """bytes of all moves"""
    planning_s: float
    """measured seconds of one planning, on average"""
    layer_time_s: float | None
    """estimated seconds in expert layers over the scored windows"""
    gained_s: float | None
    """estimated seconds of layer time saved against doing nothing"""
    lost_s: float | None
    """estimated seconds spent on moves"""
    net_s: float | None
    """``gained_s - lost_s``"""
    break_even_windows: float | None = None
    """windows of such traffic after which the moves of one re-planning that moved anything, on average, have paid
    for themselves: ``(lost_s / re-plannings) / (gained_s / S)``; a recording stands for more traffic than it holds.
    None if there were no moves, no gain or no cost model"""
    ranks_per_token: float | None = None
    """ranks that serve a token, mean over layers and windows; None where token routes are not known"""
    nodes_per_token: float | None = None
    """nodes that serve a token, the same way"""
    pairs_on_one_rank: float | None = None
    """share of the pairs of a token's experts that live on one rank, mean over layers and windows; None where pair
    counts are not known. They are of no window in particular"""
    pairs_on_one_node: float | None = None
    """share that lives on one node, the same way"""


@dataclass(frozen=True, eq=False)
class Series:
    """One way to place experts, followed through the trace."""

    role: str
    """a key of `ROLES`"""
    policy: str
    """name of the policy; for the floor, ``contiguous``"""
    forecast: str
    """forecast that the policy planned from; empty where there is none"""
    topology: Topology
    windows: npt.NDArray[np.int64]
    """scored windows ``[S]``"""
    mean_imbalance: FloatArray
    """per scored window ``[S]``, mean over layers"""
    worst_layer: FloatArray
    """per scored window ``[S]``"""
    mean_of_ratios: FloatArray
    """per scored window ``[S]``"""
    ratio_of_sums: FloatArray
    """per scored window ``[S]``"""
    layer_imbalance: FloatArray
    """mean over scored windows, per layer ``[L]``"""
    layer_time_s: FloatArray | None
    """estimated seconds in expert layers, per scored window ``[S]``"""
    replans: tuple[Replan, ...]
    last_rank_loads: FloatArray
    """tokens per rank over the last scored interval ``[L, P]``; the floor's are the "before" of a heat map"""
    summary: Summary
    splits: Splits | None = None
    """where asked for: mean imbalance over the scored windows by how each one's tokens are split"""
    even_step_s: float | None = None
    """then, with a cost model: estimated seconds of a layer in one step, windows split evenly, on average"""
    swept_step_s: float | None = None
    """the same, windows split by their load in a few sweeps"""
    activated: Activated | None = None
    """where single batches are known: activated experts on the busiest rank, by how tokens are split"""

    @property
    def label(self) -> str:
        """Name of the series inside its topology."""
        if self.role in REFERENCES:
            return self.role
        name = self.policy + (f" · {self.forecast}" if self.forecast not in ("", "windows") else "")
        return name if self.role == POLICY else f"{name} ({self.role})"


@dataclass(frozen=True, eq=False)
class ForecastError:
    """How well one forecast met the loads of the next interval, over all re-plannings.

    The error is the total variation distance ``1/2 sum_e |forecast share - actual share|`` between the shares
    of a layer's experts, averaged over layers: the part of all tokens that the forecast puts on the wrong
    expert. The floor is what a perfect forecast (of the true shares) would err on average, because the tokens
    that arrive are a multinomial sample of them.
    """

    forecast: str
    windows: npt.NDArray[np.int64]
    """first window of each interval ``[K]``"""
    errors: FloatArray
    """``[K]``"""
    floors: FloatArray | None
    """``[K]``; None where loads are not whole token counts"""
    mean_error: float
    mean_floor: float | None


@dataclass(frozen=True, eq=False)
class ReplayResult:
    """Everything that `equipoise.replay.replay` found.

    For each topology the series come in the order floor, policies (each followed by its gated and once forms
    if asked for), all-past, oracle.
    """

    settings: ReplaySettings
    series: tuple[Series, ...]
    forecasts: tuple[ForecastError, ...]
    """sorted as in `settings.forecasts`, then the remaining forecasts that the trace allows"""
    complete: bool
    """false if the replay was interrupted; what is here is scored in full"""

    def on(self, topology: Topology) -> tuple[Series, ...]:
        """The series of one topology."""
        return tuple(series for series in self.series if series.topology == topology)

    def floor(self, topology: Topology) -> Series:
        """The do-nothing series of one topology."""
        return next(series for series in self.on(topology) if series.role == FLOOR)

    @property
    def has_splits(self) -> bool:
        """Whether every series was scored by how windows are split."""
        return all(series.splits is not None for series in self.series)

    @property
    def has_activated(self) -> bool:
        """Whether every series was scored by the experts that single batches activate."""
        return all(series.activated is not None for series in self.series)

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings under the fields' names; what is not finite becomes None."""
        return {"format": FORMAT, "version": VERSION, **_plain_fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ReplayResult:
        """The result that `as_dict` described; raises KeyError, TypeError or ValueError if it is none."""
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise ValueError(f"format {data['format']!r} version {data['version']!r}")
        settings = dict(data["settings"])
        for name in ("layers", "policies", "forecasts"):
            settings[name] = tuple(settings[name])
        settings["topologies"] = tuple(Topology(**item) for item in settings["topologies"])
        return cls(
            settings=ReplaySettings(**settings),
            series=tuple(_series_from(item) for item in data["series"]),
            forecasts=tuple(ForecastError(**_arrays(item)) for item in data["forecasts"]),
            complete=bool(data["complete"]),
        )

    def save(self, path: str | Path) -> None:
        """Write `as_dict` as JSON; the file appears only when it is whole."""
        from ..formats.output import write_file

        write_file(path, (json.dumps(self.as_dict(), allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> ReplayResult:
        """Read what `save` wrote.

        Raises
        ------
        FileAccessError
            if the file cannot be read
        FormatError
            if it is not a replay result of this version
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileAccessError(path, f"cannot be read: {error}") from None
        try:
            return cls.from_dict(json.loads(text))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(path, f"is not what `equipoise replay --json` prints: {error}") from None


_ARRAYS = {
    "windows": np.int64,
    "mean_imbalance": np.float64,
    "worst_layer": np.float64,
    "mean_of_ratios": np.float64,
    "ratio_of_sums": np.float64,
    "layer_imbalance": np.float64,
    "layer_time_s": np.float64,
    "last_rank_loads": np.float64,
    "errors": np.float64,
    "floors": np.float64,
}


def _arrays(item: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: read_only(np.array(value, dtype=_ARRAYS[name]))
        if name in _ARRAYS and isinstance(value, list)
        else value
        for name, value in item.items()
    }


def _series_from(item: Mapping[str, Any]) -> Series:
    values = _arrays(item)
    values["topology"] = Topology(**values["topology"])
    values["replans"] = tuple(Replan(**replan) for replan in values["replans"])
    values["summary"] = Summary(**values["summary"])
    if values.get("splits") is not None:
        values["splits"] = Splits(**values["splits"])
    if values.get("activated") is not None:
        values["activated"] = Activated(**values["activated"])
    return Series(**values)


def _plain_fields(value: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return _plain_fields(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
