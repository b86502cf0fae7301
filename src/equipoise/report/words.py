"""A replay in sentences, for readers who want the answer before the numbers."""

from __future__ import annotations

from collections.abc import Iterator

from ..control.gate import splitting_pays
from ..errors import printable
from ..replay.result import GATED, ONCE, POLICY, REFERENCES, ReplayResult, ReplaySettings, Series
from ..topology import Topology
from .standing import Standing, best_forecast, standing
from .units import amount, counted, of_unit, percent, seconds, size, topology_name, traffic_of

NEAR_FLOOR = 1.5
"""A forecast from as many tokens as it is held against errs sqrt(2) of the floor on steady traffic."""


def what_was_replayed(settings: ReplaySettings) -> str:
    """The trace, the protocol, and who took part."""
    text = (
        f"{counted(settings.num_windows, 'window')}{_size(settings)} from {printable(settings.source)}: "
        f"{counted(len(settings.layers), 'MoE layer')} of {counted(settings.num_experts, 'expert')}. "
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
        f"On later traffic {best.label} held best: the busiest rank of a layer had {percent(mean - 1)} more "
        f"{of_unit(result.settings.unit)} than the mean, against {percent(floor - 1)} for doing nothing and "
        f"{percent(oracle - 1)} for a plan that knows the future"
    )
    if stand.attained is not None:
        text += f"; that is {stand.attained:.0%} of what could be had"
    if rivals:
        text += f". {_listed(rivals)} hardly {'differs' if len(rivals) == 1 else 'differ'} from it"
    return text + "." + _reference_that_leads(stand)


def _reference_that_leads(stand: Standing) -> str:
    """A sentence about all-past where it beats all policies: unlike the oracle, it can be had."""
    past, best = stand.past.summary.mean_imbalance, stand.best.summary.mean_imbalance
    if past >= best:
        return ""
    return (
        f" {stand.past.label}, {stand.past.policy} planned from all windows so far, holds better still, {past:.3f} "
        f"against {best:.3f}, and can be had: try a longer history."
    )


def what_it_moves(result: ReplayResult, topology: Topology) -> str:
    """Moves of the best policy, of one re-plan and in all."""
    summary = standing(result, topology).best.summary
    if not summary.moves:
        return "It moved nothing."
    each = summary.moves / summary.replans
    text = f"A re-plan moved {percent(summary.moves_share)} of all slots, {each:,.0f} fetches"
    if summary.bytes is not None:
        text += f" or {size(summary.bytes / summary.replans)}"
    text += f"; the {summary.replans} re-plans together {summary.moves:,}"
    if summary.bytes is not None:
        text += f", {size(summary.bytes)} in about {seconds(summary.lost_s)}"
    return text + "."


def is_it_worth_it(result: ReplayResult, topology: Topology) -> tuple[str, str]:
    """A verdict in a few words, and the reason.

    A recording stands for more traffic than it holds: moves that cost more than they bring in it pay later.
    """
    stand = standing(result, topology)
    if stand.best.summary.net_s is None:
        return "not known", "No cost model was given: --model would turn balance and moves into time."
    if stand.favourite is None:
        return "nothing gained", _nothing_gained(result, topology)
    favourite, scored = stand.favourite.summary, seconds(stand.floor.summary.layer_time_s)
    label, net = stand.favourite.label, favourite.net_s or 0.0
    gains = f"In time, {label} gains {seconds(favourite.gained_s)} of {scored} in expert layers"
    moved = (
        f"loses {seconds(favourite.lost_s)} to moves, {percent(favourite.moves_share)} of all slots at a time"
    )
    if net <= 0:
        return (
            f"after {_paid_after(result, stand.favourite)}",
            f"{gains} and {moved}. {_pays(result, topology)}",
        )
    text = f"{gains} and {moved}: net {seconds(net)}. {_pays(result, topology)}"
    best = stand.best.summary.net_s
    if best < 0:
        text += f" {stand.best.label} loses more than it gains in this recording, net {seconds(best)}."
        return "yes, but not every time", text
    return "yes", text


def _nothing_gained(result: ReplayResult, topology: Topology) -> str:
    held = traffic_of(result.settings, len(result.floor(topology).windows))
    return (
        f"No plan served the {held} scored here faster than doing nothing; a longer recording may show more."
    )


