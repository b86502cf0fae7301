"""Writing: never over what is read, never half a file, one line when the disk is full, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import equipoise
import samples
from equipoise import FileAccessError, load_placement, load_trace, save_placement, save_trace
from equipoise.formats.output import (
    PREFIX,
    check_writable,
    locked_file,
    locked_folder,
    sweep,
    write_file,
)

fcntl = pytest.importorskip("fcntl")


def recording(folder: Path) -> Path:
    path = folder / "t.safetensors"
    save_trace(equipoise.synthetic_trace(2, 16, num_windows=6), path)
    return path


def ways_to(path: Path) -> dict[str, Path]:
    """Other names of one file."""
    folder = path.parent
    (folder / "soft.safetensors").symlink_to(path)
    (folder / "hard.safetensors").hardlink_to(path)
    (folder / "sub").mkdir()
    (folder / "house").symlink_to(folder)
    return {
        "itself": path,
        "symbolic link": folder / "soft.safetensors",
        "hard link": folder / "hard.safetensors",
        "dots": folder / "sub" / ".." / path.name,
        "linked folder": folder / "house" / path.name,
    }


COMMANDS: dict[str, Callable[[Path, Path], tuple[Any, ...]]] = {
    "plan": lambda source, out: ("plan", source, "--ranks", 4, "--format", "equipoise", "-o", out),
    "convert": lambda source, out: ("convert", source, out),
    "replay --html": lambda source, out: (
        *("replay", source, "--ranks", 4, "--policies", "greedy", "--interval", 2, "--history", 2),
        *("--html", out),
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("way", ["itself", "symbolic link", "hard link", "dots", "linked folder"])
def test_the_recording_is_never_the_output(command: str, way: str, run: Any, tmp_path: Path) -> None:
    source = recording(tmp_path)
    before = source.read_bytes()
    code, out, err = run(*COMMANDS[command](source, ways_to(source)[way]))
    assert (code, out) == (2, "")
    assert "is a file that is read" in err
    assert source.read_bytes() == before


def test_a_file_of_a_recordings_folder_is_not_the_output_either(run: Any, tmp_path: Path) -> None:
    folder = samples.trtllm_statistics(tmp_path)
    before = (folder / "rank1.safetensors").read_bytes()
    code, _, err = run("convert", folder, folder / "rank1.safetensors", "--to", "equipoise")
    assert code == 2
    assert "is a file that is read" in err
    assert (folder / "rank1.safetensors").read_bytes() == before
    assert run("convert", folder, folder / "new.safetensors")[0] == 0


def test_the_current_placement_is_updated_only_if_told_to(run: Any, tmp_path: Path) -> None:
    source = recording(tmp_path)
    current = tmp_path / "p.json"
    save_placement(equipoise.contiguous_placement(2, 16, 4, 20), current, "sglang")
    before = current.read_bytes()
    plan = ("plan", source, "--ranks", 4, "--redundant", 4, "--current", current, "-o", current)
    code, _, err = run(*plan)
    assert code == 2
    assert "or say --force to replace it" in err
    assert current.read_bytes() == before
    assert run(*plan, "--force")[0] == 0
    assert current.read_bytes() != before
    assert load_placement(current, num_ranks=4).num_slots == 20
    # --force is about the current placement alone.
    code, _, err = run("plan", source, "--ranks", 4, "--format", "equipoise", "-o", source, "--force")
    assert code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "T", "--ranks", 4, "-o", "p.txt"),
        ("plan", "T", "--ranks", 4, "--format", "trtllm", "-o", "p.json"),
        ("convert", "T", "t.json"),
        ("convert", "T", "t.npy", "--to", "array"),
        ("replay", "T", "--ranks", 4, "--html", "page.txt"),
        ("replay", "T", "--ranks", 4, "--figure", "page.html"),
    ],
)
def test_the_suffix_of_every_output_is_checked(arguments: Any, run: Any, tmp_path: Path) -> None:
    source = recording(tmp_path)
    there = [
        tmp_path / part if isinstance(part, str) and "." in part and not part.startswith("-") else part
        for part in arguments
    ]
    code, out, err = run(*(source if part == "T" else part for part in there))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_standard_output_is_not_the_recording(tmp_path: Path) -> None:
    source = samples.stat_json(tmp_path)
    before = source.read_bytes()
    for arguments in (("plan", source, "--ranks", "2", "--json"), ("inspect", source, "--json")):
        with source.open("ab") as file:
            done = subprocess.run(
                command(*arguments), env=environment(), stdout=file, stderr=subprocess.PIPE, text=True
            )
        assert done.returncode == 2
        assert "standard output goes to" in done.stderr
        assert source.read_bytes() == before


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(equipoise.__file__).parents[1])}


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-c", "from equipoise.cli import main; main()", *map(str, arguments)]


QUOTA = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600));"


@pytest.mark.parametrize("key", ["sglang", "sglang.pt", "trtllm", "vllm-ascend", "vllm", "equipoise"])
def test_a_full_disk_is_one_line_for_every_placement(key: str, tmp_path: Path) -> None:
    """A limit on the size of files stands for a quota; what was there stays."""
    target = tmp_path / samples.FILES[key]
    target.write_bytes(b"old")
    name = key.split(".")[0]
    code = (
        f"{QUOTA} import equipoise as eq; from equipoise.errors import FileAccessError\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "placement = eq.contiguous_placement(40, 16, 4)\n"
        f"try: eq.save_placement(placement, {str(target)!r}, {name!r})\n"
        "except FileAccessError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{target}: cannot be written: File too large\n"
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("target", ["out.safetensors", "out.npz"])
def test_a_full_disk_is_one_line_and_two_for_the_command(target: str, tmp_path: Path) -> None:
    source = recording(tmp_path)
    code = f"{QUOTA} from equipoise.cli import main; main()"
    arguments = (
        "convert",
        str(source),
        str(tmp_path / target),
        "--to",
        "array" if "npz" in target else "equipoise",
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / target}: cannot be written: File too large\n"
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_folder_that_is_not_there_and_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.json")
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "x.json", "does not exist"),
        (tmp_path / "fifo.json", "is not a plain file"),
        (Path("/dev/null"), "is not a plain file"),
    ):
        for write in (check_writable, lambda path: write_file(path, b"x")):
            with pytest.raises(FileAccessError, match=words):
                write(path)
    assert [path.name for path in tmp_path.iterdir()] == ["fifo.json"]


def test_what_killed_processes_left_is_swept_and_what_runs_is_not(tmp_path: Path) -> None:
    leftover = tmp_path / f"{PREFIX}abcd1234"
    leftover.write_text("half")
    mine = tmp_path / f"{PREFIX}my-notes.json"
    mine.write_text("a name of somebody else")
    handle, held = locked_file(tmp_path)
    write_file(tmp_path / "new.json", b"{}")
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, held.name, "new.json"}
    os.close(handle)
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, "new.json"}


def test_writers_at_the_same_time_do_not_sweep_each_other(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def write(number: int) -> None:
        try:
            for turn in range(40):
                write_file(tmp_path / f"{number}.bin", bytes([number]) * (1000 + turn))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number}.bin" for number in range(4)]


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """Killed at a dozen instants; the long run is benchmarks/kill_writers.py."""
    target = tmp_path / "t.npz"
    traces = [equipoise.synthetic_trace(4, 64, num_windows=20, seed=seed) for seed in range(2)]
    save_trace(traces[0], target)
    whole = [trace.counts.tolist() for trace in traces]
    code = (
        "import equipoise as eq\n"
        "traces = [eq.synthetic_trace(4, 64, num_windows=20, seed=seed) for seed in range(2)]\n"
        "print('ready', flush=True)\n"
        f"while True:\n for trace in traces: eq.save_trace(trace, {str(target)!r}, 'array')\n"
    )
    for turn in range(12):
        child = subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.007 * turn)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert load_trace(target).counts.tolist() in whole
    save_trace(traces[0], target)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    np.testing.assert_array_equal(load_trace(target).counts, traces[0].counts)


def test_a_folder_that_is_swept_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process sweeps at the worst moments: before the folder is opened, and before it is locked."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plain, made = os.open, []

    def opened(name: str, *flags: int) -> int:
        made.append(name)
        if len(made) == 1:
            os.rmdir(name)
        handle = plain(name, *flags)
        if len(made) == 2:
            os.rmdir(name)
        return handle

    monkeypatch.setattr("equipoise.formats.output.os.open", opened)
    handle, folder = locked_folder()
    os.close(handle)
    assert len(made) == 3
    assert [folder] == list(tmp_path.iterdir())
