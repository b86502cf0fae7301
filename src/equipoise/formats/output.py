"""Files are written whole: under a temporary name, to the disk, and only then under their own name."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import ArgumentError, FileAccessError

try:
    import fcntl
except ImportError:  # Windows: leftovers of killed processes stay there
    fcntl = None  # type: ignore[assignment]

PREFIX = ".equipoise-tmp-"
"""of every temporary file and folder"""
NAME = re.compile(re.escape(PREFIX) + r"[a-z0-9_]{8}")
MODE = 0o666


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that at every instant, power cuts included, the old one or the whole new one is there.

    Temporary files that killed processes left in the folder are removed.

    Raises `FileAccessError` if the file cannot be written: no such folder, no right, no space, no plain file.
    """
    where = Path(path)
    with _temporary(where) as (handle, name):
        with open(handle, "wb", closefd=False) as file:
            file.write(data)
        mask = os.umask(0)
        os.umask(mask)
        name.chmod(MODE & ~mask)  # temporary files are private; an engine may run as another user
        os.fsync(handle)
        os.replace(name, where)
        _sync_folder(where.parent)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `FileAccessError` where `write_file` would fail for lack of a folder or of rights; writes nothing."""
    with _temporary(Path(path)):
        pass


def refuse_overwriting(output: Path, inputs: Iterable[Path], way_out: str = "") -> None:
    """Raise `ArgumentError` if an output is one of the inputs, or a file of an input folder, by whatever path."""
    for source in inputs:
        with contextlib.suppress(OSError):  # what is not there cannot be overwritten
            files = source.iterdir() if source.is_dir() else [source]
            if any(_same(output, file) for file in files):
                raise ArgumentError(
                    f"{output} is a file that is read ({source}) and would be lost: "
                    f"write to another one{way_out}"
                )


def refuse_printing_into(inputs: Iterable[Path]) -> None:
    """Raise `ArgumentError` if standard output was sent to a file that is read."""
    for source in inputs:
        with contextlib.suppress(OSError):
            found = os.fstat(1)
            if stat.S_ISREG(found.st_mode) and os.path.samestat(found, source.stat()):
                raise ArgumentError(f"standard output goes to {source}, which is read: send it elsewhere")


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[int, Path]]:
    """A temporary file beside the target, open, locked, and gone after the block; errors are in our words."""
    name = handle = None
    try:
        if path.is_dir():
            raise FileAccessError(path, "is a folder; name a file to write")
        if path.exists() and not path.is_file():
            raise FileAccessError(path, "is not a plain file")
        sweep(path.parent)
        handle, name = locked_file(path.parent)
        yield handle, name
    except FileNotFoundError:
        raise FileAccessError(path, f"the folder {path.parent} does not exist") from None
    except FileAccessError:
        raise
    except OSError as error:
        raise FileAccessError(path, f"cannot be written: {error.strerror or error}") from None
    finally:
        if name is not None:
            with contextlib.suppress(OSError):
                name.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def locked_file(folder: Path) -> tuple[int, Path]:
    """A new temporary file, open for writing and locked for as long as it stays open."""
    while True:
        handle, name = tempfile.mkstemp(prefix=PREFIX, dir=folder)
        if _hold(handle, name):
            return handle, Path(name)


def locked_folder() -> tuple[int, Path]:
    """A new folder where temporary files go, and the open handle that keeps it locked."""
    while True:
        name = tempfile.mkdtemp(prefix=PREFIX)
        try:
            handle = os.open(name, os.O_RDONLY)
        except FileNotFoundError:  # swept away already
            continue
        if _hold(handle, name):
            return handle, Path(name)


def _hold(handle: int, name: str) -> bool:
    """Lock what was just made; false, and closed, if another process swept it away before that."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(handle), os.stat(name)):
                return True
        except FileNotFoundError:
            pass
        os.close(handle)
        return False
    return True


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders whose process is gone: those that nobody holds locked."""
    if fcntl is None:
        return
    try:
        entries = [entry.path for entry in os.scandir(folder) if NAME.fullmatch(entry.name)]
    except OSError:
        return
    for name in entries:
        with contextlib.suppress(OSError):
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = os.fstat(handle)
                if found.st_uid != os.geteuid():
                    continue
                if stat.S_ISDIR(found.st_mode):
                    remove_folder(Path(name))
                elif stat.S_ISREG(found.st_mode):
                    os.unlink(name)
            finally:
                os.close(handle)


def remove_folder(folder: Path) -> None:
    """Remove a temporary folder, which holds plain files alone."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            entry.unlink()
        folder.rmdir()


def _sync_folder(folder: Path) -> None:
    """Bring a renaming to the disk, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
