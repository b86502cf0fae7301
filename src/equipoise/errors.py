"""The one hierarchy of errors.

Every message names the argument (or the file and its field), what was found, what was expected, and the
way out. The command prints the message on one line and exits with status 2.
"""

from __future__ import annotations

import os
import re

# Control characters, separators of lines, marks that turn the direction of text, and halves of characters (which
# stand for bytes of file names that are not UTF-8).
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""A text on one line whose control characters are escaped: what a file says cannot steer a terminal.

    >>> printable("loads\x1b[2J\n")
    'loads\\x1b[2J\\n'
    """
    return _UNPRINTABLE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


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
