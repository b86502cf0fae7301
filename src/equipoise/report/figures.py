"""A replay as a picture: PNG, SVG or PDF, by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ArgumentError, MissingDependencyError
from ..formats.base import atomic_output
from ..replay.result import CEILING, FLOOR, GATED, ONCE, PAST, POLICY, ReplayResult, Series
from ..topology import Topology
from .tables import topology_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")

# Distinct for the colour-blind: Okabe and Ito, "Color universal design", 2008.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#777777"
STYLES = {FLOOR: ":", PAST: "-.", CEILING: "--", POLICY: "-", GATED: (0, (4, 1)), ONCE: (0, (1, 1))}
MARKERS = {FLOOR: "s", PAST: "^", CEILING: "v", POLICY: "o", GATED: "D", ONCE: "P"}
SHAPES = {
    FLOOR: "do-nothing",
    POLICY: "re-planned every interval",
    GATED: "re-planned when it pays",
    ONCE: "first plan kept",
    PAST: "all-past",
    CEILING: "oracle",
}

_LAYOUT = """
TTM
BAF
"""


def check_figure(path: str | Path) -> None:
    """Raise before a long computation what `save_figure` would raise after it.

    Raises
    ------
    ArgumentError
        for another suffix than .png, .svg or .pdf
    MissingDependencyError
        without matplotlib
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ArgumentError(f"a figure is written as {', '.join(SUFFIXES)}, got {str(path)!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "figures need matplotlib: pip install 'equipoise[plot]', or leave --figure out"
        ) from None


def save_figure(result: ReplayResult, path: str | Path) -> None:
    """Write the picture of a replay; the file appears only when it is whole."""
    check_figure(path)
    import matplotlib

    kind = Path(path).suffix.lower()[1:]
    # A fixed salt and no date: the same result gives the same file.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "equipoise", "font.size": 9}
    stamp = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}[kind]
    with matplotlib.rc_context(style), atomic_output(Path(path)) as temporary:
        replay_figure(result).savefig(temporary, format=kind, dpi=150, metadata={stamp: None})


def replay_figure(result: ReplayResult) -> Figure:
    """The picture. For each topology: imbalance over time, balance against moves, rank loads before and after."""
    from matplotlib.figure import Figure

    topologies = result.settings.topologies
    figure = Figure(figsize=(13, 6.5 * len(topologies)), layout="constrained")
    parts = np.atleast_1d(np.asarray(figure.subfigures(len(topologies), 1)))
    for part, topology in zip(parts, topologies, strict=True):
        axes = part.subplot_mosaic(_LAYOUT, width_ratios=[1, 1, 1])
        part.suptitle(topology_name(topology), fontweight="bold")
        best = min(
            (s for s in result.on(topology) if s.role == POLICY), key=lambda s: s.summary.mean_imbalance
        )
        top = _hottest(result.floor(topology))
        over_time(axes["T"], result, topology)
        balance_against_moves(axes["M"], result, topology)
        heat_map(axes["B"], result.floor(topology), result.settings.layers, top)
        image = heat_map(axes["A"], best, result.settings.layers, top)
        part.colorbar(image, ax=[axes["B"], axes["A"]], label="rank load over mean", shrink=0.9)
        forecast_errors(axes["F"], result)
    return figure


def _colour(result: ReplayResult, series: Series) -> str:
    if series.role in (FLOOR, PAST, CEILING):
        return GREY
    pairs = [(p, f) for p in result.settings.policies for f in result.settings.forecasts]
    return COLOURS[pairs.index((series.policy, series.forecast)) % len(COLOURS)]


def over_time(axes: Axes, result: ReplayResult, topology: Topology) -> None:
    """Held-out imbalance of every scored window, mean over layers."""
    for series in result.on(topology):
        axes.plot(
            series.windows,
            series.mean_imbalance,
            color=_colour(result, series),
            linestyle=STYLES[series.role],
            linewidth=1.2,
            label=series.label,
        )
    axes.set(xlabel="window", ylabel="imbalance (max / mean)", title="Held-out imbalance over time")
    axes.set_ylim(bottom=1.0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=2)


def balance_against_moves(axes: Axes, result: ReplayResult, topology: Topology) -> None:
    """Mean held-out imbalance against the fetches of the whole replay."""
    for series in result.on(topology):
        axes.plot(
            series.summary.moves,
            series.summary.mean_imbalance,
            linestyle="none",
            marker=MARKERS[series.role],
            markersize=7,
            color=_colour(result, series),
        )
    # Colours are those of the lines over time; the legend says what the shapes mean.
    for role in dict.fromkeys(series.role for series in result.on(topology)):
        axes.plot([], [], linestyle="none", marker=MARKERS[role], color=GREY, label=SHAPES[role])
    axes.set(xlabel="moves in all", ylabel="mean held-out imbalance", title="Balance against moves")
    axes.set_ylim(bottom=1.0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _relative(series: Series) -> Any:
    mean = series.last_rank_loads.mean(axis=1, keepdims=True)
    return series.last_rank_loads / np.where(mean > 0, mean, 1.0)


def _hottest(series: Series) -> float:
    return max(2.0, float(_relative(series).max()))


def heat_map(axes: Axes, series: Series, layers: tuple[int, ...], top: float) -> Any:
    """Load of every rank over the last interval, as a multiple of its layer's mean: 0, 1 (white), ``top``."""
    from matplotlib.colors import TwoSlopeNorm

    image = axes.imshow(
        _relative(series),
        aspect="auto",
        cmap="RdBu_r",
        norm=TwoSlopeNorm(vcenter=1.0, vmin=0.0, vmax=top),
        interpolation="nearest",
    )
    ticks = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), 6)).astype(int))
    axes.set_yticks(ticks, [str(layers[index]) for index in ticks])
    axes.set(xlabel="rank", ylabel="layer", title=f"Last interval, {series.label}")
    return image


def forecast_errors(axes: Axes, result: ReplayResult) -> None:
    """Mean error of each forecast, with the sampling-noise floor."""
    names = [found.forecast for found in result.forecasts]
    axes.barh(names, [100 * found.mean_error for found in result.forecasts], color=COLOURS[0])
    floor = result.forecasts[0].mean_floor
    if floor is not None:
        axes.axvline(100 * floor, color=COLOURS[1], linestyle="--", label="sampling noise alone")
        axes.legend(fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="tokens forecast on the wrong expert, %", title="Forecast error")
