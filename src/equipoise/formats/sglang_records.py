"""SGLang: folders of ``per_pass`` and ``per_token`` dumps of the expert distribution recorder, one per rank.

Each file holds what its rank's tokens asked of all *physical* experts (SGLang 0.5,
``srt/eplb/expert_distribution.py``); a pass of the model is the sum over all ranks' files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from . import torchfile
from .base import LoadFormat, Peek, ReadOptions, Recording, fold, id_array, load_array

NAME = re.compile(r"expert_distribution_recorder_[0-9.]+_(\d{1,6})\.pt")
MAP = "last_physical_to_logical_map"
COUNT = "global_physical_count"
TOPK = "topk_ids_of_layer"
# ForwardMode of srt/model_executor/forward_batch_info.py; an idle pass says nothing about the phase.
PHASES = {1: "prefill", 2: "decode", 3: "mixed", 5: "decode"}
IDLE = 4


@dataclass
class _Pass:
    """What has been read of one pass of the model: logical counts ``[M, E]``, and who contributed."""

    counts: npt.NDArray[Any]
    seen: set[tuple[int, str]] = field(default_factory=set)
    modes: set[int] = field(default_factory=set)

    def is_whole(self, num_ranks: int) -> bool:
        """Whether every rank contributed, and each the same parts of the pass."""
        keys = {key for _, key in self.seen}
        return self.seen == {(rank, key) for rank in range(num_ranks) for key in keys}

    def phase(self) -> str | None:
        tags = {PHASES.get(mode, "mixed") for mode in self.modes - {IDLE}}
        return None if not tags else tags.pop() if len(tags) == 1 else "mixed"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.pt") if NAME.fullmatch(path.name))


def _detect(peek: Peek) -> bool:
    if peek.path.is_dir():
        return bool(_files(peek.path))
    return bool(peek.pickle) and peek.has_key(MAP)


def _read(path: Path, options: ReadOptions) -> Recording:
    if not path.is_dir():
        raise FormatError(path, "is one rank of a recording; name the folder with the files of all ranks")
    files = [file for file, _ in files_of_ranks(path)]
    ranks = sorted({_rank(file) for file in files})
    passes: dict[int, _Pass] = {}
    top_k = 0
    sizes = [file.stat().st_size for file in files]
    for done, file in enumerate(files):
        top_k = max(top_k, _add_file(file, _rank(file), passes))
        if options.progress is not None:
            options.progress(sum(sizes[: done + 1]), sum(sizes))
    whole = sorted(number for number, found in passes.items() if found.is_whole(len(ranks)))
    if not whole:
        raise FormatError(path, f"has no pass that all {len(ranks)} ranks recorded: files of different runs?")
    notes = []
    if len(whole) < len(passes):
        notes.append(
            f"{len(passes) - len(whole)} of {len(passes)} passes left out, which not every rank recorded whole"
        )
    phases = [passes[number].phase() for number in whole]
    counts = np.stack([passes[number].counts for number in whole])
    return Recording(
        counts,
        num_model_layers=counts.shape[1],
        every_layer=True,
        steps=np.stack([np.array(whole), np.array(whole) + 1], axis=1),
        phases=tuple(phase or "mixed" for phase in phases) if any(phases) else None,
        top_k=top_k or None,
        source=f"SGLang recording of {len(ranks)} ranks in {path.name}",
        notes=tuple(notes),
    )


def files_of_ranks(folder: Path) -> list[tuple[Path, int]]:
    """The files of a recording with their ranks; `FormatError` if there are none, or those of a rank are missing."""
    files = [(file, _rank(file)) for file in _files(folder)]
    if not files:
        raise FormatError(folder, "holds no expert_distribution_recorder_{time}_{rank}.pt")
    ranks = sorted({rank for _, rank in files})
    if ranks != list(range(len(ranks))):
        missing = min(set(range(len(ranks))) - set(ranks))
        raise FormatError(folder, f"holds ranks up to {ranks[-1]}, but no file of rank {missing}")
    return files


def _rank(file: Path) -> int:
    found = NAME.fullmatch(file.name)
    assert found is not None
    return int(found.group(1))


def _add_file(file: Path, rank: int, passes: dict[int, _Pass]) -> int:
    """Add the records of one rank to the passes; the largest number of experts per token that it shows."""
    content = torchfile.load(file)
    if not isinstance(content, dict) or not {"records", MAP} <= set(content):
        raise FormatError(file, f"must be a dict with 'records' and {MAP!r}")
    if not isinstance(content["records"], list):
        raise FormatError(file, f"'records' must be a list, got {type(content['records']).__name__}")
    phy2log = id_array(file, MAP, torchfile.numbers(file, MAP, content[MAP]), 2)
    top_k = 0
    for index, record in enumerate(content["records"]):
        place = f"records[{index}]"
        number = _integer(file, place, record, "forward_pass_id")
        if _integer(file, place, record, "rank") != rank:
            raise FormatError(file, f"{place} is of rank {record['rank']}, but the name says rank {rank}")
        if COUNT not in record:
            raise FormatError(file, f"{place} has no {COUNT!r}")
        name = f"{place}[{COUNT!r}]"
        physical = load_array(file, name, torchfile.numbers(file, name, record[COUNT]), (2,))
        logical = fold(file, name, physical, phy2log)
        known = passes.setdefault(number, _Pass(np.zeros_like(logical)))
        if known.counts.shape != logical.shape:
            raise FormatError(
                file, f"{place} has {list(logical.shape)} layers x experts, others {list(known.counts.shape)}"
            )
        source = (rank, str(record.get("gatherer_key", "")))
        if source in known.seen:
            raise FormatError(
                file, f"{place} is pass {number} of rank {rank} again: the folder holds more than one run"
            )
        known.seen.add(source)
        known.counts = known.counts + logical
        if isinstance(record.get("forward_mode"), int):
            known.modes.add(record["forward_mode"])
        if TOPK in record:
            topk = torchfile.numbers(file, f"{place}[{TOPK!r}]", record[TOPK])
            if topk.ndim == 3 and topk.size:
                top_k = max(top_k, int((topk >= 0).sum(axis=-1).max()))
    return top_k


def _integer(file: Path, place: str, record: Any, key: str) -> int:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**62:
        raise FormatError(file, f"{place} has no integer {key!r}")
    return value


LOADS = LoadFormat(
    "sglang-records", "SGLang per_pass or per_token recording: folder of .pt, one per rank", _detect, _read
)
