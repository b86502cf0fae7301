"""A sweep of many points with Ray and without, undisturbed and with the driver and a worker killed on the way.

    python benchmarks/bench_sweep.py [--points 2000] [--workers 2]

The four must write the same results, byte for byte; prints the time of each and how often points were tried.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import equipoise as eq

SPEC = """
[loads.steady]
path = "steady.safetensors"
[loads.drifting]
path = "drifting.safetensors"
[grid]
ranks = [2, 4]
redundant = [0, 4]
policy = ["greedy", "robust"]
interval = [2, 4]
history = 4
seed = {seeds}
[cost]
model = "deepseek-v2-lite"
"""
EACH_SEED = 2 * 2 * 2 * 2 * 2


def main(points: int, workers: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="equipoise-sweep-"))
    for name, drift in (("steady", 0.0), ("drifting", 0.2)):
        trace = eq.synthetic_trace(2, 12, 12, drift=drift, tokens_per_window=500, top_k=2)
        eq.save_trace(trace, folder / f"{name}.safetensors")
    (folder / "grid.toml").write_text(SPEC.format(seeds=list(range(-(-points // EACH_SEED)))))
    results = set()
    for place in ("local", "ray"):
        for kills in (False, True):
            out = folder / f"{place}{'-killed' if kills else ''}"
            started = time.perf_counter()
            if kills:
                _run(folder, out, place, workers, lambda driver: driver.kill(), after=100)
                _run(folder, out, place, workers, lambda driver: _kill_a_worker(driver.pid), after=200)
            else:
                _run(folder, out, place, workers)
            seconds = time.perf_counter() - started
            attempts = np.array(pq.read_table(out / "clocks.parquet").column("attempts"))
            results.add((out / "results.parquet").read_bytes())
            runs = (out / "journal.jsonl").read_bytes().count(b'"key"')
            print(
                f"{out.name:13} {len(attempts):,} points, {seconds:6.1f} s, "
                f"{1000 * seconds / len(attempts):5.1f} ms each; {(attempts > 1).sum()} tried again, "
                f"{runs:,} finished",
                flush=True,
            )
    shutil.rmtree(folder)
    print("the same results" if len(results) == 1 else "RESULTS DIFFER")
    sys.exit(len(results) != 1)


def _command(folder: Path, out: Path, place: str, workers: int) -> list[str]:
    command = [sys.executable, "-m", "equipoise", "sweep", folder / "grid.toml", "-o", out, "--on", place]
    return [str(part) for part in [*command, "--workers", workers]]


def _run(
    folder: Path,
    out: Path,
    place: str,
    workers: int,
    disturb: Callable[..., None] | None = None,
    after: int = 0,
) -> None:
    """Sweep; once so many points are finished, do something to the driver."""
    command = _command(folder, out, place, workers)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as driver:
        if disturb is not None:
            _wait_for_lines(out, after)
            disturb(driver)
    if disturb is None and driver.returncode:
        sys.exit(f"the sweep ended with {driver.returncode}")


def _wait_for_lines(out: Path, number: int) -> None:
    journal = out / "journal.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n{") < number:
        time.sleep(0.05)


def _kill_a_worker(session: int) -> None:
    """Kill a process of the session that replays points."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            words = (entry / "cmdline").read_bytes()
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and (b"spawn_main" in words or words.startswith(b"ray::Worker")):
                os.kill(int(entry.name), signal.SIGKILL)
                return
    raise RuntimeError("no worker was found")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.points, arguments.workers)
