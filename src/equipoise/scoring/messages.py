"""Text that comes from a scored program, made fit to be printed."""

from __future__ import annotations

from ..errors import printable

LONGEST = 500
"""characters; what a program says may carry its windows out, to the search that reads its errors"""


def bounded(text: str) -> str:
    """The text on one line, at most `LONGEST` characters, without what steers a terminal.

    Examples
    --------
    >>> bounded("two\\nlines \\x1b[31min red")
    'two lines \\\\x1b[31min red'
    """
    return printable(" ".join(text[:LONGEST].split()))[:LONGEST]
