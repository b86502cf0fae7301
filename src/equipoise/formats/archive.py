"""ZIP archives (npz and the files of ``torch.save``): looked at before a library gets them.

What `zipfile` and torch make of a damaged directory differs, and torch checks no sums. So the files of
``torch.save`` must be byte for byte what its writer makes around the data.
"""

from __future__ import annotations

import errno
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

from ..errors import FormatError

ZIP = b"PK\x03\x04"
MAX_DIRECTORY = 1 << 22
"""bytes of a directory, for fifty thousand tensors"""
LOCAL = struct.Struct("<4s5H3I2H")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
ENTRY = struct.Struct("<4s6H3I5H2I")
LARGE = 0xFFFFFFFF
DESCRIBED = 1 << 3  # flag: sizes and sum stand behind the data
CHUNK = 1 << 22


def entries(path: Path, limit: int = MAX_DIRECTORY) -> list[zipfile.ZipInfo]:
    """The entries of an archive; `FormatError` for broken ones, huge directories and names that occur twice."""
    count = _check_directory(path, limit)
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    except Exception as error:  # a broken archive may fail in any way
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a place before the file
            raise
        raise FormatError(path, f"is not a whole ZIP archive: {' '.join(str(error).split())[:100]}") from None
    if len(found) != count:
        raise FormatError(path, f"is damaged: its ZIP directory says {count} entries and lists {len(found)}")
    if len({info.filename for info in found}) < len(found):
        raise FormatError(
            path, "holds two entries of one name: it is damaged or was not written by NumPy or torch"
        )
    return found


def _check_directory(path: Path, limit: int) -> int:
    """Refuse a directory of more than ``limit`` bytes before anything is made of it; how many entries it says."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - (1 << 16) - END.size))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + END.size:
        raise FormatError(path, "is cut short: a ZIP archive without its directory")
    count, directory = END.unpack_from(tail, at)[4:6]
    wide = tail.rfind(b"PK\x06\x06", 0, at)
    if 0 <= wide <= at - END64.size:
        said = END64.unpack_from(tail, wide)
        count, directory = said[7], max(directory if directory < LARGE else 0, said[8])
    if directory > limit:
        raise FormatError(path, f"has a ZIP directory of {directory} bytes: no plausible recording")
    return int(count)


def check_torch(path: Path) -> dict[str, int]:
    """The sizes of the entries of a file of ``torch.save``, by name; every byte but the data's is accounted for.

    Raises `FormatError` for sums that do not match and for anything that torch's writer would not have written:
    one changed byte is enough for torch to hand back memory that nobody wrote to.
    """
    found = sorted(entries(path), key=lambda info: info.header_offset)
    with path.open("rb") as file:
        # What the archive must be from the end of the last entry on.
        directory = b"".join([_check_entry(path, file, info) for info in found])
        start = file.tell()
        tail = file.read(len(directory) + END64.size + LOCATOR.size + END.size + 1)
    if tail not in [directory + end for end in _ends(len(found), start, start + len(directory))]:
        raise _damaged(path, "its directory does not match its entries")
    return {info.filename: info.file_size for info in found}


def _damaged(path: Path, what: str) -> FormatError:
    return FormatError(path, f"is damaged, or was not written by torch.save: {what}")


def _check_entry(path: Path, file: IO[bytes], info: zipfile.ZipInfo) -> bytes:
    """Check the entry that must begin where the file stands; what the directory must say about it."""
    name, offset = info.orig_filename.encode(), file.tell()
    head = file.read(LOCAL.size)
    if info.header_offset != offset or len(head) < LOCAL.size:
        raise _damaged(path, f"{info.filename[:60]!r} is not where the directory says")
    magic, version, flags, method, time, date, crc, packed, size, name_length, extra_length = LOCAL.unpack(
        head
    )
    described, wide = bool(flags & DESCRIBED), max(info.file_size, offset) >= LARGE
    sums = (0, 0, 0) if described else (info.CRC, info.file_size, info.file_size)
    if magic != ZIP or method != zipfile.ZIP_STORED or not (wide or (crc, packed, size) == sums):
        raise _damaged(path, f"the header of {info.filename[:60]!r} is not as torch writes it")
    if file.read(name_length) != name or not _is_padding(file.read(extra_length)):
        raise _damaged(path, f"the header of {info.filename[:60]!r} does not match the directory")
    if _sum(file, info.file_size) != info.CRC:
        raise _damaged(path, f"the check sum of {info.filename[:60]!r} does not match")
    if described:
        kind = struct.Struct("<4sI2Q" if wide else "<4s3I")
        if file.read(kind.size) != kind.pack(b"PK\x07\x08", info.CRC, info.file_size, info.file_size):
            raise _damaged(path, f"what stands behind {info.filename[:60]!r} is not as torch writes it")
    short, place = min(info.file_size, LARGE), min(offset, LARGE)
    lengths = (len(name), len(info.extra))
    entry = ENTRY.pack(
        b"PK\x01\x02",
        0,
        version,
        flags,
        method,
        time,
        date,
        info.CRC,
        short,
        short,
        *lengths,
        0,
        0,
        0,
        0,
        place,
    )
    return entry + name + info.extra


def _sum(file: IO[bytes], size: int) -> int:
    """The check sum of the next ``size`` bytes, or of those that there are."""
    crc = 0
    while size and (data := file.read(min(size, CHUNK))):
        crc = zlib.crc32(data, crc)
        size -= len(data)
    return crc


def _is_padding(extra: bytes) -> bool:
    """Whether an extra field is the one that torch aligns data with (FB, a length, as many Z), or of large files."""
    while len(extra) >= 4:
        kind, length = extra[:2], int.from_bytes(extra[2:4], "little")
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if (
            len(content) < length
            or (kind == b"FB" and content.strip(b"Z"))
            or kind not in (b"FB", b"\x01\x00")
        ):
            return False
    return not extra


def _ends(count: int, start: int, stop: int) -> list[bytes]:
    """What may stand behind a directory of ``count`` entries that lies between two places."""
    numbers = (min(count, 0xFFFF), min(count, 0xFFFF), min(stop - start, LARGE), min(start, LARGE))
    short = END.pack(b"PK\x05\x06", 0, 0, *numbers, 0)
    locator = LOCATOR.pack(b"PK\x06\x07", 0, stop, 1)
    made_by = ((0x031E, 0x2D), (0, 0))
    wide = [END64.pack(b"PK\x06\x06", 44, *by, 0, 0, count, count, stop - start, start) for by in made_by]
    return [short, *(record + locator + short for record in wide)]
