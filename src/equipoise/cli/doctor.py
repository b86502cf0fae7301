"""``equipoise doctor``: whether what is switched on in a server can work, and what keeps it from working."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from . import terminal
from .app import app

if TYPE_CHECKING:
    from ..engines.checks import Check

NOT_FINE = 1
MARKS = {"fine": "[green]ok[/]   ", "note": "[yellow]note[/] ", "wrong": "[bold red]FAIL[/] "}


@app.command()
def doctor(
    options: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Options of TensorRT-LLM, or its balancer's file, to check."),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option("--ranks", help="EP size, where the file does not say.", min=1)
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="The model's config.json, or its folder, to check the file against."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Say which engines are installed, whether the plug-ins fit, what is switched on and whether it can work.

    With FILE it checks what keeps TensorRT-LLM from balancing without a word. Exits with 1 if something that
    is switched on cannot work.

    Examples: EQUIPOISE_VLLM=1 equipoise doctor; equipoise doctor options.yaml --ranks 32 --model config.json
    """
    from ..errors import ArgumentError

    if options is None and (ranks is not None or model is not None):
        raise ArgumentError("--ranks and --model are for FILE, which is not given")
    checks = []
    for check in _checks(options, ranks, model):
        checks.append(check)
        if not as_json:
            _print(check)
    wrong = any(check.state == "wrong" for check in checks)
    if as_json:
        found = [{"subject": c.subject, "state": c.state, "text": c.text, "source": c.source} for c in checks]
        typer.echo(json.dumps({"fits": not wrong, "checks": found}))
    if wrong:
        raise typer.Exit(NOT_FINE)


def _checks(options: Path | None, ranks: int | None, model: Path | None) -> Iterable[Check]:
    if options is not None:
        from ..engines.trtllm import lint

        return lint(options, ranks, model)
    from ..engines.doctor import examine

    return examine(os.environ)


def _print(check: Check) -> None:
    """One check, at once: the next one may take a while."""
    console = terminal.console(highlight=False)
    console.print(MARKS[check.state] + escape(check.text))
    if check.source and check.state != "fine":
        console.print(f"     [dim]{escape(check.source)}[/]")
