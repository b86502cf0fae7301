"""The one hierarchy of errors.

Every message names the argument (or the file and its field), what was found, what was expected, and the
way out. The command prints the message on one line and exits with status 2.
"""

from __future__ import annotations

import os


def printable(text: str) -> str:
    r"""A text on one line whose control characters are escaped: what a file says cannot steer a terminal.

    So is whatever else has no glyph of its own: separators of lines, marks that turn the direction of text, and
    halves of characters (which stand for bytes of file names that are not UTF-8).

    >>> printable("loads\x1b[2J\n")
    'loads\\x1b[2J\\n'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class EquipoiseError(Exception):
    """Base of every error that Equipoise raises on purpose. Its text is one line without control characters."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ArgumentError(EquipoiseError, ValueError):
    """An argument has the wrong shape, type, range or name."""


class PlacementError(ArgumentError):
    """A placement is not legal: wrong shape, an expert out of range, or an expert without a slot."""


class PolicyError(EquipoiseError):
    """A policy returned something that is not a legal placement, or could not be loaded."""


class FormatError(EquipoiseError, ValueError):
    """A file does not hold what its format requires.

    Parameters
    ----------
    path : the file (or folder) that was read
    problem : what was found and what was expected, naming the field
    """

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        self.path = os.fspath(path)
        self.problem = problem
        super().__init__(f"{self.path}: {problem}")


class FileAccessError(EquipoiseError, OSError):
    """A file cannot be opened, read or written."""

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        self.path = os.fspath(path)
        self.problem = problem
        super().__init__(f"{self.path}: {problem}")


class MissingDependencyError(EquipoiseError, ImportError):
    """An optional dependency is needed for what was asked."""
