"""``equipoise demo --live``: ranks on this machine serve a small model while its experts move."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import typer

from ..errors import EquipoiseError
from . import INTERRUPTED, terminal
from .kernels import announce_compiling

if TYPE_CHECKING:
    from rich.console import Console

    from ..demo.live import LiveDemo, Moment

EVERY = 8
"""passes between two lines where there is no terminal"""
FRAMES_A_SECOND = 8
NEEDED = "PyTorch 2.4 or newer, with torch.distributed"


@dataclass
class _Seen:
    """The moments of a run, and whether it was interrupted."""

    moments: list[Moment] = field(default_factory=list)
    interrupted: bool = False


def run_live(policy: str, seed: int, as_json: bool) -> None:
    """Serve, show and sum up.

    Raises `EquipoiseError` if torch is missing, if too many ranks are lost, or if an output was not that of one rank.
    """
    from ..scoring.process import clean_up_on_sigterm

    with announce_compiling():
        demo = _prepared(policy, seed)
    clean_up_on_sigterm()
    console = terminal.console(highlight=False)
    seen = _Seen()
    with demo, _showing(console, demo, as_json) as show:
        try:
            for moment in demo:
                seen.moments.append(moment)
                show(moment)
        except KeyboardInterrupt:
            seen.interrupted = True
    if seen.moments:
        if as_json:
            print(json.dumps({"live": _as_dict(demo, seen)}))
        else:
            _sum_up(console, seen)
        _check(seen.moments[-1])
    if seen.interrupted:
        raise typer.Exit(INTERRUPTED)


def _prepared(policy: str, seed: int) -> LiveDemo:
    try:
        from torch.nn import RMSNorm  # noqa: F401 - that of the model

        from ..demo.live import LiveDemo
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise EquipoiseError(f"the live demo needs {NEEDED}: pip install 'equipoise[torch]'") from None
    demo = LiveDemo(policy, seed)
    demo.warm()
    return demo


@contextlib.contextmanager
def _showing(console: Console, demo: LiveDemo, as_json: bool) -> Iterator[Callable[[Moment], None]]:
    """What shows a moment: nothing with JSON, a frame that changes on a terminal, a line now and then elsewhere."""
    if as_json:
        yield lambda moment: None
        return
    console.print(opening(demo))
    if console.is_terminal and not console.is_dumb_terminal:
        with _frames(console, demo) as show:
            yield show
    else:
        yield lambda moment: _print_now_and_then(console, moment)


def opening(demo: LiveDemo, processes: bool = True) -> str:
    """What is about to be seen; with the numbers of the processes, which differ from run to run."""
    shape, setup, ids = demo.shape, demo.setup, demo.process_ids
    names = ", ".join(str(ids[rank]) for rank in range(setup.num_ranks))
    return (
        f"LIVE: {setup.num_ranks} gloo ranks on this machine serve a small model that was trained for this\n"
        f"{shape.layers} MoE layers x {shape.experts} experts, {setup.slots_per_rank} slots a rank, text whose kind "
        "changes\n" + f"processes {names}: kill one, and the others go on\n" * processes
    )


@contextlib.contextmanager
def _frames(console: Console, demo: LiveDemo) -> Iterator[Callable[[Moment], None]]:
    from rich.live import Live

    from ..demo.view import View

    view = View(demo.setup.num_ranks)
    with Live(console=console, refresh_per_second=FRAMES_A_SECOND, vertical_overflow="crop") as live:
        live.update("ranks start ...")
        yield lambda moment: live.update(view.frame(moment, console.width))


def _print_now_and_then(console: Console, moment: Moment) -> None:
    from ..demo.view import plain_line

    if moment.number % EVERY == 0 or moment.news or moment.number + 1 == moment.passes:
        console.print(plain_line(moment), soft_wrap=True)


def _sum_up(console: Console, seen: _Seen) -> None:
    passes, planned = len(seen.moments), seen.moments[-1].passes
    console.print()
    if passes < planned:
        console.print(f"ended after {passes} of {planned} passes{', interrupted' * seen.interrupted}")
    for line in summary(seen.moments):
        console.print(line)


def summary(moments: list[Moment]) -> list[str]:
    """What the run showed, in lines."""
    last = moments[-1]
    served, unmoved, even, batch = (
        fmean(getattr(moment, name) for moment in moments)
        for name in ("imbalance", "unmoved", "even", "batch")
    )
    same = f"{last.differing} DIFFER" if last.differing else "bit-identical"
    return [
        f"{last.compared} outputs, every one compared with the model on one rank: {same}.",
        f"Mean imbalance {served:.3f}, {unmoved:.3f} had nothing moved; {last.moves} slots fetched, {last.commits} "
        "commits.",
        f"Each pass by itself: {even:.3f} with its tokens split evenly among replicas, {batch:.3f} by its own load; "
        "they were served by the one and the other in turn.",
    ]


def _check(last: Moment) -> None:
    if last.differing:
        raise EquipoiseError(
            f"{last.differing} of {last.compared} outputs were not those of the model on one rank"
        )


def _as_dict(demo: LiveDemo, seen: _Seen) -> dict[str, Any]:
    last, setup = seen.moments[-1], demo.setup
    kinds = list(dict.fromkeys(moment.kind for moment in seen.moments))
    return {
        "model": vars(demo.shape),
        "policy": setup.policy,
        "seed": setup.seed,
        "topology": {"num_ranks": setup.num_ranks, "slots_per_rank": setup.slots_per_rank},
        "passes": len(seen.moments),
        "interrupted": seen.interrupted,
        "ranks_at_the_end": list(last.members),
        "imbalance": {
            kind: {
                name: fmean(getattr(moment, name) for moment in seen.moments if moment.kind == kind)
                for name in ("imbalance", "unmoved", "even", "batch")
            }
            for kind in kinds
        },
        "moves": last.moves,
        "commits": last.commits,
        "outputs_compared": last.compared,
        "outputs_differing": last.differing,
    }
