"""Compiled kernels on disk: compiled once on a machine, checked before they run, never in the way of a plan.

Numba's own cache believes what it finds: a file that a full disk cut short ends the process that reads it, and a
flipped bit in machine code is executed. Here an entry is a pair of files, code (``.nbc``) and a seal over it
(``.nbi``), each written aside and renamed. Whatever does not fit its seal counts as missing: the kernel is compiled
anew and the pair replaced. What cannot be written is said once, and planning goes on without.

Processes that start together do not compile the same kernel side by side: one compiles, the others wait for it. The
system itself drops the lock of a process that ends, however it ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import stat
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import llvmlite
import numba
from numba.core import config, event
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

try:
    import fcntl
except ImportError:  # not on Windows, where processes that start together each compile
    fcntl = None  # type: ignore[assignment]

COMPILING, WAITING = "numba:compile", "equipoise:wait"
"""Events as Numba has them: while this process compiles, and while it waits for another one that does."""
PATIENCE = 120.0  # seconds; a holder that is stopped and not gone would be waited for without end
PAUSE = 0.02  # seconds between two looks at a lock
ROOMS = ("planning", "search", "dispatch")

_log = logging.getLogger("equipoise")


def _digest_of_sources() -> str:
    """Of all kernels: one depends on those that it calls, so an edit of any makes all of them new."""
    package = Path(__file__).parents[1]
    sources = [source for room in ROOMS for source in sorted((package / room).glob("*.py"))]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


SOURCES = _digest_of_sources()


def cache_folders(source: Path) -> list[Path]:
    """Where kernels of a source file are looked for, in this order; they are saved to the first that takes them.

    ``NUMBA_CACHE_DIR`` where that is set, as for all of Numba. Else beside the source, as Python's own compiled
    files, and then in the user's cache folder.
    """
    own = f"{source.parent.name}_{hashlib.sha1(str(source.parent).encode()).hexdigest()}"
    if config.CACHE_DIR:  # type: ignore[attr-defined]
        return [Path(config.CACHE_DIR) / own]  # type: ignore[attr-defined]
    folders = [source.parent / "__pycache__"]
    with contextlib.suppress(RuntimeError):  # no home directory
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folders.append(Path(home) / "equipoise" / own)
    return folders


class KernelCache(NullCache):  # type: ignore[misc]
    """The cache of one kernel, with the methods that Numba's dispatchers call, under Numba's lock on compiling."""

    def __init__(self, function: Any) -> None:
        self._source = Path(function.__code__.co_filename)
        python = f"py{sys.version_info[0]}{sys.version_info[1]}"
        self._name = f"{self._source.stem}.{function.__name__}.{python}.{SOURCES}"
        self._folders = cache_folders(self._source)
        self._locked: list[tuple[_Locks, int]] = []

    @property
    def cache_path(self) -> str | None:
        """The folder that kernels are saved to, ``None`` where none can be written."""
        folder = self._writable()
        return None if folder is None else str(folder)

    @property
    def kept(self) -> bool:
        """Whether this kernel of these sources is on the disk, for some types; it may be damaged."""
        return any(True for folder in self._folders for _ in folder.glob(f"{self._name}.*.nbi"))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was compiled for these argument types, or ``None``, and then this process is to compile it."""
        target_context.refresh()
        key = _key(sig, target_context.codegen())
        found = self._load(key, target_context)
        if found is None and self._lock(key):
            found = self._load(key, target_context)  # compiled by the process that held the lock
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled; whatever hinders that is said once."""
        folder = self._writable()
        if folder is None:
            _troubles.append(f"none of {', '.join(map(str, self._folders))} can be written")
            return
        key = _key(sig, data.codegen)
        try:
            _write(folder, self._stem(key), key, dumps((key, data._reduce())))
        except Exception as error:  # planning does not depend on it
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            _troubles.append(f"{folder} does not take them ({reason})")
            if len(_troubles) == 1:
                _log.warning("compiled kernels are not kept: %s; planning goes on without", trouble())

    @property
    def held(self) -> int:
        """How many entries of this kernel are locked by this process."""
        return len(self._locked)

    def unlock(self, down_to: int) -> None:
        """Let others compile what this process has compiled or failed to, but for the first ``down_to`` entries."""
        while len(self._locked) > down_to:
            locks, place = self._locked.pop()
            locks.release(place)

    def _stem(self, key: bytes) -> str:
        return f"{self._name}.{hashlib.sha256(key).hexdigest()[:16]}"

    def _load(self, key: bytes, target_context: Any) -> Any:
        for folder in self._folders:
            code = _read(folder, self._stem(key), key, self._source)
            if code is None:
                continue
            try:
                known, payload = pickle.loads(code)
                if known == key:
                    return CompileResult._rebuild(target_context, *payload)
            except Exception:  # sealed by another build of the libraries underneath: compiled anew
                continue
        return None

    def _writable(self) -> Path | None:
        for folder in self._folders:
            if _can_be_written(folder):
                return folder
        return None

    def _lock(self, key: bytes) -> bool:
        """Wait until no other process compiles this; false if nothing was waited for and nothing is locked."""
        folder = self._writable()
        if folder is None or fcntl is None:
            return False
        place = int.from_bytes(hashlib.sha256(self._stem(key).encode()).digest()[:7], "big")
        locks = _Locks.of(folder)
        if not locks.acquire(place):
            return False
        self._locked.append((locks, place))
        return True


def _key(sig: Any, codegen: Any) -> bytes:
    """What machine code is good for: argument types, processor, versions of what made it."""
    about = (str(sig), codegen.magic_tuple(), numba.__version__, llvmlite.__version__, sys.version, SOURCES)
    return repr(about).encode()


def _seal(key: bytes, code: bytes) -> bytes:
    digest = hashlib.sha256(len(key).to_bytes(8, "big") + key + code).hexdigest()
    return f"equipoise kernel {len(code)} {digest}\n".encode()


def _read(folder: Path, stem: str, key: bytes, source: Path) -> bytes | None:
    """The code of an entry, or ``None`` unless it is whole, unchanged and from someone to be trusted."""
    try:
        seal = _content(folder / f"{stem}.nbi", source)
        code = _content(folder / f"{stem}.nbc", source)
    except OSError:
        return None
    return code if seal == _seal(key, code) else None


def _content(path: Path, source: Path) -> bytes:
    """A file's bytes; `OSError` for what is no file, or is another user's.

    Code is executed: it may come from this user, from root, or from whoever owns the package's own source.
    """
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(f"{path} is not a file")
        if hasattr(os, "geteuid") and about.st_uid not in (os.geteuid(), 0, source.stat().st_uid):
            raise OSError(f"{path} belongs to another user")
        with open(file, "rb", closefd=False) as stream:
            return stream.read()
    finally:
        os.close(file)


def _write(folder: Path, stem: str, key: bytes, code: bytes) -> None:
    """Write an entry, its code before its seal; what a killed process has left of it goes."""
    for left in folder.glob(f"{stem}.*.tmp"):
        with contextlib.suppress(OSError):
            left.unlink()
    for suffix, content in (("nbc", code), ("nbi", _seal(key, code))):
        aside = folder / f"{stem}.{suffix}.{os.getpid()}.tmp"
        try:
            aside.write_bytes(content)
            aside.replace(folder / f"{stem}.{suffix}")
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise


@cache
def _can_be_written(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


class _Locks:
    """Locks between processes that save to one folder: each holds the bytes of a file that stand for its kernels.

    Locks of this kind (POSIX records) belong to a process: a forked child has none of them, and they are gone with
    the process. They are all dropped, too, when the process closes the file anywhere, so it is opened here alone.
    """

    _of: ClassVar[dict[Path, _Locks]] = {}

    def __init__(self, folder: Path) -> None:
        self._path = folder / "equipoise.lock"
        self._file: int | None = None
        self._process = 0
        self._places: list[int] = []
        self._patient = True

    @classmethod
    def of(cls, folder: Path) -> _Locks:
        """The locks of a folder, one object in this process."""
        return cls._of.setdefault(folder, cls(folder))

    def acquire(self, place: int) -> bool:
        """Wait for the byte at ``place``; false where that is not possible or takes too long."""
        if self._process != os.getpid():  # a forked child holds nothing
            self._file, self._process, self._places = None, os.getpid(), []
        try:
            if self._file is None:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            if not self._try(place):
                with event.trigger_event(WAITING):
                    until = time.monotonic() + PATIENCE
                    while self._patient and not self._try(place):
                        self._patient = time.monotonic() < until
                        time.sleep(PAUSE)
                if not self._patient:
                    return False
        except OSError:  # a file system without locks
            return False
        self._places.append(place)
        return True

    def release(self, place: int) -> None:
        """Let go of a byte."""
        if place not in self._places or self._file is None or self._process != os.getpid():
            return
        self._places.remove(place)
        with contextlib.suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)
        if not self._places:
            os.close(self._file)
            self._file = None

    def _try(self, place: int) -> bool:
        assert self._file is not None
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: another process has it
            return False
        return True


_troubles: list[str] = []


def trouble() -> str | None:
    """Why kernels that this process has compiled were not kept; ``None`` if all were."""
    return _troubles[0] if _troubles else None
