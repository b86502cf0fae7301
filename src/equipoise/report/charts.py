"""Charts of the HTML page, as inline SVG that takes its colours from the page's style.

Geometry is drawn in a viewBox that stretches with the page, with strokes that do not stretch; text lies around
it as HTML, so that it keeps its size on a phone. Colours are classes (``c0`` to ``c5`` for policies, ``h0`` to
``h10`` for heat), which the style sheet sets for light, dark and paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .markup import Markup, element

FloatArray = npt.NDArray[np.float64]

HEAT_BREAKS = (0.5, 0.7, 0.85, 0.95, 1.05, 1.15, 1.3, 1.5, 2.0, 3.0)
"""Rank load over mean where one colour of a heat map ends and the next begins: the same in every report."""

SIZE = 1000
MAX_POINTS = 600

MARKS = {
    "circle": "M10 4a6 6 0 1 0 .01 0z",
    "square": "M4.5 4.5h11v11h-11z",
    "diamond": "M10 3l7 7-7 7-7-7z",
    "plus": "M8 3h4v5h5v4h-5v5H8v-5H3V8h5z",
    "up": "M10 3.5l7 12.5H3z",
    "down": "M10 16.5l7-12.5H3z",
}


@dataclass(frozen=True)
class Line:
    """A series of a chart. ``look`` holds the classes of its colour and dashes, ``key`` the one that hides it."""

    key: str
    label: str
    look: str
    mark: str
    x: FloatArray
    y: FloatArray


def ticks(low: float, high: float, number: int = 5) -> list[float]:
    """About ``number`` round values from ``low`` to ``high``."""
    span = high - low
    if not span > 0:
        return [low]
    step = 10.0 ** np.floor(np.log10(span / number))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 1.3 * number)
    first = np.ceil(low / step - 1e-9)
    return [float(value * step) + 0.0 for value in np.arange(first, high / step + 1e-9)]


def short(value: float) -> str:
    """A tick's text: 1.25, 40, 250k, 1.5M."""
    if value < 0:
        return f"−{short(-value)}"
    for scale, unit in ((1e6, "M"), (1e3, "k")):
        if value >= 10 * scale or (value >= scale and value % (scale / 10) == 0):
            return f"{value / scale:.3g}{unit}"
    return f"{value:.6g}"


def even(values: Sequence[float]) -> list[str]:
    """Texts of ticks with as many decimals as the most exact needs."""
    decimals = max((len(f"{value:.4g}".partition(".")[2]) for value in values), default=0)
    return [f"{value:.{decimals}f}" for value in values]


def mark(shape: str, look: str, **attributes: object) -> Markup:
    """A symbol of the scatter chart or the legend."""
    path = element("path", d=MARKS[shape])
    return element("svg", path, class_=f"mark {look}", viewBox="0 0 20 20", aria_hidden="true", **attributes)


def line_chart(
    name: str, title: str, text: str, lines: Sequence[Line], x_title: str, y_title: str, low: float
) -> Markup:
    """Lines over time, from ``low`` upwards."""
    high = _top([line.y for line in lines], low)
    start, end = float(lines[0].x[0]), float(lines[0].x[-1])
    y_ticks, x_ticks = ticks(low, high), ticks(start, end, 6)
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
                class_=f"line {line.key} {line.look}",
                fill="none",
            )
        )
    body = [*_grid(y_ticks, low, high), *drawn]
    return _plot(
        _image(name, title, text, body),
        [((value - low) / (high - low), text) for value, text in zip(y_ticks, even(y_ticks), strict=True)],
        [((value - start) / span, short(value)) for value in x_ticks],
        x_title,
        y_title,
    )


def scatter_chart(
    name: str, title: str, text: str, lines: Sequence[Line], x_title: str, y_title: str, low: float
) -> Markup:
    """One mark for each line, at the last of its ``x`` and ``y``."""
    high = _top([line.y for line in lines], low)
    right = max(float(line.x[-1]) for line in lines) * 1.08 or 1.0
    y_ticks, x_ticks = ticks(low, high), ticks(0.0, right, 4)
    body = _grid(y_ticks, low, high)
    marks = [
        element(
            "div",
            mark(line.mark, line.look),
            title=f"{line.label}: {line.y[-1]:.3f}, {line.x[-1]:,.0f} moves",
            class_=f"at {line.key}",
            style=f"left:{_percent(float(line.x[-1]) / right)};"
            f"bottom:{_percent((float(line.y[-1]) - low) / (high - low))}",
        )
        for line in lines
        if np.isfinite(line.y[-1])
    ]
    return _plot(
        _image(name, title, text, body),
        [((value - low) / (high - low), text) for value, text in zip(y_ticks, even(y_ticks), strict=True)],
        [(value / right, short(value)) for value in x_ticks],
        x_title,
        y_title,
        over=marks,
    )


def heat_map(
    name: str, title: str, text: str, relative: FloatArray, layers: Sequence[int], ranks_per_node: int
) -> Markup:
    """Rank loads ``[L, P]`` as multiples of their layer's mean, one colour a cell."""
    num_layers, num_ranks = relative.shape
    levels = np.digitize(relative, HEAT_BREAKS)
    body = [element("rect", width=num_ranks, height=num_layers, class_="heat h4")]
    for level in np.unique(levels):
        if level != 4:
            body.append(element("path", d=_cells(levels == level), class_=f"heat h{level}"))
    for edge in range(ranks_per_node, num_ranks, ranks_per_node):
        body.append(element("path", d=f"M{edge} 0V{num_layers}", class_="edge"))
    for row, layer in enumerate(layers):
        top = int(np.argmax(relative[row]))
        words = f"layer {layer}: busiest is rank {top} with {relative[row, top]:.2f} times the mean"
        body.append(
            element("rect", element("title", words), y=row, width=num_ranks, height=1, class_="hover")
        )
    rows, columns = _every(num_layers, 7, (5, 2)), _every(num_ranks, 8, (2,))
    return _plot(
        _image(name, title, text, body, box=(num_ranks, num_layers)),
        [(1 - (row + 0.5) / num_layers, str(layers[row])) for row in rows],
        [((column + 0.5) / num_ranks, str(column)) for column in columns],
        "rank",
        "layer",
        height=min(max(7 * num_layers, 90), 420),
    )


