"""A recording that grows: a folder of segments, each a load file of our own, written whole and numbered.

``windows-000000000448.safetensors`` holds the windows from number 448 on. Windows are numbered from the first one
that was ever recorded into the folder, so that names alone tell what was removed and what is missing.
`equipoise.TraceWriter` writes such folders; what is read here is one trace.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from .base import MAX_CELLS, LoadFormat, Peek, ReadOptions, Recording
from .native import read_segment

NAME = re.compile(r"windows-(\d{12})\.safetensors")
LOCK = ".equipoise-recording.lock"
UNTAGGED = "mixed"
"""phase of a window without one, in a recording where others have one"""


@dataclass(frozen=True)
class Segment:
    """A segment as it was read."""

    path: Path
    windows: Recording
    first: int
    """number of its first window in the recording"""
    unwritten: int
    """windows before it that could not be written"""

    @property
    def end(self) -> int:
        """The number of the window after its last one."""
        return self.first + len(self.windows.counts)

    @property
    def form(self) -> tuple[int, int, tuple[int, ...] | None, str]:
        """What all segments of a recording share: layers, experts, the model's layer numbers, the unit."""
        _, num_layers, num_experts = self.windows.counts.shape
        return num_layers, num_experts, self.windows.layers, self.windows.unit


def segment_path(folder: Path, first: int) -> Path:
    """The file of the segment that begins with window number ``first``."""
    return folder / f"windows-{first:012}.safetensors"


def number_in(path: Path) -> int:
    """The number of a segment's first window, by its name."""
    return int(path.stem.rpartition("-")[2])


def segment_files(folder: Path) -> list[Path]:
    """The files of a recording's segments, in the order of time."""
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name))


def open_segment(path: Path) -> Segment:
    """Read one segment; `FormatError` if it is damaged, or not where its name says."""
    segment = Segment(path, *read_segment(path))
    if segment.first != number_in(path):
        raise FormatError(path, f"begins with window {segment.first}, its name says {number_in(path)}")
    return segment


def _detect(peek: Peek) -> bool:
    return peek.path.is_dir() and ((peek.path / LOCK).exists() or bool(segment_files(peek.path)))


def _read(path: Path, options: ReadOptions) -> Recording:
    files = segment_files(path) if path.is_dir() else []
    while files:
        segments, pairs, damaged = _read_files(path, files, options)
        if segments:
            return replace(_joined(path, segments, damaged, number_in(files[0])), pairs=pairs)
        if damaged:
            raise damaged[-1]
        files = segment_files(path)  # a writer removed all of them meanwhile, and made others
    raise FormatError(path, "holds no window yet: a recording whose first segment is not written")


def _read_files(
    folder: Path, files: list[Path], options: ReadOptions
) -> tuple[list[Segment], npt.NDArray[np.int64] | None, list[FormatError]]:
    """The sound segments of a folder, the pairs of all of them, and what is wrong with the others.

    It may be written to meanwhile. Pairs are added up at once: they take more memory than loads.
    """
    segments: list[Segment] = []
    pairs: npt.NDArray[np.int64] | None = None
    damaged: list[FormatError] = []
    cells = 0
    for number, file in enumerate(files, 1):
        try:
            segment = open_segment(file)
        except FormatError as error:
            damaged.append(error)
            continue
        except OSError:
            if file.exists():
                raise
            segments, pairs, damaged = [], None, []  # the writer has removed it, and before it what is older
            continue
        pairs = _with_pairs(pairs, segment)
        segments.append(replace(segment, windows=replace(segment.windows, pairs=None)))
        cells += segment.windows.counts.size
        if cells > MAX_CELLS:
            raise FormatError(folder, f"holds more than {MAX_CELLS} counts, too many for memory")
        if options.progress is not None:
            options.progress(number, len(files))
    return segments, pairs, damaged


def _joined(path: Path, segments: list[Segment], damaged: list[FormatError], oldest: int) -> Recording:
    """The segments as one recording; ``oldest`` is the number of the first window by the names of all files."""
    last = segments[-1]
    for before, after in pairwise(segments):
        if before.end > after.first:
            raise FormatError(
                path, f"has window {after.first} in {before.path.name} and in {after.path.name}"
            )
    strange = next((segment for segment in segments if segment.form != last.form), None)
    if strange is not None:
        found, expected = (
            f"{s.form[0]} layers x {s.form[1]} experts, counts of {s.form[3]}" for s in (strange, last)
        )
        raise FormatError(
            path, f"{strange.path.name} has {found}, {last.path.name} {expected}, or other layer numbers"
        )
    steps = [segment.windows.steps for segment in segments]
    batches = [part for segment in segments if (part := segment.windows.batches) is not None]
    return Recording(
        np.concatenate([segment.windows.counts for segment in segments]),
        layers=last.windows.layers,
        num_model_layers=last.windows.num_model_layers,
        counted=last.windows.counted,
        steps=np.concatenate([part for part in steps if part is not None]),
        phases=_phases(segments),
        top_k=last.windows.top_k,
        source=last.windows.source,
        exact=True,
        notes=tuple(_notes(segments, damaged, oldest)),
        unit=last.windows.unit,
        batches=np.concatenate(batches) if batches else None,
    )


def _with_pairs(pairs: npt.NDArray[np.int64] | None, segment: Segment) -> npt.NDArray[np.int64] | None:
    """Pair counts so far, those of a segment added; of other layers or experts none are, which is told later."""
    more = segment.windows.pairs
    if more is None or (pairs is not None and pairs.shape != more.shape):
        return pairs
    return more.astype(np.int64) if pairs is None else pairs + more.astype(np.int64)


def _phases(segments: list[Segment]) -> tuple[str, ...] | None:
    tags = [segment.windows.phases for segment in segments]
    if all(part is None for part in tags):
        return None
    sizes = [len(segment.windows.counts) for segment in segments]
    return sum((part or (UNTAGGED,) * size for part, size in zip(tags, sizes, strict=True)), ())


def _notes(segments: list[Segment], damaged: list[FormatError], oldest: int) -> list[str]:
    """What is not there of a recording, in words."""
    first, last = segments[0], segments[-1]
    notes = []
    unwritten_before = first.unwritten if first.first == oldest else 0
    if oldest > unwritten_before:
        notes.append(
            f"the first {oldest - unwritten_before} windows are gone: the recording keeps to its size and "
            "removes its oldest segments"
        )
    if last.unwritten:
        notes.append(f"{last.unwritten} windows could not be written when they were recorded (a full disk?)")
    if damaged:
        names = ", ".join(Path(error.path).name for error in damaged[:3]) + (", ..." if damaged[3:] else "")
        notes.append(f"left out {len(damaged)} damaged segments ({names}): the first {damaged[0].problem}")
    present = sum(len(segment.windows.counts) for segment in segments)
    missing = last.end - first.first - present - (last.unwritten - first.unwritten)
    if missing > 0 and not damaged:
        notes.append(f"{missing} windows in its middle are missing: files of segments were deleted")
    return notes


LOADS = LoadFormat(
    "segments",
    "recording of equipoise.TraceWriter: folder with windows-*.safetensors",
    _detect,
    _read,
)
