"""Kill -9 at random instants of writing each kind of file: the old file whole, or the new one whole.

    pip install -e '.[test,torch]'
    python benchmarks/kill_writers.py --kills 300

A child process writes two contents in turn over one file, as fast as it can, and is killed at a random instant.
What is there then must be one of the two, byte for byte. The next writer removes what the killed one left.

A recording (`equipoise.TraceWriter`) is written on by each child where the killed one ended: its windows must be
those of a row of whole ones that ends no earlier than before, and its segments keep to their size. Whether it ended
within a segment or at its end is counted as one and other.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from equipoise import (
    Placement,
    TraceWriter,
    contiguous_placement,
    load_trace,
    save_placement,
    save_trace,
    synthetic_trace,
)
from equipoise.formats.output import PREFIX, write_file
from equipoise.formats.segments import segment_files

TRACES = [synthetic_trace(16, 64, num_windows=40, seed=seed) for seed in range(2)]
PLACEMENTS = [
    Placement(contiguous_placement(58, 256, 32, 288).phy2log[:, ::step], 32, 256, layers=tuple(range(3, 61)))
    for step in (1, -1)
]


def _page(path: Path, which: int) -> None:
    """Any other output, such as the page or the picture of a replay: bytes through the same function."""
    write_file(path, bytes([which]) * 3_000_000)


def _save(format: str) -> Callable[[Path, int], None]:
    if format in ("own loads", "array"):
        name = "equipoise" if format == "own loads" else "array"
        return lambda path, which: save_trace(TRACES[which], path, name)
    return lambda path, which: save_placement(PLACEMENTS[which], path, format)


KINDS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "own loads": ("t.safetensors", _save("own loads")),
    "array": ("t.npz", _save("array")),
    "sglang": ("p.json", _save("sglang")),
    "sglang .pt": ("p.pt", _save("sglang")),
    "trtllm": ("p.yaml", _save("trtllm")),
    "vllm-ascend": ("p.json", _save("vllm-ascend")),
    "vllm": ("p.jsonl", _save("vllm")),
    "own placement": ("p.safetensors", _save("equipoise")),
    "page": ("r.html", _page),
}


def write_forever(kind: str, path: Path, ready: Any) -> None:
    write = KINDS[kind][1]
    write(path, 0)
    ready.set()
    while True:
        for which in (1, 0):
            write(path, which)


def contents(kind: str, folder: Path) -> list[bytes]:
    """The two contents that a file may have."""
    name, write = KINDS[kind]
    found = []
    for which in range(2):
        write(folder / name, which)
        found.append((folder / name).read_bytes())
        (folder / name).unlink()
    assert found[0] != found[1]
    return found


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(PREFIX)]


def kill(kind: str, kills: int, rng: random.Random) -> tuple[int, int, int]:
    """Kill that many writers: times the first or second content was there, and times something was left."""
    context = multiprocessing.get_context("fork")
    seen, left = [0, 0], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / KINDS[kind][0]
        whole = contents(kind, folder)
        started = time.monotonic()
        contents(kind, folder)
        longest = 1.5 * (time.monotonic() - started)  # three writings, so that every instant of one is met
        for _ in range(kills):
            ready = context.Event()
            child = context.Process(target=write_forever, args=(kind, path, ready))
            child.start()
            ready.wait()
            if len(leftovers(folder)) > 1:
                raise SystemExit(f"{kind}: what killed writers left was not removed: {leftovers(folder)}")
            time.sleep(rng.random() * longest)
            assert child.pid is not None
            child.kill()
            child.join()
            if child.exitcode != -signal.SIGKILL:
                raise SystemExit(f"{kind}: the writer ended by itself with {child.exitcode}")
            found = path.read_bytes()
            if found not in whole:
                raise SystemExit(f"{kind}: {len(found)} bytes that are neither the old file nor the new one")
            seen[whole.index(found)] += 1
            left += bool(leftovers(folder))
        KINDS[kind][1](path, 0)
        if sorted(entry.name for entry in folder.iterdir()) != [path.name]:
            raise SystemExit(f"{kind}: the last writer did not remove {leftovers(folder)}")
    return seen[0], seen[1], left


RECORDING = "recording"
SEGMENT, MAX_BYTES = 8, 1_500_000


def window(number: int) -> np.ndarray:
    """Counts ``[L, E]`` that tell their number."""
    return np.asarray(TRACES[0].counts[number % 40] + 1_000_000 * number)


def windows(folder: Path) -> range:
    """The numbers of the windows of a recording; ends where they are not whole, or not in a row."""
    files = segment_files(folder)
    if not files:
        return range(0)
    if sum(path.stat().st_size for path in files) > MAX_BYTES:
        raise SystemExit(f"{RECORDING}: its segments are larger than {MAX_BYTES} bytes")
    counts = load_trace(folder).counts
    first = int(counts[0].min()) // 1_000_000
    for number, found in enumerate(counts, first):
        if not np.array_equal(found, window(number)):
            raise SystemExit(f"{RECORDING}: window {number} is not as it was recorded, or not in its place")
    return range(first, first + len(counts))


def writer_of(folder: Path) -> TraceWriter:
    return TraceWriter(folder, 16, 64, segment_windows=SEGMENT, flush_seconds=0, max_bytes=MAX_BYTES)


def record_forever(folder: Path, ready: Any) -> None:
    writer = writer_of(folder)
    first = windows(folder).stop
    ready.set()
    for number in itertools.count(first):
        writer.add(window(number))


def kill_recorders(kills: int, rng: random.Random) -> tuple[int, int, int]:
    """Kill that many recorders: times a segment was not full or full, and times something was left."""
    context = multiprocessing.get_context("fork")
    seen, left, end = [0, 0], 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(kills):
            ready = context.Event()
            child = context.Process(target=record_forever, args=(folder, ready))
            child.start()
            ready.wait()
            if len(leftovers(folder)) > 1:
                raise SystemExit(
                    f"{RECORDING}: what killed writers left was not removed: {leftovers(folder)}"
                )
            time.sleep(rng.random() * 0.03)
            child.kill()
            child.join()
            if child.exitcode != -signal.SIGKILL:
                raise SystemExit(f"{RECORDING}: the writer ended by itself with {child.exitcode}")
            found = windows(folder)
            if found.stop < end:
                raise SystemExit(
                    f"{RECORDING}: ends with window {found.stop - 1}, before that with {end - 1}"
                )
            end = found.stop
            seen[end % SEGMENT == 0] += 1
            left += bool(leftovers(folder))
        with writer_of(folder) as writer:
            writer.add(window(end))
        if leftovers(folder):
            raise SystemExit(f"{RECORDING}: the last writer did not remove {leftovers(folder)}")
    return seen[0], seen[1], left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"some of: {', '.join([*KINDS, RECORDING])}")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    print(f"{'kind':<16}{'kills':>6}{'one':>6}{'other':>7}{'left a temporary file':>24}")
    for kind in options.kinds or [*KINDS, RECORDING]:
        if kind == RECORDING:
            one, other, left = kill_recorders(options.kills, rng)
        else:
            one, other, left = kill(kind, options.kills, rng)
        print(f"{kind:<16}{options.kills:>6}{one:>6}{other:>7}{left:>24}", flush=True)
    print(
        "every file was one of the two, byte for byte, every window whole; the next writer removed what was left"
    )


if __name__ == "__main__":
    main()
