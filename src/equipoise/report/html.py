"""A replay as one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from .. import __version__
from ..formats.output import write_file
from ..replay.result import POLICY, ROLES, ReplayResult
from . import words
from .blocks import figure, meanings, open_table
from .charts import Bar, bar_chart
from .markup import Markup, element
from .page import framed, section
from .tables import forecast_table
from .topology_section import topology_section
from .units import of_unit, topology_name

MEANINGS = {
    "imbalance": "tokens of a layer's busiest rank over the mean of its ranks. All ranks wait for the busiest: "
    "1.25 means that a layer takes a quarter longer than in perfect balance",
    "held-out": "scored on windows that come after the ones a plan was made from; in-sample is the score on "
    "those, and promises too much",
    "mean, 95 %": "mean and 95th percentile of the imbalance over all scored windows and layers",
    "worst layer": "largest imbalance of a layer, averaged over windows",
    "mean of ratios": "balancedness as SGLang prints it: mean of 1 / imbalance",
    "ratio of sums": "balancedness as vLLM prints it: sum of mean rank loads over sum of largest, over layers",
    "moved": "experts that ranks must fetch for one re-plan, as a share of all slots",
    "activated experts": "slots of a rank that a batch gives a token, whose weights it reads: in decode its time",
    "ranks, nodes a token": "how many serve it, mean over layers and windows",
    "pairs on one rank, node": "share of the pairs of a token's experts that live there",
    "noise floor": "the error of a forecast that knew the true shares, since tokens are a random sample of them",
}

INTERRUPTED = "The replay was interrupted: this page holds the intervals that were scored in full."


def save_html(result: ReplayResult, path: str | Path) -> None:
    """Write the page of a replay; the file appears only when it is whole."""
    write_file(path, replay_page(result).encode(errors="replace"))


def replay_page(result: ReplayResult) -> str:
    """The page as text. The same result gives the same page."""
    settings = result.settings
    topologies = settings.topologies
    sections = [topology_section(result, index, topology) for index, topology in enumerate(topologies)]
    links = [(f"topology-{index}", topology_name(topology)) for index, topology in enumerate(topologies)]
    links += [("forecasts", "Forecasts"), ("method", "How this was made")]
    return framed(
        "Equipoise replay",
        "What re-planning would have brought",
        words.what_was_replayed(settings),
        [*sections, _forecast_section(result), _method_section(result)],
        links,
        "" if result.complete else INTERRUPTED,
        "\n".join(
            f"#lines-{index}:has(#show-{index}-{key}:not(:checked)) .s{key} {{ display: none; }}"
            for index, topology in enumerate(topologies)
            for key in range(len(result.on(topology)))
        ),
    )


def _forecast_section(result: ReplayResult) -> Markup:
    found = result.forecasts
    name, title = "forecast", "Forecast error against the noise floor"
    bars = [
        Bar(one.forecast, ((0.0, 100 * one.mean_error, "bar"),), f"{one.mean_error:.2%}") for one in found
    ]
    floor = found[0].mean_floor if found else None
    text = "; ".join(f"{one.forecast} {one.mean_error:.2%}" for one in found)
    what = of_unit(result.settings.unit)
    caption = f"{what.capitalize()} forecast on the wrong expert, mean over layers and re-plannings."
    if floor is not None:
        text += f"; noise floor {floor:.2%}"
        caption += f" Dashed: {floor:.2%}, what sampling noise alone makes of a perfect forecast."
    plot = bar_chart(name, title, text, bars, f"% of {what}", None if floor is None else 100 * floor)
    return section(
        "forecasts",
        "Could better forecasting help?",
        [element("p", sentence) for sentence in words.forecast_finding(result)],
        element("div", figure(name, title, caption, plot), class_="pair one"),
        open_table(forecast_table(result), "forecast-table"),
    )


def _method_section(result: ReplayResult) -> Markup:
    settings = result.settings
    roles = dict.fromkeys(series.role for series in result.series)
    facts = {
        "loads": settings.source,
        "policies": ", ".join(settings.policies),
        "forecasts": ", ".join(settings.forecasts),
        "reference": f"{settings.reference}, behind all-past and oracle",
        "seed": settings.seed,
    }
    if settings.gate:
        facts["gate"] = f"moves must pay for themselves within {settings.horizon} windows"
    if settings.cost is not None:
        facts["cost model"] = f"{settings.cost.get('name') or 'given figures'}; times are estimates"
        for number, source in enumerate(settings.cost.get("sources") or (), 1):
            facts[f"source {number}"] = source
    facts["Equipoise"] = __version__
    return section(
        "method",
        "How this was made",
        meanings(facts),
        element("h3", "Rows"),
        meanings({role if role != POLICY else "a policy's name": ROLES[role] for role in roles}),
        element("h3", "Words"),
        meanings(MEANINGS),
    )
