"""A pull reader for JSON files that are larger than one wants in memory as Python objects."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from ..errors import FormatError
from .base import Progress
from .source import check_plain

# What one value may take as text: as Python objects it is twenty times that.
MAX_VALUE = 1 << 23
CHUNK = 1 << 22
SPACE = re.compile(r"[ \t\r\n]*")
# A JSON error this close to the end of the text in memory may be due to the end, and more text mends it.
MARGIN = 1 << 12


class JsonReader:
    """Walks through a JSON file; only the value asked for is ever whole in memory.

    Call `members` on an object and, for each key, exactly one of `value`, `items` or `members`; `items` on a
    list yields its decoded elements. Every complaint is a `FormatError` with the byte where it arose.

    Examples
    --------
    >>> with JsonReader(path) as reader:  # doctest: +SKIP
    ...     for key in reader.members():
    ...         steps = list(reader.items()) if key == "load_history" else reader.value()
    """

    def __init__(self, path: Path, progress: Progress | None = None) -> None:
        check_plain(path)
        self._path = path
        self._file = path.open("rb")
        self._size = path.stat().st_size
        self._progress = progress
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = json.JSONDecoder(parse_constant=self._constant, object_pairs_hook=self._unique)
        self._text = ""
        self._at = 0
        self._read = 0
        self._exhausted = False

    def __enter__(self) -> JsonReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _constant(self, name: str) -> Any:
        raise FormatError(self._path, f"holds {name}: loads must be finite and not negative")

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            self._refuse_repeated(next(key for key in keys if keys.count(key) > 1))
        return found

    def _refuse_repeated(self, key: str) -> NoReturn:
        raise FormatError(self._path, f"has the key {key[:40]!r} twice in one object: which one counts?")

    def _error(self, problem: str) -> FormatError:
        place = max(0, self._read - len(self._text) + self._at)
        return FormatError(self._path, f"is not valid JSON near byte {place}: {problem}")

    def _fill(self) -> None:
        """More text behind the position, at least as much as there is: long values cost linear time."""
        rest = len(self._text) - self._at
        data = self._file.read(max(CHUNK, rest))
        self._read += len(data)
        self._exhausted = not data
        try:
            self._text = self._text[self._at :] + self._utf8.decode(data, final=self._exhausted)
        except UnicodeDecodeError:
            raise self._error("the text is not UTF-8") from None
        self._at = 0
        if self._progress is not None:
            self._progress(self._read, self._size)

    def _peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            self._at = SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._exhausted:
                return ""
            self._fill()

    def _expect(self, character: str) -> None:
        found = self._peek()
        if found != character:
            raise self._error(f"expected {character!r}, found {found or 'the end of the file'!r}")
        self._at += 1

    def at(self, character: str) -> bool:
        """Whether the next value starts with a character, as ``[`` for a list."""
        return self._peek() == character

    def value(self) -> Any:
        """The next value, decoded whole."""
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except FormatError:  # from `_constant`
                raise
            except json.JSONDecodeError as error:
                if self._exhausted or error.pos + MARGIN < len(self._text):
                    self._at = min(error.pos, len(self._text))
                    raise self._error("the file ends early" if self._ended() else error.msg) from None
            except RecursionError:
                raise self._error("lists are nested too deeply") from None
            except ValueError as error:  # an integer with thousands of digits
                raise self._error(str(error)[:80]) from None
            else:
                if end < len(self._text) or self._exhausted:  # a number may go on in the next chunk
                    self._at = end
                    return value
            if len(self._text) - self._at > MAX_VALUE:
                raise self._error(f"a value goes on for more than {MAX_VALUE} bytes")
            self._fill()

    def _ended(self) -> bool:
        return self._exhausted and not self._text[self._at :].strip()

    def _elements(self, opening: str, closing: str) -> Iterator[None]:
        self._expect(opening)
        if self._peek() == closing:
            self._at += 1
            return
        while True:
            yield
            if self._peek() != ",":
                self._expect(closing)
                return
            self._at += 1

    def members(self) -> Iterator[str]:
        """The keys of an object, each once; take the value of each before the next."""
        seen = set()
        for _ in self._elements("{", "}"):
            key = self.value()
            if not isinstance(key, str):
                raise self._error(f"expected a key, found {str(key)[:40]!r}")
            if key in seen:
                self._refuse_repeated(key)
            seen.add(key)
            self._expect(":")
            yield key

    def items(self) -> Iterator[Any]:
        """The decoded elements of a list."""
        for _ in self._elements("[", "]"):
            yield self.value()

    def end(self) -> None:
        """Raise `FormatError` unless only white space is left."""
        if self._peek():
            raise self._error("there is more after the end of the JSON value")


def read_json(path: Path) -> Any:
    """A small JSON file, decoded whole."""
    with JsonReader(path) as reader:
        value = reader.value()
        reader.end()
    return value


def parse_json(path: Path, text: str | bytes, what: str) -> Any:
    """JSON from inside a file, decoded by the same rules; ``what`` names it in errors.

    Raises `FormatError` for repeated keys and for what is no number, and `ValueError` or `RecursionError` for
    what is not JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise FormatError(path, f"{what} has a key twice in one object: which one counts?")
        return found

    def constant(name: str) -> Any:
        raise FormatError(path, f"{what} holds {name}: loads must be finite and not negative")

    return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
