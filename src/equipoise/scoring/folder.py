"""The private folder of a scored program: removed whatever is in it, and by the next run if this one is killed."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "equipoise-score-"


class PrivateFolder:
    """A new folder among the temporary files, locked as long as its owner lives.

    Raises
    ------
    OSError
        if no folder can be made there
    """

    def __init__(self) -> None:
        sweep()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
            with contextlib.suppress(FileNotFoundError):
                self._lock = _locked(self.path, wait=True)
                # Another run's sweep may have come between making and locking.
                if self.path.exists():
                    return
                os.close(self._lock)

    def size(self, most_entries: int) -> tuple[int, int]:
        """Bytes on disk and entries; counting ends with the first entry too many.

        Raises `OSError` if a folder in it cannot be listed.
        """
        total = count = 0
        folders = [str(self.path)]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    count += 1
                    if count > most_entries:
                        return total, count
                    total += 512 * entry.stat(follow_symlinks=False).st_blocks
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        return total, count

    def close(self) -> None:
        """Remove the folder."""
        remove(self.path)
        os.close(self._lock)


def sweep() -> None:
    """Remove the folders of runs that were killed: those that nobody holds the lock of."""
    for path in _leftovers():
        with contextlib.suppress(OSError):
            lock = _locked(path, wait=False)
            try:
                remove(path)
            finally:
                os.close(lock)


def _leftovers() -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                        yield Path(entry.path)


def _locked(path: Path, wait: bool) -> int:
    """A descriptor that holds the folder's lock. `BlockingIOError` if it is taken and `wait` is not set."""
    import fcntl  # not on every system; there, importing this package must still work

    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if not wait:
            os.close(descriptor)
            raise
        # A file system without locks: nobody can lock this folder, so no sweep takes it.
    return descriptor


def remove(folder: Path) -> None:
    """Remove a folder whose owner is dead, however deep, and whatever the modes of what is in it.

    Folders are lifted to the top before they are emptied, so that no path gets longer than the system allows.
    """
    token = secrets.token_hex(8)
    with contextlib.suppress(OSError):
        pending = [folder]
        for number in itertools.count():
            if not pending:
                break
            current = pending.pop()
            os.chmod(current, 0o700)
            with os.scandir(current) as found:
                entries = list(found)
            for place, entry in enumerate(entries):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                with contextlib.suppress(OSError):
                    os.rmdir(entry.path)
                    continue
                os.chmod(entry.path, 0o700)
                lifted = folder / f"{token}-{number}-{place}"
                os.rename(entry.path, lifted)
                pending.append(lifted)
            if current != folder:
                os.rmdir(current)
        os.rmdir(folder)
