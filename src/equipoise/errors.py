"""The one hierarchy of errors.

Every message names the argument (or the file and its field), what was found, what was expected, and the
way out. The command prints the message on one line and exits with status 2.
"""

from __future__ import annotations

import os


class EquipoiseError(Exception):
    """Base of every error that Equipoise raises on purpose."""


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
