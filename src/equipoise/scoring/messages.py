"""Text that comes from a scored program, made fit to be printed."""

from __future__ import annotations

LONGEST = 500
"""characters; what a program says may carry its windows out, to the search that reads its errors"""


def printable(text: str) -> str:
    """The text on one line, at most `LONGEST` characters, with what steers a terminal or has no glyph escaped.

    Examples
    --------
    >>> printable("two\\nlines \\x1b[31min red")
    'two lines \\\\x1b[31min red'
    """
    line = " ".join(text[:LONGEST].split())
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    return "".join(shown)[:LONGEST]
