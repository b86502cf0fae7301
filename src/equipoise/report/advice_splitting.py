"""Advice on how tokens are split among replicas, as a table and in sentences."""

from __future__ import annotations

from ..advice.curve import Choice
from ..advice.recommend import Advice
from ..advice.splitting import Splitting
from ..plans.served import SWEEPS
from .table import BEST, Row, Table, columns, row
from .units import amount, counted, percent, seconds, size


def splitting_table(advice: Advice) -> Table:
    """What splitting every batch by its load brings, for as many slots as were tried."""
    found = advice.splitting
    rows = tuple(_splitting_row(found, even, advice.best.choice) for even in found.curve.choices)
    took = "" if found.split_s is None else f", {seconds(found.split_s)} for splitting included"
    return Table(
        f"How tokens are split, on {found.named.ranks} ranks",
        columns(
            "slots",
            "evenly",
            ("by load,", "same plan"),
            ("by load,", "plan for it"),
            ("stretch", "evenly"),
            ("stretch", "by load"),
        ),
        (rows,),
        notes=(
            f"held-out imbalance, each later window a batch; by load: in {SWEEPS} sweeps. Plans for it are made "
            f"only near the slots named. Stretch by load: of the better plan{took}.",
        ),
    )


def about_splitting(advice: Advice) -> str:
    """What splitting by load brings to the slots that are named, and whether that pays."""
    found = advice.splitting
    here, even = found.here, found.evenly
    what = "the same placement" if here.policy == even.policy else "one made for that"
    text = ""
    if not found.named.redundant:
        text = "Without redundant experts there is nothing to split; with one more slot a rank there is. "
    text += f"Split by the load of every batch, {here.ranks} x {here.slots_per_rank} hold {here.imbalance:.3f} on "
    text += f"later windows with {what} ({here.policy}), split evenly {even.imbalance:.3f}: "
    saved = 1 - here.stretch / even.stretch
    text += (
        f"{percent(saved)} less time in expert layers, " if saved > 0 else "no less time in expert layers, "
    )
    text += "before what splitting takes." if found.split_s is None else "what splitting takes included."
    return f"{text} {_about_slots_saved(found)} {_about_paying(found)}"


def _about_slots_saved(found: Splitting) -> str:
    here, most = found.here, found.curve.choices[-1]
    enough, named, saved = found.as_good_evenly, found.named, found.saved_slots
    if saved:
        freed = saved * named.bytes // named.slots_per_rank
        return (
            f"It saves {saved} of {counted(named.spare, 'spare slot')} a rank, {size(freed)} of each GPU: "
            f"{named.slots_per_rank - saved} hold so as well as {named.slots_per_rank} split evenly."
        )
    if enough is None and most.spare > here.spare:
        more = counted(most.slots_per_rank - here.slots_per_rank, "spare slot")
        return f"It is worth more than {more} a rank: {most.slots_per_rank} split evenly do not hold as well."
    if enough is not None and enough.slots_per_rank > here.slots_per_rank:
        more = counted(enough.slots_per_rank - here.slots_per_rank, "spare slot")
        return f"It is worth {more} a rank: so many more hold as well split evenly."
    return "It saves no spare slot."


def _about_paying(found: Splitting) -> str:
    if found.split_s is None:
        if found.break_even_s <= 0:
            return "It does not pay, whatever it takes."
        each = seconds(1000 * found.break_even_s / found.step_tokens)
        return (
            "It pays where the exchange of counts and the split take less than "
            f"{seconds(found.break_even_s)} in a layer and step, which is of {amount(found.step_tokens)} tokens in "
            f"this recording ({each} for every thousand); --split-us says what they take."
        )
    best, takes = found.best, f"With {seconds(found.split_s)} for it in a layer and step"
    if not found.pays:
        return f"{takes} it does not pay."
    if best.slots_per_rank == found.named.slots_per_rank:
        return f"{takes} it pays."
    return f"{takes} it pays, best with {counted(best.slots_per_rank, 'slot')} a rank."


def _splitting_row(found: Splitting, even: Choice, chosen: Choice) -> Row:
    swept, best = found.curve.swept[even.spare], found.at(even.spare)
    made = next((each for each in found.made if each.spare == even.spare), None)
    split = swept.split == "batch"
    return row(
        f"{even.slots_per_rank}",
        f"{even.imbalance:.3f}",
        f"{swept.imbalance:.3f}" if split else "-",
        "-" if made is None else f"{made.imbalance:.3f}",
        f"{even.stretch:.3f}",
        f"{best.stretch:.3f}" if split else "-",
        role=BEST if even.spare == chosen.spare else "",
    )
