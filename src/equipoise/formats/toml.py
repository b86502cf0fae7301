"""TOML files that people write: settings of servers, specs of sweeps."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import FormatError
from .base import reading

MAX_BYTES = 1 << 20


def read_toml(path: Path, wanted: str) -> dict[str, Any]:
    """The content of a TOML file.

    Parameters
    ----------
    path : the file
    wanted : what had to be named, as the end of a sentence, for a path that is no file

    Raises
    ------
    FileAccessError
        if it cannot be read
    FormatError
        if it is no file, too large, or not TOML
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    with reading(path):
        if not path.is_file():
            path.open("rb").close()
            raise FormatError(path, f"is no file: {wanted}")
        data = path.read_bytes()
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"{len(data)} bytes, more than any settings")
        content: dict[str, Any] = tomllib.loads(data.decode())
        return content
    except (ValueError, RecursionError) as error:
        raise FormatError(path, f"is not valid TOML: {' '.join(str(error).split())[:120]}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like one, as the end of a sentence."""
    folded = {other.casefold(): other for other in known}
    found = difflib.get_close_matches(name.casefold(), sorted(folded), n=1)
    return (
        f"; did you mean {folded[found[0]]}?"
        if found
        else f"; known are {', '.join(sorted(folded.values()))}"
    )
