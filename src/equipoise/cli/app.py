"""The application: its commands, and what every one of them does with errors and interrupts."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import NoReturn

import typer
import typer.core
from rich.markup import escape

from .. import __version__
from ..errors import EquipoiseError
from .terminal import console

USAGE_ERROR = 2
INTERRUPTED = 130


class _Group(typer.core.TyperGroup):
    """The group of commands, leaving at once on Ctrl-C whatever version of typer this is."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _leave()


_interrupts: list[int] = []


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    """Note Ctrl-C: Numba swallows the exception while it compiles, and what fails for it then is no error."""
    _interrupts.append(number)
    signal.default_int_handler(number, frame)


def _leave() -> NoReturn:
    """Exit with status 130, not waiting for threads that compile kernels or plan."""
    sys.stdout.flush()
    sys.stderr.write("\n")
    sys.stderr.flush()
    os._exit(INTERRUPTED)


app = typer.Typer(
    name="equipoise",
    cls=_Group,
    help="Plan where the experts of a mixture-of-experts model live: replicas, ranks, moves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

# Each module adds its command to `app` when imported; the modules import heavy code inside the command.
COMMANDS = ("demo", "plan", "replay", "inspect", "convert", "score", "warmup")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"equipoise {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Plan where the experts of a mixture-of-experts model live: replicas, ranks, moves."""


def main() -> None:
    """Run the command line; every expected failure is one line on standard error and exit code 2."""
    for name in COMMANDS:
        import_module(f"{__package__}.{name}")
    signal.signal(signal.SIGINT, _on_interrupt)
    try:
        app(prog_name="equipoise")
    except EquipoiseError as error:
        if _interrupts:
            _leave()
        console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        _leave()
    except RuntimeError:
        if _interrupts:
            _leave()
        raise
    except BrokenPipeError:
        # The reader (head, less) went away: not an error; keep Python from complaining while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