def heat_legend() -> Markup:
    """The colours of `heat_map` with the loads at which they change."""
    steps = [
        element(
            "li",
            element("span", class_=f"swatch h{level}"),
            element("span", text, class_="from"),
            class_="step",
        )
        for level, text in enumerate(["", *(f"{value:g}" for value in HEAT_BREAKS)])
    ]
    return element(
        "div",
        element("span", "rank load / mean of its layer"),
        element("ul", steps),
        class_="scale",
        aria_hidden="true",
    )


@dataclass(frozen=True)
class Bar:
    """A row of `bar_chart`: ``parts`` are (from, to, look)."""

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
        element("path", d=f"M{_at((value - low) / span)} 0V{SIZE}", class_="zero" if value == 0 else "grid")
        for value in ticks(low, high, 5)
    ]
    thick = SIZE / number
    for index, bar in enumerate(bars):
        for start, end, look in bar.parts:
            left, right = sorted(((start - low) / span, (end - low) / span))
            where = {"x": _at(left), "width": _at(right - left)}
            box = {"y": _at((index + 0.2) / number), "height": f"{0.6 * thick:.1f}"}
            body.append(
                element("rect", element("title", f"{bar.label}: {bar.text}"), class_=look, **where, **box)
            )
    if rule is not None:
        body.append(element("path", d=f"M{_at((rule - low) / span)} 0V{SIZE}", class_="rule"))
    middle = [1 - (index + 0.5) / number for index in range(number)]
    texts = [
        element("span", bar.text, style=f"bottom:{_percent(at)}")
        for bar, at in zip(bars, middle, strict=True)
    ]
    return _plot(
        _image(name, title, text, body),
        [(at, bar.label) for bar, at in zip(bars, middle, strict=True)],
        [((value - low) / span, short(value)) for value in ticks(low, high, 5)],
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


def _at(share: float) -> str:
    return f"{SIZE * share:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _path(x: FloatArray, y: FloatArray) -> str:
    """SVG path through points in [0, 1], ``y`` upwards; broken where ``y`` is not a number."""
    steps, pen = [], "M"
    for across, up in zip(x, y, strict=True):
        if not np.isfinite(up):
            pen = "M"
            continue
        steps.append(f"{pen}{_at(across)} {_at(1 - up)}")
        pen = "L"
    return "".join(steps)


def _cells(chosen: npt.NDArray[np.bool_]) -> str:
    """SVG path around the chosen cells of a matrix, neighbours in a row together."""
    padded = np.pad(chosen.astype(np.int8), ((0, 0), (1, 1)))
    change = np.diff(padded, axis=1)
    starts, ends = np.argwhere(change == 1), np.argwhere(change == -1)
    return "".join(
        f"M{start} {row}h{end - start}v1h-{end - start}z"
        for (row, start), (_, end) in zip(starts.tolist(), ends.tolist(), strict=True)
    )


def _every(count: int, number: int, factors: tuple[int, ...]) -> range:
    """At most ``number`` indices below ``count``, in a step that is a product of ``factors`` taken in turn."""
    step, turn = 1, 0
    while count / step > number:
        step, turn = step * factors[turn % len(factors)], turn + 1
    return range(0, count, step)


def _grid(values: Sequence[float], low: float, high: float) -> list[Markup]:
    return [
        element("path", d=f"M0 {_at(1 - (value - low) / (high - low))}H{SIZE}", class_="grid")
        for value in values
    ]


def _image(
    name: str, title: str, text: str, body: Sequence[Markup], box: tuple[int, int] = (SIZE, SIZE)
) -> Markup:
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", text, id=f"{name}-desc"),
        body,
        viewBox=f"0 0 {box[0]} {box[1]}",
        preserveAspectRatio="none",
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-desc",
    )


def _plot(
    image: Markup,
    y_labels: Sequence[tuple[float, str]],
    x_labels: Sequence[tuple[float, str]],
    x_title: str,
    y_title: str,
    *,
    height: int = 300,
    kind: str = "",
    over: Sequence[Markup] = (),
    right: Sequence[Markup] = (),
    label_rem: float | None = None,
) -> Markup:
    """The image with its labels around it."""
    hidden = {"aria_hidden": "true"}
    return element(
        "div",
        element("div", y_title, class_="y-title", **hidden) if y_title else None,
        element(
            "div",
            [element("span", text, style=f"bottom:{_percent(at)}", title=text) for at, text in y_labels],
            class_="y-axis",
            **hidden,
        ),
        element("div", image, over, class_="area", style=f"--height:{height}px"),
        element("div", right, class_="right", **hidden) if right else None,
        element(
            "div",
            [element("span", text, style=f"left:{_percent(at)}") for at, text in x_labels],
            class_="x-axis",
            **hidden,
        ),
        element("div", x_title, class_="x-title", **hidden),
        class_=f"plot {kind}".strip(),
        style=None if label_rem is None else f"--labels:{label_rem:.1f}rem",
    )
