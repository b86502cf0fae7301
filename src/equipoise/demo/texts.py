"""Text of several kinds that every Python installation has, and a stream of it whose kind changes."""

from __future__ import annotations

import contextlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import EquipoiseError
from ..placement import IntArray

CAP = 1_000_000
"""bytes of each kind, at most"""
LEAST = 100_000
"""bytes, else a kind is left out"""


def texts() -> dict[str, tuple[list[str], bytes]]:
    """File names and text of each kind: library code, help topics, tables of encodings, C headers.

    Kinds that this installation lacks are left out: some come without C headers, others without help topics.

    Raises
    ------
    EquipoiseError
        if there is no kind at all
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    include = Path(sysconfig.get_paths()["include"])
    found = {
        "python": _text(sorted(library.glob("*.py"))),
        "tables": _text(sorted((library / "encodings").glob("*.py"))),
        "headers": _text(sorted(include.rglob("*.h"))),
        "help": (["pydoc_data/topics"], _help()),
    }
    enough = {kind: item for kind, item in sorted(found.items()) if len(item[1]) > LEAST}
    if not enough:
        raise EquipoiseError(
            f"no text to serve: {library} has no library code, as in a full installation of Python"
        )
    return enough


def _text(files: list[Path]) -> tuple[list[str], bytes]:
    """Of each file a part: those that are alike would fill the cap."""
    share = CAP // max(1, len(files)) + 2000
    parts = []
    for file in files:
        with contextlib.suppress(OSError):
            parts.append(file.read_bytes()[:share])
    return [file.name for file in files], b"".join(parts)[:CAP]


def _help() -> bytes:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return b""
    return "\n\n".join(topics[key] for key in sorted(topics)).encode()[:CAP]


def split(text: bytes) -> tuple[bytes, bytes]:
    """What the model was trained on, and the last tenth, which it was not."""
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


@dataclass(frozen=True)
class Stream:
    """What each rank is asked in each pass, drawn from text that the model was not trained on.

    A batch hangs on seed, pass and rank alone, so any process can draw it again.

    Parameters
    ----------
    passes : of one kind, before the next one comes
    sequences, length : of a batch, in sequences and in bytes each
    seed : of the draws
    """

    passes: int = 40
    sequences: int = 4
    length: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        unseen = {kind: np.frombuffer(split(text)[1], np.uint8) for kind, (_, text) in texts().items()}
        object.__setattr__(self, "_unseen", unseen)

    @property
    def kinds(self) -> list[str]:
        """The kinds of text, in the order in which they come."""
        return list(self._unseen)  # type: ignore[attr-defined]

    def kind(self, number: int) -> str:
        """The kind of text of a pass."""
        return self.kinds[number // self.passes % len(self.kinds)]

    def batch(self, number: int, rank: int) -> IntArray:
        """Bytes ``[sequences, length]`` of a pass on a rank."""
        text = self._unseen[self.kind(number)]  # type: ignore[attr-defined]
        draws = np.random.default_rng((self.seed, number, rank))
        starts = draws.integers(0, len(text) - self.length, self.sequences)
        return np.asarray(text[starts[:, None] + np.arange(self.length)], np.int64)
