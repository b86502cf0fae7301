"""What the live demo shows: a frame for a terminal of any width, and lines for everything else."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from rich.console import Group
from rich.text import Text

from ..metrics import imbalance
from ..report.looks import TERMINAL
from ..report.table import tone
from ..report.terminal import FAIR_LOAD, POOR_LOAD
from .live import Moment

STEPS = "▁▂▃▄▅▆▇█"
TALLEST = 1.4
"""imbalance that fills a character of the strip"""
LABEL = 11
"""characters of what stands before a strip"""
WIDEST = 100
LONGEST_BAR = 48


class View:
    """Draws moments as they come, and remembers what the strips need.

    Parameters
    ----------
    num_ranks : to begin with; those that are lost keep their line
    """

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._served: deque[float] = deque(maxlen=WIDEST)
        self._unmoved: deque[float] = deque(maxlen=WIDEST)
        self._kinds: deque[str] = deque(maxlen=WIDEST)
        self._news = ""

    def frame(self, moment: Moment, width: int) -> Group:
        """A frame of lines that are no wider than ``width``, at least 30."""
        self._served.append(moment.imbalance)
        self._unmoved.append(moment.unmoved)
        self._kinds.append(moment.kind)
        self._news = moment.news or self._news
        worst = int(imbalance(moment.loads).argmax())
        lines = [
            Text.assemble(
                ("text ", "dim"),
                (moment.kind, "bold"),
                f"  pass {moment.number + 1} of {moment.passes}  {moment.state}",
            ),
            Text(),
            Text(f"layer {worst}, the worst now; mean = 1.00", style="dim"),
            *self._bars(moment, worst, width),
            Text(),
            Text("imbalance, mean of all layers", style="dim"),
            self._strip("unmoved", self._unmoved, width),
            self._strip("served", self._served, width),
            self._names(width),
            Text(),
            Text(f"this pass, split evenly {moment.even:.3f}"),
            Text(f"        by its own load {moment.batch:.3f}"),
            Text(f"{moment.moves} slots fetched, {moment.commits} layers committed"),
            verdict(moment),
        ]
        if self._news:
            lines.append(Text(self._news, style="bold yellow"))
        return Group(*lines)

    def _bars(self, moment: Moment, layer: int, width: int) -> list[Text]:
        loads = moment.loads[layer] / (moment.loads[layer].mean() or 1.0)
        longest = min(LONGEST_BAR, width - 14)
        scale = longest / max(2.0, float(loads.max()))
        shown = dict(zip(moment.members, loads.tolist(), strict=True))
        lines = []
        for rank in range(self._num_ranks):
            load = shown.get(rank)
            if load is None:
                lines.append(Text(f"rank {rank}  gone", style="dim"))
                continue
            bar = "█" * max(1, round(load * scale))
            style = TERMINAL[tone(load, FAIR_LOAD, POOR_LOAD)]
            lines.append(Text.assemble(f"rank {rank}  ", (bar, style), f" {load:.2f}"))
        return lines

    def _strip(self, name: str, values: deque[float], width: int) -> Text:
        last = list(values)[-_room(width) :]
        line = Text(name.ljust(LABEL))
        for value in last:
            step = round((min(value, TALLEST) - 1) / (TALLEST - 1) * (len(STEPS) - 1))
            line.append(STEPS[step], style=TERMINAL[tone(value, FAIR_LOAD, POOR_LOAD)])
        return line.append(f" {last[-1]:.3f}")

    def _names(self, width: int) -> Text:
        """The kinds of text, each where it begins under the strips, cut where the next one does."""
        kinds = list(self._kinds)[-_room(width) :]
        starts = [at for at, kind in enumerate(kinds) if not at or kind != kinds[at - 1]]
        names = [
            kinds[start][: end - start - 1].ljust(end - start)
            for start, end in pairwise([*starts, len(kinds)])
        ]
        return Text(" " * LABEL + "".join(names), style="dim")


def _room(width: int) -> int:
    """Passes that a strip has characters for."""
    return max(1, min(width, WIDEST) - LABEL - 6)


def verdict(moment: Moment) -> Text:
    """How many outputs were compared, and how they compare."""
    if moment.differing:
        return Text(
            f"{moment.differing} of {moment.compared} outputs DIFFER from those of one rank", style="bold red"
        )
    return Text(f"{moment.compared} outputs, same bits as on one rank", style=TERMINAL["good"])


def plain_line(moment: Moment) -> str:
    """A moment in a line, for a log."""
    line = (
        f"pass {moment.number + 1:>3}/{moment.passes}  {moment.kind:<8} served {moment.imbalance:.3f} (unmoved "
        f"{moment.unmoved:.3f}, by load {moment.batch:.3f})  {moment.moves} fetched"
    )
    return f"{line}\n{moment.news}" if moment.news else line
