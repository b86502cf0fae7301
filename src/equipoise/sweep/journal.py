"""What was finished, a line each: appended and brought to the disk before anything is done with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import FileAccessError
from ..formats.base import reading
from ..formats.lock import FolderLock
from .point import Outcome

NAME = "journal.jsonl"


class Journal:
    """The outcomes of a sweep's folder. One process has it open at a time; it ends with that process.

    A line that was cut by a kill or a full disk counts as missing, and so does one that is damaged: its point
    runs again.

    Parameters
    ----------
    folder : made if it is not there

    Raises
    ------
    FileAccessError
        if the folder cannot be made, read or written, or another sweep writes to it
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._lock: FolderLock | None = None
        self._file = -1
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileAccessError(folder, f"cannot be made: {error.strerror or error}") from None
        self._lock = FolderLock(folder, ".lock")
        try:
            with reading(self.path):
                self.outcomes = {found.key: found for found in self._read()}
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self._write(b"\n")  # ends a line that was cut
        except OSError as error:
            self.close()
            raise FileAccessError(self.path, f"cannot be written: {error.strerror or error}") from None
        except FileAccessError:
            self.close()
            raise

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome; it is on the disk when this returns."""
        self.outcomes[outcome.key] = outcome  # first, or an interrupt while it is written would hide it
        try:
            self._write(json.dumps(asdict(outcome)).encode() + b"\n")
        except OSError as error:
            raise FileAccessError(
                self.path,
                f"cannot be written: {error.strerror or error}; what was finished before is kept, and the same "
                "command goes on from there",
            ) from None

    def close(self) -> None:
        """Let others write to the folder."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)

    def _read(self) -> Iterator[Outcome]:
        if not self.path.exists():
            return
        with self.path.open("rb") as lines:
            for line in lines:
                found = _outcome(line)
                if found is not None:
                    yield found


def _outcome(line: bytes) -> Outcome | None:
    try:
        fields: dict[str, Any] = json.loads(line)
        found = Outcome(**fields)
    except (ValueError, TypeError, RecursionError):
        return None
    texts = all(isinstance(text, str) for text in (found.key, found.status, found.reason))
    return found if texts and isinstance(found.measures, dict) and isinstance(found.clocks, dict) else None
