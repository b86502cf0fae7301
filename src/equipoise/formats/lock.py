"""One writer to a folder: a lock that ends with the process that holds it, however it ends."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import ClassVar

from ..errors import FileAccessError

try:
    import fcntl
except ImportError:  # Windows: two writers are told apart within a process alone
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """A folder that this process alone writes to, until it is released or the process ends.

    Locks of this kind (POSIX records) belong to a process: a forked child does not keep one alive that outlives
    its parent. Within a process they do not see each other, so folders that are held are also remembered here.

    Raises `FileAccessError` if somebody else writes to the folder, or locks cannot be had there.
    """

    _held: ClassVar[dict[tuple[int, int], int]] = {}

    def __init__(self, folder: Path, name: str) -> None:
        found = folder.stat()
        self._key = (found.st_dev, found.st_ino)
        if self._held.get(self._key) == os.getpid():
            raise FileAccessError(
                folder, "is written to by this process already: close that writer, or use another folder"
            )
        self._file = os.open(folder / name, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            if fcntl is not None:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: another process has it
            os.close(self._file)
            raise FileAccessError(
                folder, "is written to by another process: use another folder, or end that one"
            ) from None
        except OSError as error:
            os.close(self._file)
            raise FileAccessError(
                folder, f"cannot be locked ({error.strerror}): use a folder on a local disk"
            ) from None
        self._held[self._key] = os.getpid()

    def release(self) -> None:
        """Let others write to the folder."""
        with contextlib.suppress(OSError):
            os.close(self._file)
        self._held.pop(self._key, None)
