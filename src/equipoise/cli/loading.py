"""What commands that read load files share: their options, and a progress bar for large files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..formats.base import Progress
from . import terminal

LARGE = 1 << 24


@contextlib.contextmanager
def progress_bar(path: Path) -> Iterator[Progress | None]:
    """A callback that draws a bar on standard error; None if that is no terminal or the file is small."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = terminal.console(stderr=True)
    if not console.is_terminal or not path.exists() or (path.is_file() and path.stat().st_size < LARGE):
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"reading {path.name}", total=None)
        yield lambda done, size: bar.update(task, completed=done, total=size)
