"""Compiled kernels on disk: whatever happens to the files, kernels run, run right, and are kept again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numba.core import config

from equipoise.planning import cache
from equipoise.planning.kernel import kernel


def tripled(x):
    return 3 * x + 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    (folder,) = cache.cache_folders(Path(__file__))
    assert folder.parent == tmp_path
    return folder


def compiled_now(argument: int = 5) -> bool:
    """Use a kernel as a new process would; whether it had to be compiled."""
    fresh: Any = kernel(tripled)
    assert fresh(argument) == 3 * argument + 1
    (hits, misses) = (sum(fresh.stats.cache_hits.values()), sum(fresh.stats.cache_misses.values()))
    assert hits + misses == 1
    return misses == 1


def files(folder: Path) -> dict[str, Path]:
    """The two files of the one entry that is there, by suffix."""
    found = {path.suffix[1:]: path for path in folder.iterdir() if path.suffix in (".nbi", ".nbc")}
    assert set(found) == {"nbi", "nbc"}
    return found


def test_kept_and_found(folder: Path) -> None:
    assert compiled_now()
    assert not compiled_now()
    assert len(files(folder)) == 2
    assert not list(folder.glob("*.tmp"))


def damages() -> list[tuple[str, Callable[[bytes, random.Random], bytes]]]:
    return [
        ("empty", lambda content, rng: b""),
        ("cut", lambda content, rng: content[: rng.randrange(len(content))]),
        ("garbage", lambda content, rng: rng.randbytes(len(content))),
        ("longer", lambda content, rng: content + rng.randbytes(rng.randrange(1, 100))),
        ("a flipped bit", flipped),
    ]


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize(("kind", "damage"), damages(), ids=[kind for kind, _ in damages()])
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_damage_is_compiled_anew_and_mended(folder: Path, kind: str, damage: Any, suffix: str) -> None:
    rng = random.Random(f"{kind} {suffix}")
    assert compiled_now()
    for _ in range(8):
        path = files(folder)[suffix]
        content = path.read_bytes()
        path.write_bytes(damage(content, rng))
        assert path.read_bytes() != content
        assert compiled_now()
        assert not compiled_now()


def test_no_flipped_bit_is_executed(folder: Path) -> None:
    """A thousand bits, all over both files: an entry that was changed is never handed out."""
    assert compiled_now()
    fresh: Any = kernel(tripled)
    fresh(1)
    (sig,) = fresh.signatures
    key = cache._key(sig, fresh.targetctx.codegen())
    stem = fresh._cache._stem(key)
    rng = random.Random(0)
    assert cache._read(folder, stem, key, Path(__file__)) is not None
    for path in files(folder).values():
        content = path.read_bytes()
        for _ in range(500):
            path.write_bytes(flipped(content, rng))
            assert cache._read(folder, stem, key, Path(__file__)) is None
        path.write_bytes(content)
    assert cache._read(folder, stem, key, Path(__file__)) is not None


def test_an_entry_under_the_name_of_another_is_not_taken(folder: Path) -> None:
    assert compiled_now(5)
    whole = {suffix: path.read_bytes() for suffix, path in files(folder).items()}
    places = files(folder)
    fresh: Any = kernel(tripled)
    assert fresh(0.5) == 2.5  # another entry: of other argument types
    for path in folder.iterdir():
        if path.suffix[1:] in whole and path not in places.values():
            path.write_bytes(whole[path.suffix[1:]])
    again: Any = kernel(tripled)
    assert again(0.5) == 2.5
    assert sum(again.stats.cache_misses.values()) == 1


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_no_file_in_a_files_place(folder: Path, suffix: str) -> None:
    """A FIFO would be waited for without end; it and a link to nowhere are replaced, a folder stays in the way."""
    assert compiled_now()
    place = files(folder)[suffix]
    place.unlink()
    os.mkfifo(place)
    assert compiled_now()
    assert not compiled_now()
    place.unlink()
    place.symlink_to(place)
    assert compiled_now()
    assert not compiled_now()
    place.unlink()
    place.mkdir()
    assert compiled_now()
    assert compiled_now()
    place.rmdir()
    assert compiled_now()
    assert not compiled_now()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system does not list open files")
def test_no_file_stays_open(folder: Path) -> None:
    def use() -> int:
        assert compiled_now()
        place = files(folder)["nbi"]
        place.unlink()
        place.mkdir()
        assert compiled_now()
        place.rmdir()
        return len(os.listdir("/proc/self/fd"))

    before = use()
    assert use() == before


def test_what_killed_processes_left_is_cleaned_up(folder: Path) -> None:
    assert compiled_now()
    for suffix, path in files(folder).items():
        (folder / f"{path.name}.12345.tmp").write_bytes(b"half")
        assert suffix in path.name
    files(folder)["nbc"].unlink()
    assert compiled_now()
    assert not list(folder.glob("*.tmp"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_files_of_another_user_are_not_executed(folder: Path, suffix: str) -> None:
    assert compiled_now()
    os.chown(files(folder)[suffix], 12345, 12345)
    assert compiled_now()
    assert not compiled_now()


def test_a_file_in_place_of_the_folder(folder: Path, tmp_path: Path) -> None:
    folder.write_text("in the way")
    assert compiled_now()
    assert compiled_now()
    assert folder.read_text() == "in the way"


MODULE = """
from equipoise.planning.kernel import kernel

