"""A replay in sentences, for readers who want the answer before the numbers."""

from __future__ import annotations

from ..errors import printable
from ..replay.result import CEILING, GATED, ONCE, POLICY, ReplayResult, ReplaySettings, Series
from ..topology import Topology
from .tables import seconds, size, topology_name

HARDLY = 0.01
"""Difference in mean imbalance below which two policies are called equal."""


def best_policy(result: ReplayResult, topology: Topology) -> Series:
    """The series re-planned at every interval whose held-out imbalance is lowest."""
    found = [series for series in result.on(topology) if series.role == POLICY]
    return min(found, key=lambda series: series.summary.mean_imbalance)


def best_net(result: ReplayResult, topology: Topology) -> Series | None:
    """The series of a policy, in whatever form, with the largest net time; None without a cost model."""
    found = [
        series
        for series in result.on(topology)
        if series.role in (POLICY, GATED, ONCE) and series.summary.net_s is not None
    ]
    return max(found, key=lambda series: series.summary.net_s or 0.0, default=None)


def what_was_replayed(settings: ReplaySettings) -> str:
    """The trace, the protocol, and who took part."""
    text = (
        f"{settings.num_windows:,} windows of {_steps(settings.steps_per_window)} from {printable(settings.source)}: "
        f"{len(settings.layers)} MoE layers of {settings.num_experts} experts. "
        f"Every {_windows(settings.interval)} each policy planned from the last {_windows(settings.history)} "
        f"and was scored on the {_windows(settings.interval)} that followed, which its plan had not seen. "
        f"{_listed(settings.policies)} took part on {_listed([topology_name(t) for t in settings.topologies])}"
    )
    if settings.max_moves is not None:
        text += f", and a re-plan might move {_budget(settings.max_moves)}"
    return text + "."


def held_best(result: ReplayResult, topology: Topology) -> str:
    """Which policy was best on later traffic, and between which floor and ceiling."""
    best = best_policy(result, topology)
    mean = best.summary.mean_imbalance
    floor = result.floor(topology).summary.mean_imbalance
    oracle = next(s for s in result.on(topology) if s.role == CEILING).summary.mean_imbalance
    others = [
        series.label
        for series in result.on(topology)
        if series.role == POLICY
        and series is not best
        and series.summary.mean_imbalance - mean < HARDLY * (floor - 1)
    ]
    text = (
        f"On later traffic {best.label} held best: the busiest rank of a layer had {mean - 1:.1%} more tokens "
        f"than the mean, against {floor - 1:.1%} for doing nothing and {oracle - 1:.1%} for a plan that knows "
        "the future"
    )
    if floor > oracle:
        text += f"; that is {(floor - mean) / (floor - oracle):.0%} of what could be had"
    if others:
        text += f". {_listed(others)} hardly {'differs' if len(others) == 1 else 'differ'} from it"
    return text + "."


def what_it_moves(result: ReplayResult, topology: Topology) -> str:
    """Moves of the best policy, of one re-plan and in all."""
    summary = best_policy(result, topology).summary
    if not summary.moves:
        return "It moved nothing."
    each = summary.moves / summary.replans
    text = f"A re-plan moved {summary.moves_share:.1%} of all slots, {each:,.0f} experts"
    if summary.bytes is not None:
        text += f" or {size(summary.bytes / summary.replans)}"
    text += f"; the {summary.replans} re-plans together {summary.moves:,}"
    if summary.bytes is not None:
        text += f", {size(summary.bytes)} in about {seconds(summary.lost_s)}"
    return text + "."


def is_it_worth_it(result: ReplayResult, topology: Topology) -> tuple[str, str]:
    """A verdict in a word or two, and the reason."""
    best, favourite = best_policy(result, topology), best_net(result, topology)
    if favourite is None or favourite.summary.net_s is None or best.summary.net_s is None:
        return "not known", "No cost model was given: --model would turn balance and moves into time."
    scored = seconds(_layer_time(result, topology))
    if favourite.summary.net_s <= 0:
        return (
            "no",
            f"Every way to re-plan costs more in moves than it brings. The best, {favourite.label}, gains "
            f"{seconds(favourite.summary.gained_s)} of {scored} in expert layers and loses "
            f"{seconds(favourite.summary.lost_s)}. Limit moves, plan less often, or leave experts where they are.",
        )
    text = (
        f"In time, {favourite.label} gains {seconds(favourite.summary.gained_s)} of {scored} in expert layers "
        f"and loses {seconds(favourite.summary.lost_s)} to moves, "
        f"{favourite.summary.moves_share:.1%} of all slots at a time: net {seconds(favourite.summary.net_s)}."
    )
    if best.summary.net_s < 0:
        text += f" {best.label} re-planned every time loses more than it gains, net {seconds(best.summary.net_s)}."
        return "yes, but not every time", text
    return "yes", text


def _layer_time(result: ReplayResult, topology: Topology) -> float | None:
    return result.floor(topology).summary.layer_time_s


def _steps(number: float) -> str:
    return "one step" if number == 1 else f"{number:.4g} steps"


def _windows(number: int) -> str:
    return "window" if number == 1 else f"{number} windows"


def _budget(max_moves: int | float) -> str:
    return f"{max_moves:.1%} of all slots" if isinstance(max_moves, float) else f"{max_moves:,} experts"


def _listed(names: list[str] | tuple[str, ...]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
