"""A replay in sentences, for readers who want the answer before the numbers."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import printable
from ..replay.result import GATED, ONCE, POLICY, ReplayResult, ReplaySettings
from ..topology import Topology
from .standing import best_forecast, standing
from .units import seconds, size, topology_name

NEAR_FLOOR = 1.5
"""A forecast from as many tokens as it is held against errs sqrt(2) of the floor on steady traffic."""


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
    stand = standing(result, topology)
    best, mean = stand.best, stand.best.summary.mean_imbalance
    floor, oracle = (series.summary.mean_imbalance for series in (stand.floor, stand.oracle))
    rivals = [series.label for series in stand.rivals]
    text = (
        f"On later traffic {best.label} held best: the busiest rank of a layer had {mean - 1:.1%} more tokens "
        f"than the mean, against {floor - 1:.1%} for doing nothing and {oracle - 1:.1%} for a plan that knows "
        "the future"
    )
    if stand.attained is not None:
        text += f"; that is {stand.attained:.0%} of what could be had"
    if rivals:
        text += f". {_listed(rivals)} hardly {'differs' if len(rivals) == 1 else 'differ'} from it"
    return text + "."


def what_it_moves(result: ReplayResult, topology: Topology) -> str:
    """Moves of the best policy, of one re-plan and in all."""
    summary = standing(result, topology).best.summary
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
    stand = standing(result, topology)
    best, favourite = stand.best, stand.favourite
    if favourite is None or favourite.summary.net_s is None or best.summary.net_s is None:
        return "not known", "No cost model was given: --model would turn balance and moves into time."
    scored = seconds(stand.floor.summary.layer_time_s)
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


def findings(result: ReplayResult) -> Iterator[str]:
    """What a reader of the tables should take away, one sentence each."""
    for topology in result.settings.topologies:
        yield _best(result, topology)
        if result.settings.gate:
            yield from gate_findings(result, topology)
    yield from forecast_finding(result)
    if not result.complete:
        yield "The replay was interrupted: these are the intervals that were scored in full."


def _best(result: ReplayResult, topology: Topology) -> str:
    stand = standing(result, topology)
    best, favourite = stand.best, stand.favourite
    floor, oracle = (series.summary.mean_imbalance for series in (stand.floor, stand.oracle))
    text = (
        f"{topology_name(topology)}: {best.label} holds best on later windows, mean imbalance "
        f"{best.summary.mean_imbalance:.3f} against {floor:.3f} for doing nothing and {oracle:.3f} for a "
        f"plan by {result.settings.reference} that knows the future."
    )
    if favourite is not None:
        net = favourite.summary.net_s or 0.0
        text += (
            f" After the cost of moves {favourite.label} brings most, {seconds(net)} net."
            if net > 0
            else " After the cost of moves nothing beats doing nothing: re-plan less often, or limit moves."
        )
    return text


def gate_findings(result: ReplayResult, topology: Topology) -> Iterator[str]:
    """What each gate brought beside always, once and never."""
    series = result.on(topology)
    for gated in (s for s in series if s.role == GATED):
        same = [s for s in series if (s.policy, s.forecast) == (gated.policy, gated.forecast)]
        always = next(s for s in same if s.role == POLICY).summary
        once = next(s for s in same if s.role == ONCE).summary
        text = (
            f"{gated.label} re-planned {gated.summary.replans} of {gated.summary.proposals} times, net "
            f"{seconds(gated.summary.net_s)}; always would have brought {seconds(always.net_s)}, the first plan "
            f"kept {seconds(once.net_s)}, never 0 s."
        )
        if (gated.summary.net_s or 0.0) < (once.net_s or 0.0) - 0.1 * abs(once.net_s or 0.0):
            text += (
                " It moves too readily: try a shorter horizon."
                if gated.summary.replans
                else " Placements hold longer than the horizon: try a longer one."
            )
        yield text


def forecast_finding(result: ReplayResult) -> Iterator[str]:
    """Whether better forecasting could help; nothing without a noise floor."""
    best = best_forecast(result)
    if not best.mean_floor:
        return
    ratio = best.mean_error / best.mean_floor
    verdict = (
        "it is near what sampling noise allows, better forecasting would help little"
        if ratio <= NEAR_FLOOR
        else "drift and bursts make the rest, and the oracle shows what a perfect forecast could bring"
    )
    yield (
        f"The best forecast ({best.forecast}) puts {best.mean_error:.1%} of tokens on the wrong expert, "
        f"{ratio:.1f} times the noise floor: {verdict}."
    )


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
