"""Draw the live demo as an animated SVG, from a run on this machine: `python benchmarks/draw_live_demo.py`.

What is drawn are the frames that `equipoise demo --live` shows on a terminal of 80 columns, every few passes.
Blocks are drawn as paths, so that no font decides how they look; colours follow the reader's light or dark theme.
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path

from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from equipoise.cli.live_demo import opening, summary
from equipoise.demo import live
from equipoise.demo.view import STEPS, View

COLUMNS, ROWS = 80, 20
WIDE, HIGH, MARGIN = 8, 18, 16
FRAME_S, LAST_S = 0.35, 5.0
EVERY = 3  # passes between two frames
LIGHT = {"plain": "#1f2328", "dim": "#656d76", "green": "#1a7f37", "yellow": "#9a6700", "red": "#cf222e"}
DARK = {"plain": "#e6edf3", "dim": "#8d96a0", "green": "#3fb950", "yellow": "#d29922", "red": "#f85149"}
GROUND = ("#ffffff", "#0d1117")


def colour_of(style: Style | None) -> str:
    if style is None:
        return "plain"
    if style.color is not None:
        return style.color.name
    return "dim" if style.dim else "plain"


def frame_of(lines: list[list[Segment]]) -> str:
    """One frame: text as text, blocks as a path for each colour."""
    texts, blocks = [], {}
    for row, line in enumerate(lines):
        column, bottom = 0, MARGIN + (row + 1) * HIGH
        for segment in line:
            name, content = colour_of(segment.style), segment.text.rstrip("\n")
            if set(content) <= set(STEPS) and content:
                blocks.setdefault(name, []).append(path_of(content, MARGIN + column * WIDE, bottom))
            elif content.strip():
                start = column + len(content) - len(content.lstrip())
                width = len(content.strip()) * WIDE
                place = f'x="{MARGIN + start * WIDE}" y="{bottom - 4}" textLength="{width}"'
                bold = " b" if segment.style is not None and segment.style.bold else ""
                texts.append(f'<text class="{name}{bold}" {place}>{escape(content.strip())}</text>')
            column += len(content)
    paths = [f'<path class="{name}" d="{"".join(parts)}"/>' for name, parts in blocks.items()]
    return "".join(texts + paths)


def path_of(content: str, left: int, bottom: int) -> str:
    """Characters of a strip or a bar; those that are alike become one box."""
    parts, start = [], 0
    for end in range(1, len(content) + 1):
        if end == len(content) or content[end] != content[start]:
            width, height = (end - start) * WIDE, (STEPS.index(content[start]) + 1) * (HIGH - 4) // len(STEPS)
            parts.append(f"M{left + start * WIDE} {bottom - 1}v-{height}h{width}v{height}z")
            start = end
    return "".join(parts)


def colours(table: dict[str, str], ground: str) -> str:
    return f".ground{{fill:{ground}}}" + "".join(f".{name}{{fill:{value}}}" for name, value in table.items())


def svg_of(frames: list[str]) -> str:
    count = len(frames)
    total = (count - 1) * FRAME_S + LAST_S
    width, height = 2 * MARGIN + COLUMNS * WIDE, 2 * MARGIN + ROWS * HIGH
    shown = [
        f'<g class="f" style="animation-delay:{i * FRAME_S:.2f}s">{f}</g>' for i, f in enumerate(frames[:-1])
    ]
    shown.append(f'<g class="last" style="animation-delay:{(count - 1) * FRAME_S:.2f}s">{frames[-1]}</g>')
    style = (
        "text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre}.b{font-weight:bold}"
        f"{colours(LIGHT, GROUND[0])}@media(prefers-color-scheme:dark){{{colours(DARK, GROUND[1])}}}"
        ".f{visibility:hidden}@media(prefers-reduced-motion:no-preference){"
        f".f{{animation:one {total:.2f}s step-end infinite}}.last{{visibility:hidden;animation:last {total:.2f}s "
        f"step-end infinite}}}}@keyframes one{{0%{{visibility:visible}}{100 * FRAME_S / total:.3f}%,100%"
        f"{{visibility:hidden}}}}@keyframes last{{0%{{visibility:visible}}{100 * LAST_S / total:.3f}%,100%"
        "{visibility:hidden}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-label="equipoise demo --live: rank loads, imbalance and moves while the text changes">'
        f'<style>{style}</style><rect class="ground" width="100%" height="100%" rx="8"/>{"".join(shown)}</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/images/live_demo.svg"))
    options = parser.parse_args()
    live.SECONDS = 600.0  # all passes, however busy the machine is
    console = Console(width=COLUMNS, color_system="standard", force_terminal=True)
    demo = live.LiveDemo("robust", 0)
    demo.warm()
    view, frames, moments = View(demo.setup.num_ranks), [], []

    def lines(*shown: object) -> list[list[Segment]]:
        return [line for one in shown for line in console.render_lines(one, console.options, pad=False)]

    with demo:
        head = Text(opening(demo, processes=False))
        for moment in demo:
            moments.append(moment)
            frame = view.frame(moment, COLUMNS)
            if moment.number % EVERY == 0:
                frames.append(frame_of(lines(head, frame)))
    frames.append(frame_of(lines(head, frame, Text(), *map(Text, summary(moments)))))
    options.output.write_text(svg_of(frames), encoding="utf-8")
    print(f"{options.output}: {len(frames)} frames, {options.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
