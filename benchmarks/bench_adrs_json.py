"""Read a full-size expert-load JSON: time, and the largest memory the process took.

The file is synthetic: 1,200 steps x 58 layers x 256 experts of multinomial counts over skewed shares, in the
layout that the ADRS benchmark publishes. Each case runs in a process of its own.

    python benchmarks/bench_adrs_json.py
    python benchmarks/bench_adrs_json.py --file expert-load.json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

STEPS, LAYERS, EXPERTS = 1200, 58, 256
TOKENS = 200_000_000
"""picks per layer and step: counts of six digits, which with the indentation make the file 250 MB"""


def generate(path: Path, steps: int) -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(EXPERTS, 2.0), size=LAYERS)
    with path.open("w") as file:
        file.write('{"load_history": [')
        for step in range(steps):
            table = rng.multinomial(TOKENS, shares).tolist()
            file.write((", " if step else "") + json.dumps({"logical_expert_load": table}, indent=2))
        file.write("]}")


def read(path: Path, window_steps: int | None) -> None:
    from equipoise import load_trace

    calls: list[int] = []
    start = time.perf_counter()
    trace = load_trace(path, window_steps=window_steps, progress=lambda done, size: calls.append(done))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{window_steps or 1:>12} {trace.counts.shape!s:>20} {seconds:>9.1f} {peak:>9.0f} {len(calls):>15}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, help="read this file instead of a generated one")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the generated file")
    parser.add_argument("--window-steps", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.window_steps is not None:
        read(arguments.file, arguments.window_steps or None)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.file or Path(folder) / "load.json"
        if arguments.file is None:
            generate(path, arguments.steps)
        print(f"{path.stat().st_size / 1e6:.0f} MB")
        print(f"{'window steps':>12} {'[T, L, E]':>20} {'seconds':>9} {'peak MiB':>9} {'progress calls':>15}")
        for window_steps in (0, 100):
            command = [sys.executable, __file__, "--file", str(path), "--window-steps", str(window_steps)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
