"""Charts of the HTML page, as inline SVG that takes its colours from the page's style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import axes
from .looks import Look
from .markup import Markup, element

FloatArray = npt.NDArray[np.float64]

MAX_POINTS = 600


@dataclass(frozen=True)
class Line:
    """A series of a chart; ``key`` is the class that hides it."""

    key: str
    label: str
    look: Look
    x: FloatArray
    y: FloatArray


def mark(look: Look) -> Markup:
    """A symbol of the scatter chart or the legend."""
    path = element("path", d=look.mark.path)
    return element("svg", path, class_=f"mark {look.classes}", viewBox="0 0 20 20", aria_hidden="true")


def key(look: Look) -> Markup:
    """The line and the mark of a series, for a legend."""
    line = element("path", d="M0 10H40", class_=f"line {look.classes}")
    box = element("svg", line, viewBox="0 0 40 20", preserveAspectRatio="none")
    return element("span", box, mark(look), class_="key", aria_hidden="true")


def line_chart(
    name: str, title: str, text: str, lines: Sequence[Line], x_title: str, y_title: str, low: float
) -> Markup:
    """Lines over time, from ``low`` upwards."""
    high = _top([line.y for line in lines], low)
    start, end = float(lines[0].x[0]), float(lines[0].x[-1])
    y_ticks, x_ticks = axes.ticks(low, high), axes.ticks(start, end, 6)
    span = (end - start) or 1.0
    drawn = []
    for line in lines:
        x, y = _thin(line.x, line.y)
        path = _path((x - start) / span, (y - low) / (high - low))
        drawn.append(
            element(
                "path",
                element("title", line.label),
                d=path,
                class_=f"line {line.key} {line.look.classes}",
                fill="none",
            )
        )
    body = [*axes.grid(y_ticks, low, high), *drawn]
    return axes.plot(
        axes.image(name, title, text, body),
        [
            ((value - low) / (high - low), text)
            for value, text in zip(y_ticks, axes.even(y_ticks), strict=True)
        ],
        [((value - start) / span, axes.short(value)) for value in x_ticks],
        x_title,
        y_title,
    )


def scatter_chart(
    name: str, title: str, text: str, lines: Sequence[Line], x_title: str, y_title: str, low: float
) -> Markup:
    """One mark for each line, at the last of its ``x`` and ``y``."""
    high = _top([line.y for line in lines], low)
    right = max(float(line.x[-1]) for line in lines) * 1.08 or 1.0
    y_ticks, x_ticks = axes.ticks(low, high), axes.ticks(0.0, right, 4)
    body = axes.grid(y_ticks, low, high)
    marks = [
        element(
            "div",
            mark(line.look),
            title=f"{line.label}: {line.y[-1]:.3f}, {line.x[-1]:,.0f} moves",
            class_=f"at {line.key}",
            style=f"left:{axes.percent(float(line.x[-1]) / right)};"
            f"bottom:{axes.percent((float(line.y[-1]) - low) / (high - low))}",
        )
        for line in lines
        if np.isfinite(line.y[-1])
    ]
    return axes.plot(
        axes.image(name, title, text, body),
        [
            ((value - low) / (high - low), text)
            for value, text in zip(y_ticks, axes.even(y_ticks), strict=True)
        ],
        [(value / right, axes.short(value)) for value in x_ticks],
        x_title,
        y_title,
        over=marks,
    )


@dataclass(frozen=True)
class Bar:
    """A row of `bar_chart`: ``parts`` are (from, to, class)."""

    label: str
    parts: tuple[tuple[float, float, str], ...]
    text: str


def bar_chart(
    name: str, title: str, text: str, bars: Sequence[Bar], x_title: str, rule: float | None = None
) -> Markup:
    """Horizontal bars with a text each; ``rule`` draws a dashed line across them."""
    ends = [value for bar in bars for part in bar.parts for value in part[:2]] + [rule or 0.0, 0.0]
    low, high = min(ends), max(ends)
    margin = 0.02 * (high - low)
    low, high = low - (margin if low < 0 else 0.0), high + margin or 1.0
    span = high - low
    number = len(bars)
    body = [
        element(
            "path",
            d=f"M{axes.at((value - low) / span)} 0V{axes.SIZE}",
            class_="zero" if value == 0 else "grid",
        )
        for value in axes.ticks(low, high, 5)
    ]
    thick = axes.SIZE / number
    for index, bar in enumerate(bars):
        for start, end, look in bar.parts:
            left, right = sorted(((start - low) / span, (end - low) / span))
            where = {"x": axes.at(left), "width": axes.at(right - left)}
            box = {"y": axes.at((index + 0.2) / number), "height": f"{0.6 * thick:.1f}"}
            body.append(
                element("rect", element("title", f"{bar.label}: {bar.text}"), class_=look, **where, **box)
            )
    if rule is not None:
        body.append(element("path", d=f"M{axes.at((rule - low) / span)} 0V{axes.SIZE}", class_="rule"))
    middle = [1 - (index + 0.5) / number for index in range(number)]
    texts = [
        element("span", bar.text, style=f"bottom:{axes.percent(at)}")
        for bar, at in zip(bars, middle, strict=True)
    ]
    return axes.plot(
        axes.image(name, title, text, body),
        [(at, bar.label) for bar, at in zip(bars, middle, strict=True)],
        [((value - low) / span, axes.short(value)) for value in axes.ticks(low, high, 5)],
        x_title,
        "",
        height=26 * number + 10,
        kind="bars",
        right=texts,
        label_rem=0.8 + 0.48 * max(len(bar.label) for bar in bars),
    )


def _top(values: Sequence[FloatArray], low: float) -> float:
    finite = np.concatenate([value[np.isfinite(value)] for value in values] or [np.array([low])])
    largest = float(finite.max()) if finite.size else low
    return low + max(1.06 * (largest - low), 0.05)


def _thin(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Means of neighbours if there are more points than pixels."""
    if len(x) <= MAX_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MAX_POINTS + 1).astype(int)[:-1]
    sizes = np.diff([*edges, len(x)])
    return np.add.reduceat(x, edges) / sizes, np.add.reduceat(y, edges) / sizes


def _path(x: FloatArray, y: FloatArray) -> str:
    """SVG path through points in [0, 1], ``y`` upwards; broken where ``y`` is not a number."""
    steps, pen = [], "M"
    for across, up in zip(x, y, strict=True):
        if not np.isfinite(up):
            pen = "M"
            continue
        steps.append(f"{pen}{axes.at(across)} {axes.at(1 - up)}")
        pen = "L"
    return "".join(steps)
