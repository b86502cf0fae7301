"""Heat maps of rank loads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from . import axes
from .looks import HEAT_BREAKS
from .markup import Markup, element

FloatArray = npt.NDArray[np.float64]
EVEN = int(np.digitize(1.0, HEAT_BREAKS))
"""The colour of most cells, which is drawn below all others at once."""


def heat_map(
    name: str, title: str, text: str, relative: FloatArray, layers: Sequence[int], nodes: Sequence[int]
) -> Markup:
    """Rank loads ``[L, P]`` as multiples of their layer's mean, one colour a cell; ``nodes [P]`` of ranks."""
    num_layers, num_ranks = relative.shape
    levels = np.digitize(relative, HEAT_BREAKS)
    body = [element("rect", width=num_ranks, height=num_layers, class_=f"heat h{EVEN}")]
    for level in np.unique(levels):
        if level != EVEN:
            body.append(element("path", d=_cells(levels == level), class_=f"heat h{level}"))
    for edge in (rank for rank in range(1, num_ranks) if nodes[rank] != nodes[rank - 1]):
        body.append(element("path", d=f"M{edge} 0V{num_layers}", class_="edge"))
    for row, layer in enumerate(layers):
        top = int(np.argmax(relative[row]))
        words = f"layer {layer}: busiest is rank {top} with {relative[row, top]:.2f} times the mean"
        body.append(
            element("rect", element("title", words), y=row, width=num_ranks, height=1, class_="hover")
        )
    rows, columns = _every(num_layers, 7, (5, 2)), _every(num_ranks, 8, (2,))
    return axes.plot(
        axes.image(name, title, text, body, box=(num_ranks, num_layers)),
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
