"""What every chart of the page stands in: an image that stretches, and its labels around it as HTML.

Geometry is drawn in a viewBox that stretches with the page, with strokes that do not stretch; text lies around
it as HTML, so that it keeps its size on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .markup import Markup, element

SIZE = 1000


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


def at(share: float) -> str:
    """A place in the image, from a share of its width or height."""
    return f"{SIZE * share:.1f}"


def percent(share: float) -> str:
    """A share in the units of a style."""
    return f"{100 * share:.2f}%"


def grid(values: Sequence[float], low: float, high: float) -> list[Markup]:
    """Level lines at values between ``low`` and ``high``."""
    return [
        element("path", d=f"M0 {at(1 - (value - low) / (high - low))}H{SIZE}", class_="grid")
        for value in values
    ]


def image(
    name: str, title: str, text: str, body: Sequence[Markup], box: tuple[int, int] = (SIZE, SIZE)
) -> Markup:
    """An SVG image with a title, and a text for those who cannot see it."""
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


def plot(
    drawn: Markup,
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
    """An image with its labels around it, those with their places as shares of its height or width."""
    hidden = {"aria_hidden": "true"}
    return element(
        "div",
        element("div", y_title, class_="y-title", **hidden) if y_title else None,
        element(
            "div",
            [element("span", text, style=f"bottom:{percent(place)}", title=text) for place, text in y_labels],
            class_="y-axis",
            **hidden,
        ),
        element("div", drawn, over, class_="area", style=f"--height:{height}px"),
        element("div", right, class_="right", **hidden) if right else None,
        element(
            "div",
            [element("span", text, style=f"left:{percent(place)}") for place, text in x_labels],
            class_="x-axis",
            **hidden,
        ),
        element("div", x_title, class_="x-title", **hidden),
        class_=f"plot {kind}".strip(),
        style=None if label_rem is None else f"--labels:{label_rem:.1f}rem",
    )
