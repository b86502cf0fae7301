"""A replay as a picture: PNG, SVG or PDF, by matplotlib."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, MissingDependencyError
from ..formats.output import write_file
from ..replay.result import ReplayResult
from ..topology import Topology
from .looks import COLOURS, HEAT, HEAT_BREAKS, LIGHT, look_of
from .standing import relative_loads, standing
from .units import of_unit, topology_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]

SUFFIXES = (".png", ".svg", ".pdf")

INK, SOFT, LINE = "#16191f", "#565e6b", "#e6e9ed"

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": LINE,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "equipoise",
}


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
    # No date: the same result gives the same file.
    stamp = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}[kind]
    picture = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        replay_figure(result).savefig(picture, format=kind, dpi=150, metadata={stamp: None})
    write_file(path, picture.getvalue())


def replay_figure(result: ReplayResult) -> Figure:
    """The picture. For each topology: imbalance over time, balance against moves, rank loads before and after."""
    from matplotlib.figure import Figure

    topologies = result.settings.topologies
    figure = Figure(figsize=(12.5, 7.4 * len(topologies)), layout="constrained")
    parts = np.atleast_1d(np.asarray(figure.subfigures(len(topologies), 1, hspace=0.04)))
    for part, topology in zip(parts, topologies, strict=True):
        top, bottom = part.subfigures(2, 1, hspace=0.04, height_ratios=(1.15, 1))
        time, moves = top.subplots(1, 2, width_ratios=(1.5, 1))
        before, after, error = bottom.subplots(1, 3, width_ratios=(1, 1.16, 0.95))
        title = textwrap.shorten(f"{topology_name(topology)}: {result.settings.source}", 130)
        top.suptitle(title, x=0.008, ha="left", fontsize=11)
        over_time(time, result, topology)
        balance_against_moves(moves, result, topology)
        keys = _keys(result, topology)
        top.legend(handles=keys, loc="outside lower left", ncols=min(-(-len(keys) // 2), 6), fontsize=8.5)
        rank_loads_before_and_after(before, after, result, topology)
        forecast_errors(error, result)
    return figure


def _keys(result: ReplayResult, topology: Topology) -> list[Any]:
    """One legend for lines and marks."""
    from matplotlib.lines import Line2D

    looks = [(series.label, look_of(series, result.settings)) for series in result.on(topology)]
    return [Line2D([], [], **look.plot, marker=look.mark.marker, label=label) for label, look in looks]


def over_time(axes: Axes, result: ReplayResult, topology: Topology) -> None:
    """Held-out imbalance of every scored window, mean over layers."""
    for series in result.on(topology):
        axes.plot(
            series.windows,
            series.mean_imbalance,
            **look_of(series, result.settings).plot,
            linewidth=1.3,
            label=series.label,
        )
    axes.set(xlabel="window", ylabel="busiest rank / mean", title="Held-out imbalance over time")
    axes.set_ylim(bottom=1.0)
    axes.margins(x=0.01)
    axes.grid(axis="y")


def balance_against_moves(axes: Axes, result: ReplayResult, topology: Topology) -> None:
    """Mean held-out imbalance against the fetches of the whole replay."""
    from matplotlib.ticker import EngFormatter

    for series in result.on(topology):
        look = look_of(series, result.settings)
        axes.plot(
            series.summary.moves,
            series.summary.mean_imbalance,
            linestyle="none",
            marker=look.mark.marker,
            markersize=8,
            markeredgecolor="white",
            markeredgewidth=0.8,
            alpha=0.9,
            clip_on=False,
            color=look.plot["color"],
        )
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(xlabel="experts fetched in all", ylabel="busiest rank / mean", title="Balance against moves")
    axes.set_ylim(bottom=1.0)
    axes.set_xlim(left=0)
    axes.grid()


def rank_loads_before_and_after(before: Axes, after: Axes, result: ReplayResult, topology: Topology) -> None:
    """Heat maps of the floor and of the policy that holds best, with one scale."""
    stand = standing(result, topology)
    pairs = ((before, "before", stand.floor), (after, "after", stand.best))
    for axes, when, series in pairs:
        image = heat_map(axes, relative_loads(series), result.settings.layers)
        axes.set_title(f"Rank loads {when}: {series.label}")
    after.set_ylabel("")
    bar = before.figure.colorbar(image, ax=after, label="rank load / mean of its layer", pad=0.02)
    bar.ax.tick_params(length=0, labelsize=8)
    bar.set_ticks(HEAT_BREAKS, labels=[f"{value:g}" for value in HEAT_BREAKS])
    bar.outline.set_visible(False)


def heat_map(axes: Axes, relative: FloatArray, layers: tuple[int, ...]) -> Any:
    """Rank loads as multiples of their layer's mean ``[L, P]``, in the steps of the HTML page."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    edges = (0.0, *HEAT_BREAKS, HEAT_BREAKS[-1] + 1.0)
    image = axes.imshow(
        np.minimum(relative, edges[-1] - 1e-9),
        aspect="auto",
        cmap=ListedColormap([colour[LIGHT] for colour in HEAT]),
        norm=BoundaryNorm(edges, len(HEAT)),
        interpolation="nearest",
    )
    ticks = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), 6)).astype(int))
    axes.set_yticks(ticks, [str(layers[index]) for index in ticks])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="rank", ylabel="layer")
    return image


def forecast_errors(axes: Axes, result: ReplayResult) -> None:
    """Mean error of each forecast, with the sampling-noise floor."""
    names = [found.forecast for found in result.forecasts]
    errors = [100 * found.mean_error for found in result.forecasts]
    bars = axes.barh(names, errors, height=0.55, color=COLOURS[0][LIGHT])
    axes.bar_label(bars, fmt="%.2f %%", padding=4, fontsize=8.5, color=SOFT)
    axes.margins(x=0.2)
    floor = result.forecasts[0].mean_floor
    if floor is not None:
        axes.axvline(100 * floor, color=COLOURS[1][LIGHT], linestyle="--", linewidth=1.5)
        where = ("sampling noise alone", (100 * floor, 0), (4, 5))
        axes.annotate(
            where[0],
            where[1],
            where[2],
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8.5,
            color=COLOURS[1][LIGHT],
        )
        axes.set_ylim(-0.5, len(names) - 0.2)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.set(
        xlabel=f"% of {of_unit(result.settings.unit)} forecast on the wrong expert", title="Forecast error"
    )
