"""What a path stands for: a plain file, a folder, standard input, or something that was compressed.

Readers open a file several times and by its name. `opened` gives them a path that they can: what comes through a
pipe or has to be unpacked is spooled to a temporary file first, and errors name what the user named.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import ArgumentError, EquipoiseError, FileAccessError, FormatError, MissingDependencyError
from .output import locked_folder, remove_folder, sweep

STDIN = "-"
STDIN_NAME = "standard input"
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
CHUNK = 1 << 20
MAX_STREAM = 1 << 35
"""bytes of a pipe; who has more saves it to a file"""
FREE_SIZE = 1 << 26
"""bytes that anything may unpack to"""
MAX_RATIO = 100
"""how much more than its compressed size a recording may unpack to: counts as text take a tenth or so"""
SPARSE_SIZE, SPARSE_RATIO = 1 << 27, 50
PIPES = re.compile(r"/dev/stdin|/dev/fd/\d+|/proc/(self|\d+)/fd/\d+")

# What people hand in by mistake, by its first bytes.
STRANGERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (
        re.compile(rb"version https://git-lfs"),
        "is a pointer of Git LFS, not the file: git lfs pull fetches it",
    ),
    (re.compile(rb"\s*<(!doctype|html|\?xml)", re.I), "is a web page (or XML): the download went wrong?"),
    (re.compile(rb"%PDF"), "is a PDF document"),
    (re.compile(rb"PAR1"), "is a Parquet table: save its counts as .npy, .npz or .csv"),
    (re.compile(rb"\x89HDF"), "is an HDF5 file: save its counts as .npy, .npz or .csv"),
    (re.compile(rb"ARROW1"), "is an Arrow file: save its counts as .npy, .npz or .csv"),
    (
        re.compile(rb"\xfd7zXZ|BZh[1-9]|7z\xbc\xaf"),
        "is compressed with xz, bzip2 or 7-Zip: unpack it, or use gzip",
    ),
    (re.compile(rb"(?s).{257}ustar"), "is a tar archive: unpack it and name the file or folder in it"),
    (re.compile(rb"\xff\xfe|\xfe\xff"), "is UTF-16 text: save it as UTF-8"),
    (re.compile(rb"\x00{512}"), "begins with nothing but zeros"),
)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """A path that can be opened any number of times and holds what ``path`` does, unpacked.

    Raises
    ------
    FileAccessError
        for what is neither a plain file nor a folder nor standard input, and for what cannot be read
    FormatError
        for archives that are broken or unpack to too much
    MissingDependencyError
        for ``.zst`` without the package that reads it
    """
    if str(path) == STDIN or PIPES.fullmatch(str(path)):
        with _spooled(path) as (spool, shown), _renamed(spool, shown), _unpacked(spool, shown) as inner:
            yield inner
        return
    check_plain(path, folder=True)
    with _unpacked(path, str(path)) as inner:
        yield inner


def check_plain(path: Path, folder: bool = False) -> None:
    """Raise `FileAccessError` for devices, FIFOs and sockets, and `FormatError` for files made of holes.

    Opening a FIFO waits for its other end, and a device has no end: neither is ever opened.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise FileAccessError(path, "does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise FileAccessError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(found.st_mode):
        if not folder:
            raise FileAccessError(path, "is a folder, expected a file")
    elif not stat.S_ISREG(found.st_mode):
        raise FileAccessError(path, f"is {_kind(found.st_mode)}; give a file, or - for standard input")
    elif found.st_size > SPARSE_SIZE and getattr(found, "st_blocks", found.st_size) * 512 < (
        found.st_size // SPARSE_RATIO
    ):
        raise FormatError(path, f"claims {found.st_size} bytes but is made of holes: no recording is")


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")


def stranger(head: bytes) -> str | None:
    """What a file is that we do not read, by its first bytes; None where they tell nothing."""
    return next((words for pattern, words in STRANGERS if pattern.match(head)), None)


@contextlib.contextmanager
def _renamed(inner: Path, shown: str) -> Iterator[None]:
    """Errors about a spooled file name what was spooled."""
    try:
        yield
    except (FormatError, FileAccessError) as error:
        if error.path != os.fspath(inner):
            raise
        raise type(error)(shown, error.problem) from None
    except EquipoiseError as error:
        if str(inner) not in str(error):
            raise
        raise type(error)(str(error).replace(str(inner), shown)) from None


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    try:
        sweep(Path(tempfile.gettempdir()))
        handle, folder = locked_folder()
    except OSError as error:
        raise FileAccessError(
            tempfile.gettempdir(), f"cannot keep a temporary file: {error.strerror or error}"
        ) from None
    try:
        yield folder
    finally:
        remove_folder(folder)
        os.close(handle)


@contextlib.contextmanager
def _spooled(path: Path) -> Iterator[tuple[Path, str]]:
    """A pipe (or whatever standard input is) as a file, and what it is called in errors."""
    shown = STDIN_NAME if str(path) in (STDIN, "/dev/stdin") else str(path)
    with contextlib.ExitStack() as stack:
        try:
            if str(path) == STDIN:
                stream: Any = getattr(sys.stdin, "buffer", None)
                if stream is None:
                    raise FileAccessError(shown, "is closed")
            else:
                stream = stack.enter_context(path.open("rb"))
            _refuse_devices(stream, shown)
            target = stack.enter_context(_folder()) / (path.name if str(path) != STDIN else "stdin")
            with _copying(shown), target.open("wb") as file:
                _copy_stream(stream, file, shown)
        except (OSError, ValueError) as error:
            if isinstance(error, EquipoiseError):
                raise
            raise FileAccessError(
                shown, f"cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
        yield target, shown


def _refuse_devices(stream: Any, shown: str) -> None:
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return  # a stand-in without a descriptor
    if stat.S_ISDIR(mode):
        raise FileAccessError(shown, "is a folder, expected a file")
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        terminal = " (a terminal)" if os.isatty(stream.fileno()) else ""
        raise FileAccessError(shown, f"is a device{terminal}; send a file or the output of a program into it")


def _copy_stream(stream: IO[bytes], file: IO[bytes], shown: str) -> None:
    done = 0
    while data := stream.read(CHUNK):
        if not done and (words := stranger(data)) is not None:
            raise FormatError(shown, words)
        done += len(data)
        if done > MAX_STREAM:
            raise FormatError(
                shown, f"goes on for more than {MAX_STREAM} bytes; save it to a file and name that"
            )
        file.write(data)


@contextlib.contextmanager
def _copying(shown: str) -> Iterator[None]:
    """Disks that fill up while a temporary file is written."""
    try:
        yield
    except OSError as error:
        if isinstance(error, EquipoiseError):
            raise
        raise FileAccessError(
            shown, f"cannot be kept in {tempfile.gettempdir()} (TMPDIR): {error.strerror or error}"
        ) from None


@contextlib.contextmanager
def _unpacked(path: Path, shown: str) -> Iterator[Path]:
    """The path itself, or a temporary file with what a gzip or Zstandard file holds."""
    magic = b""
    if not path.is_dir():
        try:
            with path.open("rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise FileAccessError(shown, f"cannot be read: {error.strerror or error}") from None
    if not magic.startswith((GZIP, ZSTD)):
        yield path
        return
    chunks = _zstd_chunks if magic == ZSTD else _gzip_chunks
    name = path.name.removesuffix(".gz").removesuffix(".zst") or "unpacked"
    with _folder() as folder:
        target = folder / name
        with _copying(shown), path.open("rb") as packed, target.open("wb") as file:
            done, first = 0, True
            for data in chunks(packed, shown):
                if first and data.startswith((GZIP, ZSTD)):
                    raise FormatError(shown, "is compressed twice: unpack it once")
                first = False
                done += len(data)
                if done > FREE_SIZE and done > MAX_RATIO * packed.tell():
                    raise FormatError(shown, "unpacks to hundreds of times its size: no plausible recording")
                file.write(data)
        with _renamed(target, shown):
            yield target


def _gzip_chunks(packed: IO[bytes], shown: str) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=packed) as file:
            while data := file.read(CHUNK):
                yield data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(shown, f"is a gzip file, cut short or broken: {error}") from None


def _zstd_chunks(packed: IO[bytes], shown: str) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise MissingDependencyError(
            f"{shown}: reading Zstandard needs a package; install it with: pip install 'equipoise[zstd]', "
            "or unpack the file"
        ) from None
    frame, pending = None, b""
    try:
        # Little at a time: four bytes may stand for 128 KB.
        while pending or (pending := packed.read(4096)):
            if frame is None:
                frame = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
            data = frame.decompress(pending)
            pending = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = None
            if data:
                yield data
    except zstandard.ZstdError as error:
        raise FormatError(shown, f"is a Zstandard file, cut short or broken: {error}") from None
    if frame is not None:
        raise FormatError(shown, "is a Zstandard file, cut short: its last frame has no end")


def refuse_twice(paths: list[Path]) -> None:
    """Raise `ArgumentError` if more than one of the paths is standard input, which can be read once."""
    if sum(str(path) in (STDIN, "/dev/stdin", "/dev/fd/0") for path in paths) > 1:
        raise ArgumentError("only one input can be - (standard input)")
