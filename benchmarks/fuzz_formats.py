"""Damaged and hostile files of every format, by the ten thousand: what opens, what is refused, what goes wrong.

    pip install -e '.[test,torch]'
    python benchmarks/fuzz_formats.py --files 50000

Every file is one of the test suite's samples with something done to it: bits flipped, pieces cut, doubled or
overwritten, values of JSON and YAML replaced by odd ones, shapes and types of arrays changed, headers rewritten,
lists nested deeply, and the whole compressed before or after that. It must open, or be refused with one line that
is an error of ours. Reported as faults are: any other exception; a read of more than 5 s; a process that grew by a
gigabyte; a file left behind; a changed count that was accepted although the container carries a check sum (npz,
.pt, gzip, Zstandard). A fault is printed with the seed that makes it again: ``--seed N --files 1``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import samples
from damage import damage, mutate, odd_array, odd_content
from equipoise import EquipoiseError, load_placement, load_trace
from equipoise.formats import LOAD_FORMATS, PLACEMENT_FORMATS, find_format, read_trace
from equipoise.formats.hygiene import diagnose
from equipoise.report.loads import summarise

SECONDS = 5
GROWTH = 1 << 20  # kilobytes
LOADS, PLACEMENTS = list(samples.LOADS), [f"placement {key}" for key in samples.FILES]
SUMMED = {"npz", "routes", "stat_pt", "records", "placement sglang.pt"}
Random = random.Random


class Hang(BaseException):
    """A read that takes too long."""


def read(path: Path, placement: bool, format: str | None) -> Any:
    """What a file holds, gone through as ``inspect`` would; arrays to compare."""
    if placement:
        found = load_placement(path, format, num_ranks=4)
        return found.phy2log, found.layers
    trace, _ = read_trace(path, format)
    diagnose(trace)
    json.dumps(summarise(trace, top_k=2).as_dict(), allow_nan=False)
    return trace.counts, trace.layers


def flip(data: bytes, rng: Random) -> bytes:
    """One to three bits changed, half of the time near an end, where containers keep their directories."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out))
        if rng.random() < 0.5:
            at = len(out) - 1 - at % min(len(out), 600)
        out[at] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] if rng.random() < 0.7 else data[at:]


def header(data: bytes, rng: Random) -> bytes:
    """Numbers of a header (lengths, offsets, shapes) overwritten with large, small or negative ones."""
    out = bytearray(data)
    at = rng.randrange(min(len(out), 400)) if rng.random() < 0.6 else rng.randrange(len(out))
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice((0, 1, 0x7F, 0xFF, 1 << 15, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1))
    out[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, rng.choice(("little", "big")))
    return bytes(out)


def digits(data: bytes, rng: Random) -> bytes:
    """A number in the text replaced by one that is too large, negative, or none."""
    places = [at for at in range(len(data)) if data[at : at + 1].isdigit()]
    if not places:
        return flip(data, rng)
    at = rng.choice(places)
    odd = (
        b"-1",
        b"999999999",
        b"9" * 30,
        b"1e308",
        b"0x10",
        b"true",
        b"NaN",
        b'"a"',
        b"[1]",
        b"{}",
        b"1" * 5000,
    )
    return data[:at] + rng.choice(odd) + data[at + 1 :]


def nest(data: bytes, rng: Random) -> bytes:
    """Something nested tens or tens of thousands deep, put where a value may stand."""
    deep = rng.choice((10, 100, 900, 30_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"- ", b""), (b"(", b")")))
    places = [at for at in range(len(data)) if data[at : at + 1] in (b"[", b":", b",")]
    at = rng.choice(places) + 1 if places else rng.randrange(len(data))
    return data[:at] + opening * deep + rng.choice((b"1", b"")) + closing * rng.choice((deep, 0)) + data[at:]


BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (flip, flip, cut, header, digits, nest, damage)


def structured(source: Path, rng: Random) -> Callable[[Path], None] | None:
    """A writer of the file with another content: values, arrays or tensors replaced by odd ones."""
    if source.suffix in (".json", ".jsonl"):
        lines = [json.loads(line) for line in source.read_text().splitlines()]
        at = rng.randrange(len(lines))
        lines[at] = mutate(lines[at], rng)
        return lambda path: path.write_text("\n".join(map(json.dumps, lines))) and None
    if source.suffix == ".npy":
        return lambda path: np.save(path, odd_array(rng))
    if source.suffix == ".npz":
        arrays = dict(np.load(source))
        arrays[rng.choice(list(arrays))] = odd_array(rng)
        return lambda path: np.savez(path, **arrays)
    if source.suffix == ".pt":
        import torch

        content = odd_content(torch.load(source, weights_only=True), rng)
        return lambda path: torch.save(content, path)
    if source.suffix == ".safetensors":
        from safetensors import safe_open
        from safetensors.numpy import load_file, save_file

        with safe_open(source, framework="np") as file:
            metadata = file.metadata()
        held = load_file(source)
        array = odd_array(rng)
        if array.dtype.kind in "iuf?":
            held[rng.choice([*held, "x", "99_7", "1_"])] = array
        if metadata and rng.random() < 0.5:
            metadata["equipoise"] = json.dumps(mutate(json.loads(metadata["equipoise"]), rng))
        return lambda path: save_file(held, path, metadata)
    return None


def squeezed(data: bytes, rng: Random) -> tuple[bytes, str]:
    """The bytes compressed, and the suffix."""
    if rng.random() < 0.5:
        return gzip.compress(data, 1, mtime=0), ".gz"
    import zstandard

    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data), ".zst"


