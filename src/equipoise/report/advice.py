"""Advice in tables and sentences: what is recommended, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..advice.curve import Choice, Curve
from ..advice.recommend import Advice, Deployment
from ..advice.splitting import NOTHING
from ..advice.timing import EVERY_TIME, KEPT, LEAST_SCORED, WHEN_IT_PAYS, Replanning
from .advice_splitting import about_splitting, splitting_table
from .table import BEST, REFERENCE, Row, Table, columns, row
from .units import amount, counted, duration, percent, seconds, signed, size


def verdict(advice: Advice) -> str:
    """What is recommended, in a sentence."""
    if advice.nothing_to_gain:
        return (
            f"Nothing to gain: on later windows no plan saves {percent(NOTHING, 0)} of the time in expert layers "
            "against the contiguous placement that engines start from."
        )
    found = advice.best
    text = f"Of {counted(found.gpus, 'GPU')} make {_groups(found)} with {_slots(found.choice)}"
    text += f", planned with {advice.policy} from {_windows(advice.history)}, tokens split "
    text += "by the load of every batch" if advice.split == "batch" else "evenly"
    return text + ("." if found.choice.fits else ", though experts do not fit into what is kept for them.")


def reasons(advice: Advice, traffic: float | None = None) -> Iterator[str]:
    """Why, a sentence each; ``traffic`` is tokens a second, where known."""
    if advice.nothing_to_gain:
        nothing = advice.chosen.nothing
        least = min(each.imbalance for each in advice.chosen.choices)
        yield (
            f"On {counted(nothing.ranks, 'rank')} the busiest rank has {percent(nothing.imbalance - 1)} more tokens "
            f"than the mean without a plan, and {percent(least - 1)} with the best one: loads are flat, or later "
            "ones are not like those planned from."
        )
        if 1 - advice.splitting.here.stretch / nothing.stretch >= NOTHING:
            yield about_splitting(advice)
        return
    for each in advice.curves:
        yield _about_spare(each.choices, advice.named(each))
    if len(advice.curves) > 1:
        yield _about_ranks(advice)
    yield about_splitting(advice)
    yield _about_planning(advice)
    yield _about_replanning(advice)
    yield _about_moving(advice, traffic)
    yield _about_scores(advice)


def deployment_table(advice: Advice) -> Table:
    """The best way to use each number of GPUs."""
    return Table(
        "GPUs, and how to use them",
        columns(
            "",
            "ranks",
            "slots",
            "redundant",
            ("held-out", "imbalance"),
            ("a token", "takes"),
            "experts",
            "price",
        ),
        (tuple(_deployment_row(advice, each) for each in advice.deployments),),
        notes=(
            "price: time in expert layers over that of perfect balance, and the part of a GPU's memory that experts "
            f"take, times {advice.question.limits.worth:g}.",
        ),
        subject=_subject(advice),
    )


def curve_table(advice: Advice) -> Table:
    """What spare slots bring on each number of ranks."""
    return Table(
        f"Held-out, {_scored(advice)}",
        columns("", "slots", "imbalance", "stretch", "of memory", "price"),
        tuple(tuple(_curve_rows(advice, each)) for each in advice.curves),
        notes=("stretch: time in expert layers over that of perfect balance.",),
    )


def planning_table(advice: Advice) -> Table:
    """What plans from more windows, and of other policies, hold on later ones."""
    windows = [
        row(
            f"robust from {_windows(int(each.value))}",
            f"{each.imbalance:.3f}",
            role=_if(each.value == advice.history),
        )
        for each in advice.windows
    ]
    policies = [
        row(str(each.value), f"{each.imbalance:.3f}", role=_if(each is advice.policy_evenly))
        for each in advice.policies
    ]
    title = f"What to plan from, and with what, on {_shape(advice.best.choice)}"
    rows = (tuple(windows), tuple(policies))
    return Table(title, columns("", "held-out imbalance"), rows, notes=("tokens split evenly.",))


def replanning_table(advice: Advice) -> Table:
    """When to plan anew, replayed."""
    chosen = advice.replanning
    rows = [
        row(
            _way(each),
            f"{each.imbalance:.3f}",
            f"{each.moves_share:.1%}",
            signed(each.net_s),
            role=_if(each is chosen),
        )
        for each in advice.replannings
    ]
    first = advice.replannings[0]
    title = f"When to plan anew from {_windows(first.history)}, {_windows(first.scored)} replayed"
    return Table(title, columns("", "imbalance", "moved", "net"), (tuple(rows),))


def advice_tables(advice: Advice) -> Iterator[Table]:
    """All tables of one kind of traffic."""
    yield deployment_table(advice)
    if not advice.nothing_to_gain:
        yield curve_table(advice)
        yield splitting_table(advice)
        yield planning_table(advice)
        if advice.replannings:
            yield replanning_table(advice)


def _about_spare(choices: Sequence[Choice], choice: Choice) -> str:
    first, last = choices[1], choices[-1]
    all_of_it = choices[0].imbalance - last.imbalance
    text = f"{counted(choice.ranks, 'rank')}: {_slots(choice)}. "
    if all_of_it > NOTHING:
        part = (choices[0].imbalance - first.imbalance) / all_of_it
        text += (
            f"The first spare slot a rank brings {percent(part, 0)} of what {last.spare} bring (held-out imbalance "
            f"{choices[0].imbalance:.3f}, {first.imbalance:.3f}, {last.imbalance:.3f})"
        )
    else:
        both = f"{choices[0].imbalance:.3f}, {last.imbalance:.3f}"
        text += f"Spare slots bring next to nothing (held-out imbalance {both})"
    each = first.bytes - choices[0].bytes
    text += f"; one takes {size(each)} of each GPU, {percent(first.share - choices[0].share)} of its memory."
    return text + _about_the_next(choices, choice)


def _about_the_next(choices: Sequence[Choice], choice: Choice) -> str:
    """Why it is not one more slot."""
    if choice is choices[-1]:
        return " More were not tried."
    following = choices[choice.spare + 1]
    if not following.fits:
        return " One more does not fit." if choice.fits else " Even these do not fit: take more GPUs."
    saved = 1 - following.stretch / choice.stretch
    if saved <= 0:
        return " One more would save no time."
    return f" One more would save {percent(saved)} of the expert layers' time, less than its memory is worth."


def _about_ranks(advice: Advice) -> str:
    worth = advice.question.limits.worth
    found = {each.topology.num_ranks: advice.named(each).price(worth) for each in advice.curves}
    (ranks, price), *others = sorted(found.items(), key=lambda one: one[1])
    text = (
        f"A GPU's price, its time in expert layers and its memory, is least with {ranks} ranks, {price:.2f}"
    )
    text += " against " + ", ".join(f"{price:.2f} with {ranks}" for ranks, price in others)
    return f"{text}: more ranks hold fewer experts each, and balance them worse."


def _about_scores(advice: Advice) -> str:
    found = advice.splitting
    text = "Ranks, windows, policies and re-planning are scored with an even split"
    if found.made:
        slots = ", ".join(str(each.slots_per_rank) for each in found.made)
        text += (
            f"; plans for batches, which take longer, on {found.named.ranks} ranks with {slots} slots alone"
        )
    elif found.curve.topology.hierarchical:
        text += "; plans for batches know no groups on nodes, and are not scored"
    return f"{text}. What tokens cost on the network is in none of it."


def _about_planning(advice: Advice) -> str:
    best = {each.value: each.imbalance for each in advice.windows}
    text = f"Plans from {_windows(advice.history)} hold as well as from any more"
    if advice.history == advice.windows[-1].value:
        text = (
            f"Plan from all {_windows(advice.history)} at hand"
            if advice.history > 1
            else "One window is all there is"
        )
    if len(best) > 1 and advice.history != advice.windows[0].value:
        text += f": {best[advice.history]:.3f}, from one {advice.windows[0].imbalance:.3f}"
    mine = advice.policy_evenly
    others = [f"{each.value} {each.imbalance:.3f}" for each in advice.policies if each is not mine]
    return f"{text}. {mine.value} holds {mine.imbalance:.3f} on later windows, {', '.join(others)}."


def _about_replanning(advice: Advice) -> str:
    if not advice.replannings:
        return (
            f"When to plan anew the recording does not say: that takes {LEAST_SCORED} windows beside those "
            "that a plan is made from. Plan once, and record on."
        )
    best = advice.replanning
    scored = _windows(advice.replannings[0].scored)
    if best is None:
        return f"Over the {scored} replayed no way to plan anew gained more than its moves cost: plan once, offline."
    text = f"Best over the {scored} replayed: {_way(best)}, net {seconds(best.net_s)}"
    kept = max((each for each in advice.replannings if each.mode == KEPT), key=lambda each: each.net_s)
    return text + (
        "." if best.mode == KEPT else f"; the first plan kept to the end brings {seconds(kept.net_s)}."
    )


def _about_moving(advice: Advice, traffic: float | None) -> str:
    tokens = advice.break_even_tokens
    moved = f"{size(advice.move_bytes)} in about {seconds(advice.move_s)}"
    text = f"Going over from the contiguous placement moves {moved}"
    if tokens is None:
        return f"{text} and saves no time."
    after = f"{amount(tokens)} tokens" if traffic is None else f"{duration(tokens / traffic)} of such traffic"
    return f"{text} and has paid after {after}; an engine that starts with the plan moves nothing."


def _deployment_row(advice: Advice, each: Deployment) -> Row:
    choice = each.choice
    return row(
        f"{counted(each.gpus, 'GPU')}: {_groups(each)}" + ("" if choice.fits else ", too large"),
        f"{choice.ranks}",
        f"{choice.slots_per_rank}",
        f"{choice.redundant}",
        f"{choice.imbalance:.3f}",
        seconds(choice.token_s),
        size(choice.bytes),
        f"{choice.price(advice.question.limits.worth):.2f}",
        role=_if(each is advice.best),
    )


def _curve_rows(advice: Advice, each: Curve) -> Iterator[Row]:
    chosen = advice.named(each)
    worth = advice.question.limits.worth
    for choice in (each.nothing, *each.choices):
        planned = choice is not each.nothing
        yield row(
            f"{choice.ranks} ranks, {f'{choice.spare} spare' if planned else 'no plan'}",
            f"{choice.slots_per_rank}",
            f"{choice.imbalance:.3f}",
            f"{choice.stretch:.3f}",
            percent(choice.share) + ("" if choice.fits else " (too large)"),
            f"{choice.price(worth):.3f}",
            role=_if(choice is chosen) if planned else REFERENCE,
        )


def _subject(advice: Advice) -> str:
    kind = advice.part.name.capitalize()
    return f"{kind}: {verdict(advice)}" if kind else verdict(advice)


def _scored(advice: Advice) -> str:
    seen, later = len(advice.part.seen), len(advice.part.later)
    return f"planned from {_windows(seen)}, scored on {later} later {'one' if later == 1 else 'ones'}"


def _groups(found: Deployment) -> str:
    ranks = counted(found.choice.ranks, "rank")
    return f"one group of {ranks}" if found.groups == 1 else f"{found.groups} groups of {ranks}"


def _slots(choice: Choice) -> str:
    each = counted(choice.slots_per_rank, "slot")
    return f"{each} a rank ({counted(choice.redundant, 'redundant expert')})"


def _shape(choice: Choice) -> str:
    return f"{choice.ranks} x {choice.slots_per_rank}"


def _windows(number: int) -> str:
    return counted(number, "window")


def _way(each: Replanning) -> str:
    how = {EVERY_TIME: "plan anew", WHEN_IT_PAYS: "plan anew when it pays", KEPT: "plan once"}[each.mode]
    if each.mode != KEPT:
        how += f" every {_windows(each.interval)}" if each.interval > 1 else " in every window"
    return how + (f", moving {each.max_moves:.0%} at most" if each.max_moves is not None else "")


def _if(best: bool) -> str:
    return BEST if best else ""
