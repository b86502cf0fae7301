"""Held-out replay: walk a trace in time, plan from the windows seen, score on the windows that follow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ..control.balancer import Balancer
from ..control.cost import CostModel
from ..control.forecast import FORECASTS, Past, forecast_error, noise_floor, possible_forecasts
from ..errors import ArgumentError, EquipoiseError, PlacementError
from ..placement import Placement, contiguous_placement
from ..plans.activated import batches_of_windows
from ..plans.plan import ask
from ..policy.protocol import Ability, Policy, can
from ..policy.registry import DEFAULT, find_policy
from ..problem import Problem
from ..routes import PairCounts, Routes
from ..topology import Topology
from ..trace import LoadTrace
from .checks import check_counts, check_lists, check_routes, check_split, check_traffic, check_unit, shorter
from .result import (
    CEILING,
    FLOOR,
    GATED,
    ONCE,
    PAST,
    POLICY,
    ForecastError,
    ReplayResult,
    ReplaySettings,
    Series,
)
from .summary import joined_where, series_of
from .track import Interval, Scene, Stopwatch, Track

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


class Replay:
    """A replay that can be stopped: `run` it, then ask for the `result`, even of a run that was interrupted.

    Parameters
    ----------
    trace : the loads, ``T`` windows of ``L`` layers and ``E`` experts
    topologies : the machines to place the experts on, side by side. Where ranks are not equally fast, every series is
        scored by times, loads divided by speeds; policies that know no speeds plan without them
    policies : names or policies
    interval : windows between two re-plannings
    history : windows that a plan is made from; the first plan is made when there are as many
    forecasts : names of `FORECASTS`; every policy plans from each of them
    reference : name or policy behind ``all-past`` and ``oracle``; the default policy unless given
    max_moves : budget of every re-planning (float: share of all slots; integer: fetches), for the policies
        that honour one
    seed : handed to every policy
    gate : also follow every policy with a `Gate` before it, and with its first plan kept
    horizon : windows over which the gate lets a move pay for itself; the interval unless given
    cost : needed for times and bytes and for the gate
    traffic : tokens a second that the deployment serves, all ranks together: how long a window of the recording
        lasts there. Without it, gains and moves are set against each other per token
    split : "batch" scores every series with each window split evenly, in a few sweeps and as well as can be; a policy
        that plans for batches is scored as it is meant to be served in any case
    split_s : seconds that splitting takes in each layer and step, the exchange of counts included; needs a cost model
    routes : ``[T]``, the token routes of each window, where known: series are also scored by where these tokens go.
        Or pair counts, which are not of single windows: each placement is scored by all of them. Plans are made from
        loads alone
    batches : the single batches that the windows were added up from, as many in each: series are also scored by the
        experts that these activate on the busiest rank

    Raises
    ------
    ArgumentError
        if a setting is out of range, a name unknown, or the trace too short
    """

    def __init__(
        self,
        trace: LoadTrace,
        topologies: Sequence[Topology],
        policies: Sequence[str | Policy],
        *,
        interval: int = 8,
        history: int = 8,
        forecasts: Sequence[str] = ("windows",),
        reference: str | Policy | None = None,
        max_moves: int | float | None = None,
        seed: int = 0,
        gate: bool = False,
        horizon: int | None = None,
        cost: CostModel | None = None,
        traffic: float | None = None,
        split: str = "even",
        split_s: float | None = None,
        routes: Sequence[Routes] | PairCounts | None = None,
        batches: LoadTrace | None = None,
    ) -> None:
        horizon = interval if horizon is None else horizon
        check_counts(interval=interval, history=history, horizon=horizon)
        check_lists(topologies=topologies, policies=policies, forecasts=forecasts)
        self._all_forecasts = possible_forecasts(trace, forecasts)
        self._policies = [find_policy(policy) for policy in policies]
        names = [name for name, _ in self._policies]
        check_lists(policies=names)
        self._reference = find_policy(DEFAULT if reference is None else reference)
        first = np.array(trace.counts[:1], dtype=np.float64)
        for topology in topologies:
            start = self._start(trace, topology)
            Problem.trusting(first, topology, current=start, max_moves=max_moves, seed=seed)  # checks them
            if cost is not None:
                cost.check(topology)
        if max_moves is not None and not any(can(policy, Ability.BUDGET) for _, policy in self._policies):
            raise ArgumentError(
                f"max_moves is honoured by none of the policies {', '.join(names)}; leave it out"
            )
        if gate and cost is None:
            raise ArgumentError(
                "gate needs a cost model to weigh moves against gains; name the model (--model, or cost=)"
            )
        check_unit(trace, cost, split)
        top_k = trace.top_k or (None if cost is None else cost.top_k)
        check_traffic(traffic, cost, top_k)
        check_split(split, split_s, cost)
        if split != "even" and any(topology.rank_speed is not None for topology in topologies):
            raise ArgumentError("split='batch' levels loads and knows no speeds: leave rank_speed out")
        if trace.num_windows <= history:
            raise ArgumentError(
                f"the trace has {trace.num_windows} window{'s' * (trace.num_windows != 1)}, but plans are made from "
                f"history={history} of them and scored on later ones: {shorter(trace.num_windows)}"
            )
        assert trace.steps is not None
        steps = (trace.steps[:, 1] - trace.steps[:, 0]).astype(np.float64)
        check_routes(routes, trace)
        single = None if batches is None else batches_of_windows(batches, trace)
        self._scene = Scene(trace, steps, seed, cost, split, routes, single)
        self.settings = ReplaySettings(
            source=trace.source,
            num_windows=trace.num_windows,
            num_experts=trace.num_experts,
            layers=trace.layers,
            steps_per_window=float(steps.mean()),
            interval=interval,
            history=history,
            policies=tuple(names),
            forecasts=tuple(forecasts),
            topologies=tuple(topologies),
            reference=self._reference[0],
            max_moves=max_moves,
            seed=seed,
            gate=gate,
            horizon=horizon,
            cost=None if cost is None else cost.as_dict(),
            picks_per_window=_picks_per_window(trace),
            top_k=top_k,
            traffic=None if traffic is None else float(traffic),
            split_s=split_s,
            unit=trace.unit,
        )
        self._starts = list(range(history, trace.num_windows, interval))
        self._tracks = [track for topology in topologies for track in self._tracks_on(topology)]
        self._errors: list[dict[str, float]] = []
        self._floors: list[float | None] = []
        self._done = 0

    @property
    def intervals_done(self) -> int:
        """Intervals for which every series has been scored."""
        return self._done

    def run(self, progress: Progress | None = None) -> ReplayResult:
        """Walk the whole trace. After a KeyboardInterrupt `result` holds what was scored so far."""
        scene, settings = self._scene, self.settings
        self._warm_up()
        past = Past(scene.trace.num_layers, scene.trace.num_experts, settings.history)
        seen = 0
        total = len(self._starts) * len(self._tracks)
        for number, start in enumerate(self._starts):
            for window in range(seen, start):
                self._observe(past, window)
            seen = start
            end = min(start + settings.interval, settings.num_windows)
            counts = np.array(scene.trace.counts[start:end], dtype=np.float64)
            interval = Interval(start, counts, scene.steps[start:end])
            loads = {name: FORECASTS[name](past, settings.history) for name in self._all_forecasts}
            for index, track in enumerate(self._tracks):
                track.step(scene, past, interval)
                if progress is not None:
                    progress(number * len(self._tracks) + index + 1, total)
            coming = counts.sum(axis=0)
            self._errors.append({name: forecast_error(loads[name], coming) for name in loads})
            self._floors.append(noise_floor(coming) if scene.trace.unit == "tokens" else None)
            self._done = number + 1
        return self.result()

    def _observe(self, past: Past, window: int) -> None:
        """Let everyone see a window that has been served; one without any load is passed over."""
        scene = self._scene
        counts = np.array(scene.trace.counts[window], dtype=np.float64)
        if counts.any():
            phases = scene.trace.phases
            past.observe(counts, float(scene.steps[window]), None if phases is None else phases[window])
            for track in self._tracks:
                track.observe(scene, window)

    def result(self) -> ReplayResult:
        """What has been scored so far; raises `EquipoiseError` if that is nothing."""
        if not self._done:
            raise EquipoiseError("the replay was stopped before its first interval was scored")
        return ReplayResult(
            settings=self.settings,
            series=tuple(self._series()),
            forecasts=tuple(self._forecast_errors()),
            complete=self._done == len(self._starts),
        )

    @staticmethod
    def _start(trace: LoadTrace, topology: Topology) -> Placement:
        topology.check_experts(trace.num_experts)
        rows = contiguous_placement(
            trace.num_layers, trace.num_experts, topology.num_ranks, topology.num_slots
        )
        return Placement(
            rows.phy2log,
            topology.num_ranks,
            trace.num_experts,
            layers=trace.layers,
            num_model_layers=trace.num_model_layers,
        )

    def _tracks_on(self, topology: Topology) -> Iterator[Track]:
        start = self._start(self._scene.trace, topology)
        reference = Stopwatch(*self._reference)
        yield Track(FLOOR, "contiguous", "", topology, start, reference)
        for name, policy in self._policies:
            for forecast in self.settings.forecasts:
                for role in (POLICY, GATED, ONCE) if self.settings.gate else (POLICY,):
                    watch = Stopwatch(name, policy)
                    balancer = self._balancer(topology, watch, forecast, role == GATED)
                    balancer.commit(start)
                    yield Track(role, name, forecast, topology, start, watch, balancer)
        for role in (PAST, CEILING):
            yield Track(role, reference.name, "", topology, start, reference)

    def _balancer(self, topology: Topology, watch: Stopwatch, forecast: str, gated: bool) -> Balancer:
        trace, settings = self._scene.trace, self.settings
        return Balancer(
            topology,
            trace.num_layers,
            trace.num_experts,
            policy=watch,
            history=settings.history,
            max_moves=settings.max_moves,
            seed=settings.seed,
            cost=self._scene.cost if gated else None,
            horizon=settings.horizon,
            forecast=forecast,
        )

    def _warm_up(self) -> None:
        """Let every planner compile its kernels, so that its first planning times are like the others."""
        loads = np.array(self._scene.trace.counts[: self.settings.history, :1], dtype=np.float64)
        topology, seed = self.settings.topologies[0], self.settings.seed
        for name, policy in [*self._policies, self._reference]:
            current: Placement | None = None
            # One window or several, from nothing or from a placement: these may be different kernels.
            for windows, start in ((loads, False), (loads, True), (loads[-1:], False), (loads[-1:], True)):
                given = current if start else None
                found = ask(
                    name, policy, Problem.trusting(windows.copy(), topology, current=given, seed=seed)
                )
                with contextlib.suppress(PlacementError):  # reported when it comes to the whole trace
                    current = Placement(found, topology.num_ranks, self.settings.num_experts)

    def _series(self) -> Iterator[Series]:
        last = self._starts[self._done - 1] + self.settings.interval
        windows = np.arange(self._starts[0], min(last, self.settings.num_windows), dtype=np.int64)
        floor_time: npt.NDArray[np.float64] | None = None
        for track in self._tracks:
            scores = track.scores[: self._done]  # an interrupt may leave some tracks an interval ahead
            times = None
            if self._scene.cost is not None:
                times = np.concatenate([s.layer_time_s for s in scores if s.layer_time_s is not None])
            if track.role == FLOOR:
                floor_time = times
            yield series_of(
                role=track.role,
                policy=track.policy,
                forecast=track.forecast,
                topology=track.topology,
                windows=windows,
                imbalances=np.concatenate([s.imbalance for s in scores]),
                balances=[each for s in scores for each in s.balances],
                layer_time_s=times,
                floor_time_s=floor_time,
                replans=tuple(replan for replan in track.replans[: self._done] if replan is not None),
                last_rank_loads=scores[-1].rank_loads,
                splits=[each for s in scores for each in s.splits],
                step_s=[each for s in scores for each in s.step_s],
                where=joined_where([s.where for s in scores]),
                activated=[s.activated for s in scores if s.activated is not None],
            )

    def _forecast_errors(self) -> Iterator[ForecastError]:
        known = [floor for floor in self._floors[: self._done] if floor is not None]
        floors = np.array(known) if len(known) == self._done else None
        for name in self._all_forecasts:
            errors = np.array([found[name] for found in self._errors[: self._done]])
            yield ForecastError(
                forecast=name,
                windows=np.array(self._starts[: self._done], dtype=np.int64),
                errors=errors,
                floors=floors,
                mean_error=float(errors.mean()),
                mean_floor=None if floors is None else float(floors.mean()),
            )


def replay(
    trace: LoadTrace,
    topologies: Topology | Sequence[Topology],
    policies: Sequence[str | Policy],
    *,
    interval: int = 8,
    history: int = 8,
    forecasts: Sequence[str] = ("windows",),
    reference: str | Policy | None = None,
    max_moves: int | float | None = None,
    seed: int = 0,
    gate: bool = False,
    horizon: int | None = None,
    cost: CostModel | None = None,
    traffic: float | None = None,
    split: str = "even",
    split_s: float | None = None,
    routes: Sequence[Routes] | PairCounts | None = None,
    batches: LoadTrace | None = None,
    progress: Progress | None = None,
) -> ReplayResult:
    """Score policies on windows that their plans have not seen; `Replay` describes the arguments.

    Examples
    --------
    >>> from equipoise import LoadTrace, Topology
    >>> from equipoise.replay import replay
    >>> trace = LoadTrace([[[8, 4, 2, 2]]] * 6)
    >>> found = replay(trace, Topology(2, 2), ["greedy"], interval=2, history=2)
    >>> [(series.label, series.summary.mean_imbalance) for series in found.series][:2]
    [('do-nothing', 1.5), ('greedy', 1.25)]
    """
    several = [topologies] if isinstance(topologies, Topology) else topologies
    return Replay(
        trace,
        several,
        policies,
        interval=interval,
        history=history,
        forecasts=forecasts,
        reference=reference,
        max_moves=max_moves,
        seed=seed,
        gate=gate,
        horizon=horizon,
        cost=cost,
        traffic=traffic,
        split=split,
        split_s=split_s,
        routes=routes,
        batches=batches,
    ).run(progress)


def _picks_per_window(trace: LoadTrace) -> float | None:
    if trace.unit != "tokens":
        return None
    return float(trace.counts.sum(dtype=np.float64) / (len(trace) * trace.num_layers))
