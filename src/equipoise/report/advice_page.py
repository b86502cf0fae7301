"""Advice as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import __version__
from ..advice.recommend import Advice
from ..formats.output import write_file
from ..plans.served import SWEEPS
from .advice import advice_tables, reasons, verdict
from .blocks import fact, figure, meanings, open_table
from .charts import Bar, bar_chart
from .markup import Markup, element
from .page import framed, section
from .units import minus, percent, seconds, size

MEANINGS = {
    "imbalance": "tokens of a layer's busiest rank over the mean of its ranks, mean over later windows and layers",
    "held-out": "planned from the windows seen, scored on windows that come after them",
    "stretch": "time in expert layers over that of perfect balance",
    "split by load": "a batch's tokens are split among an expert's replicas by the load of that batch, in "
    f"{SWEEPS} sweeps over the ranks; every later window is one batch",
    "price": "stretch, and the part of a GPU's memory that experts take: what is recommended has the least",
    "net": "estimated seconds saved against the contiguous placement, less those spent on moves",
}


def save_page(advices: Sequence[Advice], path: Path, traffic: float | None = None) -> None:
    """Write the page; the file appears only when it is whole."""
    write_file(path, advice_page(advices, traffic).encode(errors="replace"))


def advice_page(advices: Sequence[Advice], traffic: float | None = None) -> str:
    """The page as text: a section for each kind of traffic. The same advice gives the same page."""
    first = advices[0]
    names = [advice.part.name or "advice" for advice in advices]
    sections = [
        section(name, name.capitalize(), *_parts(name, advice, traffic), first=not index)
        for index, (name, advice) in enumerate(zip(names, advices, strict=True))
    ]
    facts = {
        "loads": first.part.seen.source,
        "scored on": first.part.later.source,
        "memory of a GPU": f"{size(first.question.limits.memory_bytes)}, of which "
        f"{percent(first.question.limits.kept, 0)} are kept for everything but experts (assumed)",
        "cost model": f"{first.cost.name}; times are estimates",
        **{f"source {number}": source for number, source in enumerate(first.cost.sources, 1)},
        "Equipoise": __version__,
    }
    method = section(
        "method", "How this was made", meanings(facts), element("h3", "Words"), meanings(MEANINGS)
    )
    links = [*((name, name.capitalize()) for name in names), ("method", "How this was made")]
    shape = f"{first.part.seen.num_layers} MoE layers of {first.part.seen.num_experts} experts"
    return framed("Equipoise recommend", "What to serve with", f"{shape}.", [*sections, method], links)


def _parts(name: str, advice: Advice, traffic: float | None) -> Iterator[Markup]:
    yield element(
        "p", element("span", verdict(advice), class_=f"verdict {'no' if advice.nothing_to_gain else 'yes'}")
    )
    if not advice.nothing_to_gain:
        yield _facts(advice)
    for sentence in reasons(advice, traffic):
        yield element("p", minus(sentence))
    yield element("div", _prices(name, advice), class_="pair one")
    for index, table in enumerate(advice_tables(advice)):
        yield open_table(table, f"{name}-table-{index}")


def _facts(advice: Advice) -> Markup:
    choice, nothing = advice.best.choice, advice.chosen.nothing
    facts = [
        fact(
            "Slots a rank",
            f"{choice.slots_per_rank}",
            f"on {choice.ranks} ranks: {choice.redundant} redundant experts",
        ),
        fact("Held-out imbalance", f"{choice.imbalance:.3f}", f"without a plan {nothing.imbalance:.3f}"),
        fact(
            "A token takes",
            seconds(choice.token_s),
            f"in expert layers, estimated; without a plan {seconds(nothing.token_s)}",
        ),
        fact(
            "Tokens are split",
            "by load" if advice.split == "batch" else "evenly",
            _split_fact(advice),
        ),
        fact("Experts take", size(choice.bytes), f"{percent(choice.share)} of a GPU's memory"),
    ]
    return element("dl", facts, class_="facts")


def _split_fact(advice: Advice) -> str:
    found = advice.splitting
    text = f"imbalance split by load {found.here.imbalance:.3f}, evenly {found.evenly.imbalance:.3f}"
    return text if found.split_s is None else f"{text}; splitting takes {seconds(found.split_s)}"


def _prices(name: str, advice: Advice) -> Markup:
    """What each choice costs a GPU: time above perfect balance, and memory."""
    worth = advice.question.limits.worth
    bars = []
    for each in advice.curves:
        for choice in each.choices:
            time, memory = 100 * (choice.stretch - 1), 100 * worth * choice.share
            parts = ((0.0, time, "loss"), (time, time + memory, "gain"))
            bars.append(Bar(f"{choice.ranks} x {choice.slots_per_rank}", parts, f"{time + memory:.0f}%"))
    text = "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    caption = (
        element("span", class_="swap loss c1"),
        "time in expert layers above perfect balance ",
        element("span", class_="swap gain c0"),
        "memory that experts take; ranks x slots",
    )
    title = "What each choice costs a GPU"
    return figure(f"{name}-price", title, caption, bar_chart(f"{name}-price", title, text, bars, "%"))
