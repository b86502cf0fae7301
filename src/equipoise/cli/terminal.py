"""What the command prints: never a control character that came from a file, a plug-in or a program."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment

from ..errors import printable


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
