"""The application: its commands, and what every one of them does with errors, interrupts and closed pipes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import typer
import typer.core
from rich.markup import escape

from .. import __version__
from ..errors import EquipoiseError
from . import leave
from .options import in_options
from .terminal import NO_ROOM, console, drop_output, spell_what_encodings_lack

USAGE_ERROR = 2
NARROW = 72
"""Columns below which help is text: in a table of options their names would be cut."""

# What Typer raises for wrong usage, wherever the version that is installed keeps the class.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


# Click is part of newer versions of Typer and a package beside older ones; its classes are reached through Typer's.
_Context: Any = typer.core.TyperGroup.context_class


class _NarrowFormatter(_Context.formatter_class):  # type: ignore[misc]
    """Help with the text of most options below their names, where beside them there is no room."""

    def write_dl(self, rows: Any, col_max: int = 8, col_spacing: int = 2) -> None:
        super().write_dl(rows, col_max, col_spacing)


class _NarrowContext(_Context):  # type: ignore[misc]
    formatter_class = _NarrowFormatter


class _Group(typer.core.TyperGroup):
    """The group of commands, without what Typer makes of Ctrl-C and of pipes that close."""

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        found = super().get_command(ctx, cmd_name)
        if found is not None and self.rich_markup_mode is None:
            found.context_class = _NarrowContext
        return found

    def make_context(self, *arguments: object, **more: object) -> typer.Context:  # type: ignore[override]
        if self.rich_markup_mode is None:
            self.context_class = _NarrowContext
        with _unless_nobody_listens():
            return super().make_context(*arguments, **more)  # type: ignore[arg-type, return-value]

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        with _unless_nobody_listens():
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                leave()


_interrupts: list[int] = []


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    """Note Ctrl-C: Numba swallows the exception while it compiles, and what fails for it then is no error."""
    _interrupts.append(number)
    signal.default_int_handler(number, frame)


_print_unraisable = sys.unraisablehook


def _on_unraisable(told: sys.UnraisableHookArgs) -> None:
    """End for a Ctrl-C in a destructor or a callback of the imports, where Python would print it and go on."""
    if isinstance(told.exc_value, KeyboardInterrupt):
        leave()
    _print_unraisable(told)


@contextlib.contextmanager
def _unless_nobody_listens() -> Iterator[None]:
    """Exit with 0 where the reader (head, less) has gone: it had what it wanted."""
    try:
        yield
    except (BrokenPipeError, SystemExit) as error:
        # Rich makes an exit with 1 of a closed pipe.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        drop_output(sys.stdout, sys.stderr)
        raise typer.Exit from None


SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="equipoise",
    cls=_Group,
    help="Plan where the experts of a mixture-of-experts model live: replicas, ranks, moves.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=SETTINGS,
)

# Each module adds its command to `app` when imported; the modules import heavy code inside the command.
COMMANDS = (
    "demo",
    "plan",
    "compare",
    "replay",
    "recommend",
    "sweep",
    "inspect",
    "convert",
    "score",
    "warmup",
    "doctor",
)


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
    spell_what_encodings_lack()
    columns = shutil.get_terminal_size().columns
    app.rich_markup_mode = None if columns < NARROW else "rich"
    SETTINGS["terminal_width"] = columns - 2  # indented lines of Click's are up to two longer
    signal.signal(signal.SIGINT, _on_interrupt)
    sys.unraisablehook = _on_unraisable
    try:
        code = app(prog_name="equipoise", standalone_mode=False)
        with _unless_nobody_listens():
            _flush()
    except typer.Exit:
        code = 0
    except (KeyboardInterrupt, typer.Abort):
        leave()
    except Exception as error:
        if _interrupts:  # swallowed by what it interrupted, which then failed for it
            leave()
        _fail(error)
    if code:
        sys.exit(code)


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _fail(error: Exception) -> NoReturn:
    """Say in one line what was wrong, and exit; what nobody expected is raised again."""
    if isinstance(error, EquipoiseError):
        text = in_options(error)
    elif isinstance(error, UsageError):
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            error.show()  # type: ignore[attr-defined]
            sys.exit(USAGE_ERROR)
        text = _usage(error)
    elif isinstance(error, OSError) and error.errno in NO_ROOM and error.filename is None:
        drop_output(sys.stdout)
        text = f"standard output cannot be written: {os.strerror(error.errno)}"
    else:
        raise error
    console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(text)}")
    sys.exit(USAGE_ERROR)


def _usage(error: Exception) -> str:
    """What is wrong with how the command was called, and where to read how to."""
    text = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    return f"{text}; {'equipoise' if context is None else context.command_path} --help has the options"