def _paid_after(result: ReplayResult, series: Series) -> str:
    return f"{traffic_of(result.settings, series.summary.break_even_windows or 0.0)} of such traffic"


def _pays(result: ReplayResult, topology: Topology) -> str:
    """After how much traffic moves have paid for themselves, beside what the recording holds."""
    stand = standing(result, topology)
    favourite = stand.favourite
    assert favourite is not None
    if favourite.summary.break_even_windows is None:
        return f"{favourite.label} moved nothing that would have to pay."
    windows = len(favourite.windows)
    text = (
        f"A re-plan by {favourite.label} pays after {_paid_after(result, favourite)}; scored here "
        f"were {traffic_of(result.settings, windows)}"
    )
    replans = favourite.summary.replans
    if replans > 1 and (favourite.summary.net_s or 0.0) < 0:
        text += f", with {replans} re-plans: make fewer, or limit moves"
    return text + "."


def findings(result: ReplayResult) -> Iterator[str]:
    """What a reader of the tables should take away, one sentence each."""
    for topology in result.settings.topologies:
        yield _best(result, topology)
        if result.settings.gate:
            yield from gate_findings(result, topology)
        if result.has_splits:
            yield splitting_finding(result, topology)
    yield from forecast_finding(result)
    if not result.complete:
        yield "The replay was interrupted: these are the intervals that were scored in full."


def _best(result: ReplayResult, topology: Topology) -> str:
    stand = standing(result, topology)
    best = stand.best
    floor, oracle = (series.summary.mean_imbalance for series in (stand.floor, stand.oracle))
    text = (
        f"{topology_name(topology)}: {best.label} holds best on later windows, mean imbalance "
        f"{best.summary.mean_imbalance:.3f} against {floor:.3f} for doing nothing and {oracle:.3f} for a "
        f"plan by {result.settings.reference} that knows the future.{_reference_that_leads(stand)}"
    )
    if best.summary.net_s is None:
        return text
    if stand.favourite is None:
        return f"{text} {_nothing_gained(result, topology)}"
    net = stand.favourite.summary.net_s or 0.0
    if net > 0:
        text += f" After the cost of moves {stand.favourite.label} brings most, {seconds(net)} net."
    return f"{text} {_pays(result, topology)}"


def splitting_finding(result: ReplayResult, topology: Topology) -> str:
    """What splitting every batch by its load brings to the best placement for it, and what it may cost."""
    judged = [one for one in result.on(topology) if one.role not in REFERENCES]
    best, splits = min(((one, one.splits) for one in judged if one.splits), key=lambda pair: pair[1].swept)
    text = (
        f"{topology_name(topology)}: split by their load, windows are best served by {best.label}, mean imbalance "
        f"{splits.swept:.3f} after {splits.sweeps} sweeps."
    )
    even = min((one.even_step_s for one in judged if one.even_step_s is not None), default=None)
    if even is None or best.swept_step_s is None:
        return text
    text += f" A layer's step then takes {seconds(best.swept_step_s)}, against {seconds(even)} at best split evenly"
    cost = result.settings.split_s
    if cost is None:
        return f"{text}: worth it where the exchange of counts and the split take less than what is between."
    pays = splitting_pays(even, best.swept_step_s, cost)
    return f"{text}, and splitting takes {seconds(cost)}: it {'pays' if pays else 'does not pay'}."


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


def _size(settings: ReplaySettings) -> str:
    """How much of the traffic a window has; what the file calls a window need not be a step."""
    if settings.picks_per_window is None:
        return ""
    unit = "expert picks a layer" if settings.tokens_per_window is None else "tokens"
    text = f" of about {amount(settings.tokens_per_window or settings.picks_per_window)} {unit}"
    if settings.steps_per_window != 1:
        text += f" ({settings.steps_per_window:.4g} recorded ones each)"
    return text


def _windows(number: int) -> str:
    return "window" if number == 1 else f"{number} windows"


def _budget(max_moves: int | float) -> str:
    return f"{max_moves:.1%} of all slots" if isinstance(max_moves, float) else f"{max_moves:,} experts"


def _listed(names: list[str] | tuple[str, ...]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
