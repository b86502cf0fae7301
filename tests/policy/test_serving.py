"""Planning beside a serving loop: threads, forked workers, read-only installs."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import equipoise
from equipoise import Problem, Topology, policies
from equipoise.planning.pipeline import _pack_layers
from equipoise.planning.replicate import _replicate_layers
from equipoise.policy.ensemble import Ensemble
from problems import loads_of

NAMES = ("greedy", "chunked", "ensemble", "robust")
TOPOLOGY = Topology(4, 6)


def loads(seed: int) -> np.ndarray:
    return loads_of("log-normal", (2, 4, 16), seed)


def run(code: str, *arguments: str, **changes: str) -> str:
    """Run code in a process of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **changes},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_several_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_NUM_THREADS", "3")
    jobs = [(name, seed) for seed in range(12) for name in NAMES]
    expected = [policies[name].place(Problem.of(loads(seed), TOPOLOGY, seed=seed)) for name, seed in jobs]
    barrier = threading.Barrier(8)

    def plan(job: tuple[str, int]) -> np.ndarray:
        name, seed = job
        return policies[name].place(Problem.of(loads(seed), TOPOLOGY, seed=seed))

    with ThreadPoolExecutor(8, initializer=barrier.wait) as pool:
        for found, wanted in zip(pool.map(plan, jobs * 3), expected * 3, strict=True):
            assert np.array_equal(found, wanted)


# A parent that has planned (so its threads exist) and goes on planning while it forks.
FORKS = """
import os, sys, threading, warnings
import numpy as np
from equipoise import Problem, policies
from test_serving import NAMES, TOPOLOGY, loads

warnings.simplefilter("ignore")  # Python 3.12 on warns of forks beside threads, which is what this is about
expected = {name: policies[name].place(Problem.of(loads(1), TOPOLOGY)) for name in NAMES}
stop = threading.Event()

def keep_planning():
    while not stop.is_set():
        for name in NAMES:
            policies[name].place(Problem.of(loads(2), TOPOLOGY))

thread = threading.Thread(target=keep_planning)
thread.start()
failures = 0
for child in range(6):
    pid = os.fork()
    if pid == 0:
        same = all(np.array_equal(policies[n].place(Problem.of(loads(1), TOPOLOGY)), expected[n]) for n in NAMES)
        os._exit(0 if same else 1)
    failures += os.waitpid(pid, 0)[1] != 0
stop.set()
thread.join()
print("failures", failures)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_workers() -> None:
    assert run(FORKS, EQUIPOISE_NUM_THREADS="3").split() == ["failures", "0"]


def test_a_pool_of_forked_processes() -> None:
    code = """
import multiprocessing, numpy as np
from equipoise import Problem, policies
from test_serving import TOPOLOGY, loads

def plan(seed):
    return policies["robust"].place(Problem.of(loads(seed), TOPOLOGY))

if __name__ == "__main__":
    here = [plan(seed) for seed in range(4)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        there = pool.map(plan, range(4))
    print(all(np.array_equal(a, b) for a, b in zip(here, there)))
"""
    assert run(code, EQUIPOISE_NUM_THREADS="2").strip() == "True"


@pytest.fixture
def switches_only_when_released() -> Iterator[None]:
    """Nobody takes the GIL from a thread that does not let go of it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("switches_only_when_released")
def test_a_planning_thread_does_not_hold_up_others() -> None:
    num_layers, num_slots, num_ranks = 200, 288, 32
    rows = np.random.default_rng(0).integers(1, 1 << 30, (num_layers, 256))
    phy2log = np.empty((num_layers, num_slots), np.int64)
    arguments = (rows, num_ranks, Ensemble().recipe, 0, phy2log)
    _pack_layers(0, 1, *arguments)  # compiled
    counted = [0]
    done = threading.Event()

    def count() -> None:
        while not done.is_set():
            counted[0] += 1
            time.sleep(0)  # lets go of the GIL; gets it back only if the planning thread has let go too

    counter = threading.Thread(target=count)
    counter.start()
    try:
        progress = 0
        for _ in range(50):  # a kernel that held the GIL would give no progress however often it ran
            before = counted[0]
            _pack_layers(0, num_layers, *arguments)
            progress += counted[0] - before
            if progress >= 100:
                break
    finally:
        done.set()
        counter.join()
    assert progress >= 100


def test_every_kernel_releases_the_gil() -> None:
    import importlib
    import pkgutil

    from numba.core.registry import CPUDispatcher

    found = 0
    for room in ("planning", "search"):
        package = importlib.import_module(f"equipoise.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            if "torch" in module.name and "torch" not in sys.modules:
                continue
            for value in vars(importlib.import_module(f"equipoise.{room}.{module.name}")).values():
                if isinstance(value, CPUDispatcher):
                    found += 1
                    assert value.targetoptions["nogil"], value
    assert found > 20
    assert _replicate_layers.targetoptions["nogil"]


READ_ONLY = """
import sys
import numpy as np
import equipoise

assert equipoise.__file__.startswith(sys.argv[1]), equipoise.__file__
try:
    open(sys.argv[1] + "/equipoise/new", "w")
    sys.exit("the folder can be written to, so this shows nothing")
except OSError:
    pass
weight = np.array([[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86]])
print(equipoise.rebalance_experts(weight, 16, 4, 2, 8, policy="greedy")[0].tolist())
"""
EXPECTED = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1]]


@pytest.fixture
def read_only_install() -> Iterator[Path]:
    """A copy of the package without compiled kernels, in a folder that nobody may write to."""
    top = Path(tempfile.mkdtemp(prefix="equipoise-read-only-"))
    shutil.copytree(
        Path(equipoise.__file__).parent, top / "equipoise", ignore=shutil.ignore_patterns("__pycache__")
    )
    folders = [top, *(path for path in top.rglob("*") if path.is_dir())]
    for path in top.rglob("*.py"):
        path.chmod(0o444)
    for folder in folders:
        folder.chmod(0o555)
    yield top
    for folder in folders:
        folder.chmod(0o755)
    shutil.rmtree(top)


def obey_permissions() -> None:
    """Take from root, in a new process, the right to write where permissions say no."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    drop_capability, dac_override = 24, 1
    if prctl(drop_capability, dac_override, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="root is hemmed in as Linux does it")
def test_a_read_only_install_without_a_home_directory(read_only_install: Path) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("NUMBA", "XDG", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(read_only_install)],
        env={**env, "HOME": str(read_only_install / "none"), "PYTHONPATH": str(read_only_install)},
        preexec_fn=obey_permissions if os.geteuid() == 0 else None,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.stdout.strip() == str(EXPECTED), done.stderr
    assert not list(read_only_install.rglob("*.nb*"))
