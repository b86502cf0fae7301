"""How a series looks: one table of colours, dashes and marks for the figure, the page and the terminal.

A policy has its colour, a role its dash and its mark; references are grey. Colours are dark enough for lines on
white (bright enough on black) and told apart by the colour-blind with the help of dashes and marks; heat goes one
way in lightness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..replay.result import CEILING, FLOOR, GATED, ONCE, PAST, POLICY, REFERENCES, ReplaySettings, Series
from .table import BEST, FAIR, GOOD, POOR, REFERENCE, TOTAL

LIGHT, DARK = 0, 1

COLOURS = (
    ("#0069a8", "#5fb2f2"),
    ("#c24e00", "#ff8f45"),
    ("#007a59", "#35c795"),
    ("#a83f86", "#e58fc8"),
    ("#806300", "#e0bf3f"),
    ("#5457c8", "#a3a5ff"),
)
"""On white and on black, in the order in which policies get them."""
GREY = ("#6a7280", "#98a1af")

HEAT = (
    ("#fdf8ec", "#171326"),
    ("#fbefd3", "#22173a"),
    ("#f9e3b4", "#321b4e"),
    ("#f7d391", "#461f5e"),
    ("#f4bf74", "#5e2566"),
    ("#ee9f5c", "#7f2f69"),
    ("#e07c50", "#a33e66"),
    ("#c6574f", "#c8555b"),
    ("#9d3a56", "#e57a4c"),
    ("#6a2452", "#f7ac4f"),
    ("#361340", "#fde79a"),
)
"""Colours of rank loads, from idle to busiest."""
HEAT_BREAKS = (0.5, 0.7, 0.85, 0.95, 1.05, 1.15, 1.3, 1.5, 2.0, 3.0)
"""Rank load over mean where one colour of `HEAT` ends and the next begins: the same in every report."""

LINE_WIDTH = 1.8
"""Pixels of a line on the page, for which dashes are given."""


@dataclass(frozen=True)
class Dash:
    """Pixels on and off, in turn, of a line as wide as ``LINE_WIDTH``; none for a line without gaps."""

    name: str
    lengths: tuple[float, ...] = ()
    round: bool = False


@dataclass(frozen=True)
class Mark:
    """A symbol: a path in a box of 20 by 20 for the page, and the marker of matplotlib that looks like it."""

    path: str
    marker: str


SOLID = Dash("solid")
DOTS = Dash("dots", (1.5, 3.5), round=True)
DASH = Dash("dash", (8, 4))
DASHDOT = Dash("dashdot", (9, 3, 2, 3))
FINE = Dash("fine", (3, 2))

CIRCLE = Mark("M10 4a6 6 0 1 0 .01 0z", "o")
SQUARE = Mark("M4.5 4.5h11v11h-11z", "s")
DIAMOND = Mark("M10 3l7 7-7 7-7-7z", "D")
PLUS = Mark("M8 3h4v5h5v4h-5v5H8v-5H3V8h5z", "P")
UP = Mark("M10 3.5l7 12.5H3z", "^")
DOWN = Mark("M10 16.5l7-12.5H3z", "v")

ROLE_LOOKS = {
    FLOOR: (DOTS, SQUARE),
    PAST: (DASHDOT, UP),
    CEILING: (DASH, DOWN),
    POLICY: (SOLID, CIRCLE),
    GATED: (DASH, DIAMOND),
    ONCE: (FINE, PLUS),
}
"""Dash and mark of every role."""

TERMINAL = {REFERENCE: "dim", BEST: "bold", TOTAL: "bold", GOOD: "green", FAIR: "yellow", POOR: "red"}
"""Styles of rows and cells in the terminal."""


@dataclass(frozen=True)
class Look:
    """Colour (an index of `COLOURS`, None for grey), dash and mark of a series."""

    colour: int | None
    dash: Dash
    mark: Mark

    @property
    def classes(self) -> str:
        """For an element of the page, whose style sheet holds `style_rules`."""
        colour = f"c{'x' if self.colour is None else self.colour}"
        return f"{colour} {self.dash.name}" if self.dash.lengths else colour

    @property
    def plot(self) -> dict[str, Any]:
        """Colour and dash of a line, as matplotlib takes them."""
        lengths = tuple(length / LINE_WIDTH for length in self.dash.lengths)
        return {
            "color": (GREY if self.colour is None else COLOURS[self.colour])[LIGHT],
            "linestyle": (0, lengths) if lengths else "-",
            "dash_capstyle": "round" if self.dash.round else "butt",
        }


def look_of(series: Series, settings: ReplaySettings) -> Look:
    """The look of a series among those of its replay."""
    dash, mark = ROLE_LOOKS[series.role]
    if series.role in REFERENCES:
        return Look(None, dash, mark)
    pairs = [(policy, forecast) for policy in settings.policies for forecast in settings.forecasts]
    return Look(pairs.index((series.policy, series.forecast)) % len(COLOURS), dash, mark)


def style_variables(theme: int) -> str:
    """The colours of the page as variables, for ``LIGHT`` or ``DARK``."""
    named = {**{f"c{index}": colour for index, colour in enumerate(COLOURS)}, "cx": GREY}
    named.update((f"h{level}", colour) for level, colour in enumerate(HEAT))
    return " ".join(f"--{name}: {colour[theme]};" for name, colour in named.items())


def style_rules() -> str:
    """What the classes of a `Look`, and ``h0`` to ``h10`` of `HEAT`, mean on the page."""
    rules = [f".c{name} {{ --c: var(--c{name}); }}" for name in (*range(len(COLOURS)), "x")]
    rules += [f".h{level} {{ --h: var(--h{level}); }}" for level in range(len(HEAT))]
    for dash in (DOTS, DASH, DASHDOT, FINE):
        cap = " stroke-linecap: round;" if dash.round else ""
        lengths = " ".join(f"{length:g}" for length in dash.lengths)
        rules.append(f".{dash.name} {{ stroke-dasharray: {lengths};{cap} }}")
    return "\n".join(rules)