@kernel
def inner(x):
    return x + 1

@kernel
def outer(x):
    total = 0
    for i in range(x):
        total += inner(i)
    return total
"""
USE = """
import json, os, resource, signal, sys, time
from numba.core import event
from equipoise.planning import cache
import compiled

class Counter(event.Listener):
    seen = 0
    def on_start(self, event):
        self.seen += 1
        eval(sys.argv[1])
    def on_end(self, event):
        pass

eval(sys.argv[2])
with event.install_listener("numba:compile", Counter()) as counter:
    print(json.dumps([compiled.outer(4), counter.seen]))
"""


def start(folder: Path, when_compiling: str = "0", before: str = "0") -> subprocess.Popen[str]:
    """A process that uses two kernels, one of which calls the other."""
    (folder / "compiled.py").write_text(MODULE)
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-c", USE, when_compiling, before],
        env={**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How many kernels it compiled, and what it said."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    result, compiled = json.loads(out)
    assert result == 10
    return compiled, err


def test_processes_that_start_together_compile_each_kernel_once(tmp_path: Path) -> None:
    found = [end(process) for process in [start(tmp_path) for _ in range(5)]]
    assert sum(compiled for compiled, _ in found) == 2
    assert {err for _, err in found} == {""}


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    killed = start(tmp_path, when_compiling="os.kill(os.getpid(), 9)")
    killed.communicate(timeout=240)
    assert killed.returncode == -signal.SIGKILL
    assert end(start(tmp_path)) == (2, "")
    assert end(start(tmp_path)) == (0, "")


def test_a_stopped_process_is_not_waited_for_without_end(tmp_path: Path) -> None:
    stopped = start(tmp_path, when_compiling="(print('!', flush=True), time.sleep(600))")
    try:
        assert stopped.stdout is not None
        assert stopped.stdout.readline() == "!\n"
        assert end(start(tmp_path, before="setattr(cache, 'PATIENCE', 0.1)")) == (2, "")
    finally:
        stopped.kill()
        stopped.communicate()
    assert end(start(tmp_path)) == (0, "")


@pytest.mark.parametrize("most", [10, 1000])
def test_a_full_disk_is_said_once(tmp_path: Path, most: int) -> None:
    """A limit on the size of files stands for it: the system refuses both in the middle of a write."""
    full = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))"
    compiled, err = end(start(tmp_path, before=full))
    assert compiled == 2
    assert err.count("\n") == 1
    assert err.startswith("compiled kernels are not kept: ")
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    assert end(start(tmp_path)) == (2, "")
    assert end(start(tmp_path)) == (0, "")
