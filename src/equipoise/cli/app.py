"""The application: its commands, and what every one of them does with errors and interrupts."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import typer
from rich.console import Console
from rich.markup import escape

from .. import __version__
from ..errors import EquipoiseError

USAGE_ERROR = 2
INTERRUPTED = 130

app = typer.Typer(
    name="equipoise",
    help="Plan where the experts of a mixture-of-experts model live: replicas, ranks, moves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

# Each module adds its command to `app` when imported; the modules import heavy code inside the command.
COMMANDS = ("demo", "plan", "score")


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
    try:
        app()
    except EquipoiseError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader (head, less) went away: not an error; keep Python from complaining while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
