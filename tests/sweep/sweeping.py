"""What the tests of sweeps share: small recordings, specs, a policy of another package, the command as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import equipoise as eq

GRID = """
deadline_s = 120

[loads.steady]
path = "steady.safetensors"

[loads.drifting]
path = "drifting.safetensors"

[grid]
ranks = [2, 4]
redundant = [0, 4, 5]
policy = ["greedy", "robust"]
interval = [2, 4]
history = 2
seed = [0, 1]

[cost]
model = "deepseek-v2-lite"
"""
POINTS, REFUSED = 96, 32  # 17 experts' slots are for no even number of ranks

POLICY = """
import os, signal, time
from pathlib import Path
from equipoise.policy.greedy import Greedy

class {name}(Greedy):
    def place(self, problem):
        {body}
        return super().place(problem)

policy = {name}()
"""


def recordings(folder: Path) -> None:
    for name, drift in (("steady", 0.0), ("drifting", 0.2)):
        trace = eq.synthetic_trace(2, 12, 10, drift=drift, seed=1, tokens_per_window=500, top_k=2)
        eq.save_trace(trace, folder / f"{name}.safetensors")


def spec(folder: Path, text: str = GRID) -> Path:
    recordings(folder)
    path = folder / "grid.toml"
    path.write_text(text)
    return path


def install(folder: Path, name: str, body: str) -> None:
    """A package with a policy, as another project would bring it."""
    (folder / f"{name}_package.py").write_text(POLICY.format(name=name.capitalize(), body=body))
    about = folder / f"{name}_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[equipoise.policies]\n{name} = {name}_package:policy\n")


def environment(folder: Path) -> dict[str, str]:
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "120"}


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "equipoise", "sweep", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        command, env=environment(folder), cwd=folder, text=True, start_new_session=True, **pipes
    )


def lines(journal: Path) -> list[dict]:
    """The outcomes that a journal holds, each as often as it is there; a line that is cut counts as missing."""
    found = []
    for line in journal.read_bytes().splitlines() if journal.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def wait_for(condition, what: str, limit_s: float = 180.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, f"waited {limit_s:g} s for {what}"
        time.sleep(0.02)


def processes_of(session: int) -> list[int]:
    """Processes that are alive in a session of processes; agents of Ray's stay for a minute after it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                agent = b"Agent" in (entry / "cmdline").read_bytes()
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z" and not agent:
                found.append(int(entry.name))
    return found
