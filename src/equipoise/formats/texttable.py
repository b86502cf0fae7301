"""CSV and its like: a row per layer, a column per expert, an empty line between windows.

Columns are parted by commas, semicolons or tabs. A heading may name them; a first column with a heading like
``layer`` has the model's layer numbers. Rows may all end in one more separator.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from .base import Peek, layer_number
from .source import check_plain

BOM = b"\xef\xbb\xbf"
NUMBERS = re.compile(rb"(\xef\xbb\xbf)?[-+0-9.][0-9.,;eE+\-\s]*")
SUFFIXES = (".csv", ".tsv")
MAX_LINE = 1 << 24
LAYER_NAMES = {"", "layer", "layers", "layer_id", "layer_idx", "layer_number", "index", "unnamed: 0", "#"}
OTHER_NAMES = {
    "step",
    "steps",
    "window",
    "iteration",
    "rank",
    "token",
    "time",
    "expert",
    "expert_id",
    "count",
    "load",
}
"""headings of tables that are laid out in another way"""


def detect(peek: Peek) -> bool:
    """Whether a file looks like a table of numbers, or has the suffix of one and is text."""
    head = peek.head
    if not head or b"\x00" in head:
        return False
    first = head.split(b"\n", 1)[0].strip()
    numbers = NUMBERS.fullmatch(head) is not None and any(sign in first for sign in (b",", b";", b"\t"))
    return numbers or peek.path.suffix.lower() in SUFFIXES


def read(path: Path) -> tuple[npt.NDArray[Any], tuple[int, ...] | None]:
    """The counts ``[T, L, E]``, and the layer numbers where a column has them."""
    windows: list[list[npt.NDArray[Any]]] = [[]]
    numbered: list[list[int]] = [[]]
    has_layers, width, sign = False, None, None
    for line, text in _lines(path):
        if not text.strip(" \r\n"):
            windows.append([])
            numbered.append([])
            continue
        if sign is None:
            sign = next((sign for sign in "\t;," if sign in text), ",")
        fields = _fields(path, line, text, sign)
        if width is None and _is_heading(fields):
            has_layers = _check_heading(path, line, fields)
            continue
        if has_layers:
            numbered[-1].append(layer_number(path, f"line {line}: layer", fields[0]))
            fields = fields[1:]
        row = _row(fields[:-1] if fields[-1:] == [""] else fields)
        if row is None or not len(row):
            raise FormatError(path, f"line {line} must be numbers between commas, got {_shown(text)}")
        width = len(row) if width is None else width
        if len(row) != width:
            raise FormatError(path, f"line {line} has {len(row)} numbers, the first {width}")
        windows[-1].append(row)
    windows = [window for window in windows if window]
    for number, window in enumerate(windows):
        if len(window) != len(windows[0]):
            raise FormatError(path, f"window {number} has {len(window)} rows, the first {len(windows[0])}")
    if not windows:
        raise FormatError(path, "holds no numbers")
    return np.array(windows), _layers(path, [layers for layers in numbered if layers])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    check_plain(path)
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise FormatError(path, f"line {number} is longer than {MAX_LINE} bytes: no table of loads")
            try:
                yield number, line.removeprefix(BOM).decode()
            except UnicodeDecodeError:
                raise FormatError(path, f"line {number} is not UTF-8 text") from None


def _fields(path: Path, line: int, text: str, sign: str) -> list[str]:
    try:
        fields = [
            field.strip() for field in next(csv.reader([text.strip(" \r\n")], delimiter=sign, strict=True))
        ]
    except csv.Error as error:
        raise FormatError(path, f"line {line} is no line of a table: {error}") from None
    if sign != "," and any("," in field for field in fields):
        raise FormatError(path, f"line {line} has decimal commas; write 2.5 with a point, got {_shown(text)}")
    return fields


def _shown(text: str) -> str:
    return repr(text.strip()[:40])


def _is_heading(fields: list[str]) -> bool:
    """Whether a first line names columns: some field is no number. An empty last one is a trailing comma."""
    if fields[0] == "" and len(fields) > 1:
        return True
    return any(not _is_number(field) for field in (fields[:-1] if fields[-1] == "" else fields))


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _check_heading(path: Path, line: int, fields: list[str]) -> bool:
    """Whether the first column has layer numbers; `FormatError` for tables that are laid out in another way."""
    names = [field.lower() for field in fields]
    if names[-1] == "" and len(names) > 1:
        names = names[:-1]
    other = next((name for name in names if name in OTHER_NAMES or name in LAYER_NAMES - {names[0]}), None)
    if other is not None or len(names) == 1:
        raise FormatError(
            path,
            f"line {line} must be numbers between commas, got {_shown(','.join(fields))}: a table with a column "
            f"{other or names[0]!r}; write a row per layer and a column per expert, an empty line between windows",
        )
    return names[0] in LAYER_NAMES


def _row(fields: list[str]) -> npt.NDArray[Any] | None:
    for kind in (np.int64, np.float64):
        try:
            return np.array(fields).astype(kind)
        except (ValueError, OverflowError):
            continue
    return None


def _layers(path: Path, numbered: list[list[int]]) -> tuple[int, ...] | None:
    if not numbered:
        return None
    if any(layers != numbered[0] for layers in numbered):
        raise FormatError(path, "windows name different layers")
    return tuple(numbered[0])
