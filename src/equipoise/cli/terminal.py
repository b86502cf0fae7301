"""What the command prints, whoever reads it: a terminal, one without Unicode, a pipe that closes, a full disk.

No control character that came from a file, a plug-in or a program gets through.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment

from ..errors import printable

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
# What our own words and drawings need beyond ASCII; the strip of bars becomes a strip of digits.
SPELT = {"µ": "u", "·": "*", "…": "...", "−": "-", "×": "x", "█": "#", "–": "-"}
SPELT |= {bar: str(height) for height, bar in enumerate("▁▂▃▄▅▆▇█"[:7], 1)}


def console(**settings: Any) -> Console:
    """A console of rich that escapes control characters in whatever it is given, tables included."""
    made = Console(**settings)
    made.push_render_hook(_Hook())
    return made


class _Hook(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(renderable) for renderable in renderables]


class _Escaped:
    """A renderable whose text is escaped once it is laid out; what steers the terminal itself stays."""

    def __init__(self, inner: ConsoleRenderable) -> None:
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _escaped(console.render(self.inner, options))


def _escaped(segments: Iterable[Segment]) -> Iterable[Segment]:
    for segment in segments:
        if segment.control:
            yield segment
        else:
            lines = segment.text.split("\n")
            yield Segment("\n".join(map(printable, lines)), segment.style)


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Write what an encoding lacks in letters that all of them have."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(SPELT.get(c) or c.encode("unicode_escape").decode() for c in lacking), error.end


def spell_what_encodings_lack() -> None:
    """Let no character stop the output: Latin-1, ASCII and code pages get what they have letters for."""
    codecs.register_error("equipoise.spell", _spell)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="equipoise.spell")


def drop_output(*streams: TextIO | None) -> None:
    """Send what is still to be printed nowhere: Python would complain about it while it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        if stream is not None:
            os.dup2(nowhere, stream.fileno())
