"""Text of several kinds that every Python installation has, and a stream of it whose kind changes."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..placement import IntArray

CAP = 1_000_000
"""bytes of each kind, at most"""
LEAST = 100_000
"""bytes, else a kind is left out: some installations come without C headers"""


def texts() -> dict[str, tuple[list[str], bytes]]:
    """File names and text of each kind: library code, help topics, tables of encodings, C headers."""
    library = Path(sysconfig.get_paths()["stdlib"])
    include = Path(sysconfig.get_paths()["include"])
    kinds = {
        "python": sorted(library.glob("*.py")),
        "tables": sorted((library / "encodings").glob("*.py")),
        "headers": sorted(include.rglob("*.h")),
    }
    found = {}
    for kind, files in kinds.items():
        # The text of files that are alike would fill the cap: a part of each.
        share = CAP // max(1, len(files)) + 2000
        found[kind] = ([file.name for file in files], b"".join(f.read_bytes()[:share] for f in files)[:CAP])
    from pydoc_data.topics import topics

    found["help"] = (["pydoc_data/topics"], "\n\n".join(topics[key] for key in sorted(topics)).encode()[:CAP])
    return {kind: item for kind, item in sorted(found.items()) if len(item[1]) > LEAST}


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

    def kind(self, number: int) -> str:
        """The kind of text of a pass."""
        kinds = list(self._unseen)  # type: ignore[attr-defined]
        return str(kinds[number // self.passes % len(kinds)])

    def batch(self, number: int, rank: int) -> IntArray:
        """Bytes ``[sequences, length]`` of a pass on a rank."""
        text = self._unseen[self.kind(number)]  # type: ignore[attr-defined]
        draws = np.random.default_rng((self.seed, number, rank))
        starts = draws.integers(0, len(text) - self.length, self.sequences)
        return np.asarray(text[starts[:, None] + np.arange(self.length)], np.int64)