def make(kind: str, source: Path, folder: Path, rng: Random) -> tuple[Path, bool]:
    """Write a damaged file; whether a check sum covers what was done to it."""
    path = folder / source.name
    victim, original = path, source
    if source.is_dir():
        shutil.copytree(source, path)
        victim = rng.choice(sorted(path.iterdir()))
        original = source / victim.name
    data = original.read_bytes()
    writer = structured(original, rng) if rng.random() < 0.3 else None
    if writer is not None:
        writer(victim)
        return path, False
    how = rng.choice(BYTES)
    if not source.is_dir() and rng.random() < 0.12:
        packed, suffix = squeezed(data, rng)
        path = path.with_name(path.name + suffix)
        path.write_bytes(how(packed, rng))
        return path, True
    victim.write_bytes(how(data, rng))
    return path, kind in SUMMED and victim.suffix in (".npz", ".pt")


def same(found: Any, sound: Any) -> bool:
    return found[0].shape == sound[0].shape and bool((found[0] == sound[0]).all()) and found[1] == sound[1]


def one(seed: int, originals: dict[str, Path], sound: dict[str, Any], folder: Path) -> tuple[str, str | None]:
    """Make and read the file of a seed: what came of it, and what is wrong with that."""
    rng = Random(seed)
    kind = rng.choice([*LOADS, *PLACEMENTS])
    placement = kind.startswith("placement")
    try:
        path, summed = make(kind, originals[kind], folder, rng)
    except (TypeError, ValueError, OverflowError) as error:  # what a library would not write
        return f"not written ({type(error).__name__})", None
    name = None
    if rng.random() < 0.6:
        name = find_format(
            originals[kind], PLACEMENT_FORMATS if placement else LOAD_FORMATS, None, "any"
        ).name
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    there = sorted(entry.name for entry in folder.iterdir())
    fault = None
    started = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 6 * SECONDS)
    try:
        found = read(path, placement, name)
        result = "opened"
        if summed and not same(found, sound[kind]):
            fault = "a changed count was accepted"
    except EquipoiseError as error:
        result = f"refused ({type(error).__name__})"
        if "\n" in str(error) or len(str(error)) > 1000:
            fault = f"not one line: {error}"
    except Hang:
        result, fault = "hang", f"no end after {6 * SECONDS} s"
    except BaseException:
        result, fault = "raised", traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.monotonic() - started
    if seconds > SECONDS and fault is None:
        fault = f"took {seconds:.1f} s"
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if growth > GROWTH and fault is None:
        fault = f"grew by {growth >> 10} MB"
    if sorted(entry.name for entry in folder.iterdir()) != there and fault is None:
        fault = "left a file behind"
    return result, None if fault is None else f"seed {seed}, {kind}, {path.name}, format {name}: {fault}"


def worker(first: int, count: int, step: int, deadline: float, answers: Any) -> None:
    """Go through the seeds ``first, first + step, ...``; what came of each goes to ``answers``."""

    def stop(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    np.seterr(all="raise", under="ignore")
    with tempfile.TemporaryDirectory() as name:
        os.environ["TMPDIR"] = str(Path(name, "temporary"))
        tempfile.tempdir = None
        Path(name, "temporary").mkdir()
        folder = Path(name, "sound")
        folder.mkdir()
        originals = {kind: samples.LOADS[kind](folder) for kind in LOADS}
        originals |= {kind: samples.write_placement(folder, kind.split()[1]) for kind in PLACEMENTS}
        sound = {kind: read(path, kind.startswith("placement"), None) for kind, path in originals.items()}
        load_trace(originals["stat_pt"])  # so that what torch itself takes is not counted
        counts: Counter[str] = Counter()
        slowest = 0.0
        for seed in range(first, first + count * step, step):
            if time.monotonic() > deadline:
                break
            here = Path(name, "damaged")
            here.mkdir()
            started = time.monotonic()
            result, fault = one(seed, originals, sound, here)
            slowest = max(slowest, time.monotonic() - started)
            shutil.rmtree(here)
            counts[result] += 1
            if fault is not None:
                answers.put(("fault", fault))
            left = list(Path(name, "temporary").iterdir())
            if left:
                answers.put(("fault", f"seed {seed}: left {left} behind"))
                for path in left:
                    shutil.rmtree(path)
        answers.put(("done", counts, slowest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after this long")
    parser.add_argument("--seed", type=int, default=0, help="of the first file; the others follow")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    workers = min(options.workers, options.files)
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    started = time.monotonic()
    deadline = started + 60 * options.minutes
    processes = [
        context.Process(
            target=worker,
            args=(options.seed + index, -(-(options.files - index) // workers), workers, deadline, answers),
        )
        for index in range(workers)
    ]
    for process in processes:
        process.start()
    counts: Counter[str] = Counter()
    faults, done, slowest, largest = 0, 0, 0.0, 0
    while done < workers:
        try:
            answer = answers.get(timeout=1)
        except Exception:
            if not any(process.is_alive() for process in processes):
                break
            continue
        if answer[0] == "fault":
            faults += 1
            print(answer[1], flush=True)
        else:
            done += 1
            counts += answer[1]
            slowest, largest = max(slowest, answer[2]), max(largest, answer[3])
    for process in processes:
        process.join()
        if process.exitcode:
            faults += 1
            print(f"a process died with status {process.exitcode}")
    seconds = time.monotonic() - started
    print(f"{counts.total():,} files in {seconds:.0f} s by {workers} processes; {faults} faults")
    print(f"slowest file {slowest:.2f} s, largest process {largest:,} MB")
    for result, number in counts.most_common():
        print(f"  {number:>7,} {result}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
