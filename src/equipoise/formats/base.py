"""What a reader of loads and a reader or writer of placements is, and what they share."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FileAccessError
from ..placement import Placement
from ..trace import LoadTrace

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all while a large file is read."""


@dataclass(frozen=True)
class LoadFormat:
    """A kind of load file: how it is recognised, read and (for Equipoise's own) written.

    ``detect(path)`` looks at the content, cheaply and without raising on strange input; ``read(path, **options)``
    returns a trace or raises `FormatError` or `FileAccessError`.
    """

    name: str
    description: str
    detect: Callable[[Path], bool]
    read: Callable[..., LoadTrace]
    write: Callable[[LoadTrace, Path], None] | None = None


@dataclass(frozen=True)
class PlacementFormat:
    """A kind of placement file. ``write`` refuses what the engine would refuse."""

    name: str
    description: str
    suffix: str
    detect: Callable[[Path], bool]
    read: Callable[..., Placement]
    write: Callable[..., None]
    options: dict[str, Any] | None = None


@contextlib.contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """A path to write to that becomes ``path`` only if the block succeeds: no half-written files.

    Raises `FileAccessError` if the folder cannot be written.
    """
    try:
        if path.is_dir():
            raise FileAccessError(path, "is a folder; name a file to write")
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    except FileNotFoundError:
        raise FileAccessError(path, f"the folder {path.parent} does not exist") from None
    except FileAccessError:
        raise
    except OSError as error:
        raise FileAccessError(path, f"cannot be written: {error.strerror or error}") from None
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes files private; an engine may run as another user
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, FileAccessError):
            raise
        raise FileAccessError(path, f"cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
