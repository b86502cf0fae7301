"""TraceWriter: what was added is read back, whatever happens to the process, the disk and the files."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise
import samples
from equipoise import ArgumentError, FileAccessError, FormatError, TraceWriter, load_trace
from equipoise.formats import read_trace, segments
from equipoise.formats import writer as writing
from equipoise.formats.segments import segment_files

L, E = 2, 4
fcntl = pytest.importorskip("fcntl")


def window(number: int) -> np.ndarray:
    """Counts ``[L, E]`` that tell their number."""
    return np.arange(L * E).reshape(L, E) + 100 * number + 1


def numbers(folder: Path) -> list[int]:
    """The numbers of the windows that a recording holds; fails where one is not whole."""
    counts = load_trace(folder).counts
    found = [int(part[0, 0] - 1) // 100 for part in counts]
    np.testing.assert_array_equal(counts, [window(number) for number in found])
    return found


def record(folder: Path, which: range, **options: Any) -> None:
    with TraceWriter(folder, L, E, **options) as writer:
        for number in which:
            writer.add(window(number))


def notes(folder: Path) -> list[str]:
    return [finding.message for finding in read_trace(folder)[1]]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(equipoise.__file__).parents[1])}


WINDOWS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2**40), min_size=4, max_size=4),
        st.none() | st.integers(0, 1000),
        st.integers(1, 50),
        st.none() | st.sampled_from(["prefill", "decode", "mixed"]),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(WINDOWS, st.integers(1, 5), st.sets(st.integers(0, 11)), st.sampled_from([0.0, 60.0]))
def test_what_was_added_is_read_back(windows: Any, size: int, restarts: set[int], seconds: float) -> None:
    """Counts, steps and phases; segments of any size, the writer started anew at any place."""
    about: dict[str, Any] = {"layers": (3, 5), "num_model_layers": 9, "top_k": 2, "source": "test"}
    options = {**about, "segment_windows": size, "flush_seconds": seconds}
    with tempfile.TemporaryDirectory() as name:
        writer = TraceWriter(name, 2, 2, **options)
        for number, (counts, step, steps, phase) in enumerate(windows):
            if number in restarts:
                writer.close()
                writer = TraceWriter(name, 2, 2, **options)
            writer.add(np.reshape(counts, (2, 2)), step, steps, phase)
        writer.close()
        kept = [part for part in windows if any(part[0])]
        if not kept:
            with pytest.raises(FormatError, match="holds no window yet"):
                load_trace(name)
            return
        trace, findings = read_trace(name)
    assert trace.counts.tolist() == [np.reshape(part[0], (2, 2)).tolist() for part in kept]
    assert (trace.layers, trace.num_model_layers, trace.top_k, trace.source) == ((3, 5), 9, 2, "test")
    assert trace.steps is not None
    assert (trace.steps[1:, 0] >= trace.steps[:-1, 1]).all()
    assert np.diff(trace.steps, axis=1).ravel().tolist() == [part[2] for part in kept]
    tags = [part[3] for part in kept]
    assert trace.phases == (tuple(tag or "mixed" for tag in tags) if any(tags) else None)
    assert [finding for finding in findings if finding.kind == "reader"] == []


def test_steps_are_those_given_and_count_on_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        with TraceWriter(tmp_path, L, E) as writer:
            writer.add(window(0), step=100, steps=10)
            writer.add(window(1), steps=5)
            writer.add(np.zeros((L, E), dtype=int), steps=7)
            writer.add(window(2), step=200, steps=1.0)  # type: ignore[arg-type]
    trace = load_trace(tmp_path)
    assert trace.steps is not None
    first = [[100, 110], [110, 115], [200, 201]]
    assert trace.steps.tolist() == [*first, *([a + 101, b + 101] for a, b in first)]


def test_the_caller_may_go_on_counting_in_its_array(tmp_path: Path) -> None:
    counts = window(0)
    with TraceWriter(tmp_path, L, E) as writer:
        writer.add(counts)
        counts += 7
    assert numbers(tmp_path) == [0]


BAD_COUNTS = [
    np.ones((E, L)),
    np.ones((1, L, E)),
    np.ones(E),
    [[1, 2], [3]],
    -window(0),
    np.full((L, E), np.nan),
    np.full((L, E), np.inf),
    np.full((L, E), 0.5),
    np.full((L, E), 2.0**61),
    np.full((L, E), 2**54),
    np.zeros((0, E)),
    "text",
    None,
]


@pytest.mark.parametrize("counts", BAD_COUNTS, ids=range(len(BAD_COUNTS)))
def test_bad_counts_are_refused_and_leave_nothing(counts: Any, tmp_path: Path) -> None:
    with TraceWriter(tmp_path, L, E) as writer:
        with pytest.raises(ArgumentError):
            writer.add(counts)
        for step, steps in ((-1, 1), (0, 0), (0, 1.5), (0, np.nan), (0, np.inf), (1 << 60, 1)):
            with pytest.raises(ArgumentError):
                writer.add(window(0), step, steps)
        writer.add(window(7).astype(np.float32))
    assert numbers(tmp_path) == [7]
    with pytest.raises(ArgumentError, match="is closed"):
        writer.add(window(8))


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 0},
        {"num_experts": -1},
        {"layers": (1,)},
        {"layers": (2, 1)},
        {"top_k": 0},
        {"num_model_layers": 1},
        {"segment_windows": 0},
        {"flush_seconds": -1},
        {"flush_seconds": float("nan")},
        {"max_bytes": 1000},
    ],
)
def test_bad_arguments_are_refused_and_lock_nothing(options: Any, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError):
        TraceWriter(tmp_path, **{"num_layers": L, "num_experts": E, **options})
    record(tmp_path, range(1))


def test_the_largest_windows_that_are_taken_can_be_read(tmp_path: Path) -> None:
    largest = np.zeros((L, E), dtype=np.int64)
    largest[0, 0] = 2**56 - 2**10
    with TraceWriter(tmp_path, L, E) as writer:
        for _ in range(64):
            writer.add(largest)
    np.testing.assert_array_equal(load_trace(tmp_path).counts, [largest] * 64)


def test_a_restart_takes_up_the_last_segment(tmp_path: Path) -> None:
    for number in range(7):
        record(tmp_path, range(number, number + 1), segment_windows=3)
    assert [path.name for path in segment_files(tmp_path)] == [
        f"windows-{first:012}.safetensors" for first in (0, 3, 6)
    ]
    assert numbers(tmp_path) == list(range(7))


def test_other_layers_or_experts_are_refused(tmp_path: Path) -> None:
    record(tmp_path, range(1))
    before = sorted(tmp_path.iterdir())
    for shape, more in (((L, E + 1), {}), ((L + 1, E), {}), ((L, E), {"layers": (5, 6)})):
        with pytest.raises(FormatError, match="record to another folder"):
            TraceWriter(tmp_path, *shape, **more)
    assert sorted(tmp_path.iterdir()) == before
    record(tmp_path, range(1, 2))
    assert numbers(tmp_path) == [0, 1]


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_the_size_is_bounded_at_every_window_and_what_went_is_told(seconds: float, tmp_path: Path) -> None:
    limit = 18_000
    with TraceWriter(tmp_path, L, E, max_bytes=limit, flush_seconds=seconds) as writer:
        for number in range(400):
            writer.add(window(number))
            assert size_of(tmp_path) <= limit
    kept = numbers(tmp_path)
    assert kept == list(range(kept[0], 400))
    assert kept[0] > 0
    assert len(segment_files(tmp_path)) >= 3
    assert notes(tmp_path)[0].startswith(f"the first {kept[0]} windows are gone")
    record(tmp_path, range(400, 401), max_bytes=limit)
    assert numbers(tmp_path)[-1] == 400


def test_a_smaller_limit_shrinks_what_an_earlier_writer_left(tmp_path: Path) -> None:
    record(tmp_path, range(1000), segment_windows=200)
    assert size_of(tmp_path) > 20_000
    record(tmp_path, range(1000, 1001), max_bytes=20_000)
    assert size_of(tmp_path) <= 20_000
    assert numbers(tmp_path)[-1] == 1000


def test_inspect_tells_and_every_command_reads_the_folder(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "recording"
    with TraceWriter(folder, 3, 8, max_bytes=19_000, segment_windows=4) as writer:
        for seed in range(120):
            writer.add(samples.counts(seed, steps=1)[0], steps=3)
    code, out, err = run("inspect", folder, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    gone = 120 - told["windows"]
    assert told["findings"][0]["message"].startswith(f"the first {gone} windows are gone")
    assert told["steps"] == [3 * gone, 360]
    plan = ("plan", folder, "--ranks", 4, "--redundant", 4, "--format", "equipoise")
    code, _, err = run(*plan, "-o", tmp_path / "p.safetensors")
    assert code == 0, err  # which may say that kernels are compiled
    replay = ("replay", folder, "--ranks", 4, "--policies", "greedy", "--interval", 2, "--history", 2)
    assert run(*replay)[0] == 0
    assert run(*plan, "--seed", 1, "-o", tmp_path / "q.safetensors")[0] == 0
    code, _, err = run("compare", tmp_path / "p.safetensors", tmp_path / "q.safetensors", "--load", folder)
    assert code == 0, err
    assert run("convert", folder, tmp_path / "one.safetensors", "--from", "segments")[0] == 0
    np.testing.assert_array_equal(load_trace(tmp_path / "one.safetensors").counts, load_trace(folder).counts)
    code, _, err = run(*plan, "-o", segment_files(folder)[0])
    assert code == 2
    assert "is a file that is read" in err


def test_a_folder_that_holds_no_window_yet(run: Any, tmp_path: Path) -> None:
    with TraceWriter(tmp_path, L, E) as writer:
        writer.add(window(0))
        with pytest.raises(FormatError, match="holds no window yet"):
            load_trace(tmp_path)
        writer.flush()
        assert numbers(tmp_path) == [0]


def test_two_writers_are_refused(tmp_path: Path) -> None:
    first = TraceWriter(tmp_path, L, E)
    (tmp_path / "house").symlink_to(tmp_path)
    for way in (tmp_path, tmp_path / "house"):
        with pytest.raises(FileAccessError, match="by this process already"):
            TraceWriter(way, L, E)
    code = (
        "import sys, equipoise as eq\n"
        f"try: eq.TraceWriter({str(tmp_path)!r}, {L}, {E})\n"
        "except eq.FileAccessError as error: print(error)\n"
    )

    def said_by_another() -> str:
        done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
        assert done.stderr == ""
        return done.stdout

    assert "by another process" in said_by_another()
    first.add(window(0))
    first.close()
    first.close()
    assert said_by_another() == ""
    record(tmp_path, range(1, 2))
    assert numbers(tmp_path) == [0, 1]


def test_a_lock_ends_with_the_process_and_not_with_its_children(tmp_path: Path) -> None:
    """A child that outlives its killed parent holds nothing, and writes nothing through the parent's writer."""
    code = (
        "import os, sys, time, numpy as np, equipoise as eq\n"
        f"writer = eq.TraceWriter({str(tmp_path)!r}, {L}, {E}, flush_seconds=0)\n"
        f"writer.add(np.array({window(0).tolist()}))\n"
        "if os.fork() == 0:\n"
        f"    writer.add(np.array({window(1).tolist()})); writer.flush(); writer.close()\n"
        "    print(os.getpid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        with pytest.raises(FileAccessError, match="by another process"):
            TraceWriter(tmp_path, L, E)
        parent.kill()
        parent.wait()
        record(tmp_path, range(2, 3))
        assert numbers(tmp_path) == [0, 2]
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


WRITE_FOREVER = """
import itertools, numpy as np, equipoise as eq
writer = eq.TraceWriter({folder!r}, {L}, {E}, segment_windows=3, flush_seconds=0, max_bytes=60_000)
try:
    first = int(eq.load_trace({folder!r}).counts[-1, 0, 0] - 1) // 100 + 1
except eq.FormatError:
    first = 0
print("ready", flush=True)
for number in itertools.count(first):
    writer.add(np.arange({L} * {E}).reshape({L}, {E}) + 100 * number + 1)
    print(number, flush=True)
"""


def test_kill_at_any_instant(tmp_path: Path) -> None:
    """Every window that was added is there, whole, in order; the next writer goes on and removes leftovers."""
    rng = random.Random(0)
    code = WRITE_FOREVER.format(folder=str(tmp_path), L=L, E=E)
    last = -1
    for _ in range(12):
        child = subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        added = [int(child.stdout.readline()) for _ in range(rng.randrange(7))]
        time.sleep(rng.random() * 0.005)  # somewhere in the windows that follow
        child.kill()
        child.wait()
        child.stdout.close()
        found = numbers(tmp_path) if segment_files(tmp_path) else []
        assert found == list(range(found[0], found[-1] + 1)) if found else last == -1
        assert added == list(range(last + 1, last + 1 + len(added)))
        stored = found[-1] if found else -1
        assert stored >= max(added, default=last)
        last = stored
    assert last > 20
    record(tmp_path, range(last + 1, last + 2), segment_windows=3)
    left = [path.name for path in tmp_path.iterdir() if path not in segment_files(tmp_path)]
    assert left == [".equipoise-recording.lock"]


def test_reading_while_it_is_written_and_removed(tmp_path: Path) -> None:
    done = threading.Event()

    def write() -> None:
        options = {"segment_windows": 2, "flush_seconds": 0, "max_bytes": 21_000}
        with TraceWriter(tmp_path, L, E, **options) as writer:  # type: ignore[arg-type]
            for number in itertools.count():
                writer.add(window(number))
                if done.is_set() and number > 200:
                    return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        last, reads = -1, 0
        while reads < 40:
            if segment_files(tmp_path):
                found = numbers(tmp_path)
                assert found == list(range(found[0], found[-1] + 1))
                assert found[-1] >= last
                last, reads = found[-1], reads + 1
    finally:
        done.set()
        thread.join()
    assert numbers(tmp_path)[0] > 0


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise FileAccessError(path, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "write_file", full)


def test_a_full_disk_is_one_line_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "equipoise")
    writer = TraceWriter(tmp_path, L, E, segment_windows=4, flush_seconds=0)
    for number in range(6):  # the second segment is on the disk in part
        writer.add(window(number))
    with monkeypatch.context() as patched:
        fill_the_disk(patched)
        for number in range(6, 14):
            writer.add(window(number))
        assert [record.message.count("windows are not recorded") for record in caplog.records] == [1]
        assert writer.unwritten == 6  # 6, 7 of the second segment and all of the third; 12, 13 may still be
    assert numbers(tmp_path) == list(range(6))
    for number in range(14, 18):
        writer.add(window(number))
    writer.close()
    assert len(caplog.records) == 2
    assert "goes on; 6 windows were not written" in caplog.records[1].message
    assert numbers(tmp_path) == [*range(6), *range(12, 18)]
    told = ["6 windows could not be written when they were recorded (a full disk?)"]
    assert notes(tmp_path) == told
    record(tmp_path, range(18, 30), segment_windows=4)
    assert notes(tmp_path) == told


def test_a_disk_that_is_full_until_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(monkeypatch)
    with TraceWriter(tmp_path, L, E, segment_windows=4) as writer:
        for number in range(6):
            writer.add(window(number))
    assert writer.unwritten == 6
    assert len(caplog.records) == 1
    with pytest.raises(FormatError, match="holds no window yet"):
        load_trace(tmp_path)


def test_a_quota_does_not_stop_who_records(tmp_path: Path) -> None:
    """A limit on the size of files stands for a quota; then the folder goes away altogether."""
    code = (
        "import resource, signal, shutil, numpy as np, equipoise as eq\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"writer = eq.TraceWriter({str(tmp_path / 'r')!r}, {L}, {E}, segment_windows=50, flush_seconds=0)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200))\n"
        "for number in range(200):\n"
        f"    writer.add(np.arange({L * E}).reshape({L}, {E}) + 100 * number + 1)\n"
        f"    if number == 150: shutil.rmtree({str(tmp_path / 'r')!r})\n"
        "writer.close()\n"
        "print(writer.unwritten)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") <= 8
    assert "windows are not recorded" in done.stderr
    assert int(done.stdout) > 100


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_segment_is_left_out_and_said(place: int, tmp_path: Path) -> None:
    """Any flipped bit is seen; the windows of the others are all there."""
    rng = random.Random(place)
    record(tmp_path, range(9), segment_windows=3)
    victim = segment_files(tmp_path)[place]
    sound = victim.read_bytes()
    rest = [number for number in range(9) if number // 3 != place]
    for _ in range(40):
        data = bytearray(sound)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        victim.write_bytes(data)
        assert numbers(tmp_path) == rest
        assert any(f"left out 1 damaged segments ({victim.name}" in note for note in notes(tmp_path))
    victim.write_bytes(sound)
    assert notes(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 5000, samples])
def test_a_writer_goes_on_behind_a_damaged_segment(
    content: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record(tmp_path, range(5), segment_windows=3)
    last = segment_files(tmp_path)[-1]
    last.write_bytes(last.read_bytes()[:-1] if content is samples else content)
    record(tmp_path, range(9, 11), segment_windows=3)
    assert "recording goes on behind it" in caplog.text
    assert numbers(tmp_path) == [0, 1, 2, 9, 10]
    assert "left out 1 damaged segments" in notes(tmp_path)[0]


def test_segments_that_are_all_damaged_are_refused(tmp_path: Path) -> None:
    record(tmp_path, range(5), segment_windows=3)
    for path in segment_files(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(FormatError, match="windows-000000000003"):
        load_trace(tmp_path)
    record(tmp_path, range(6, 7), segment_windows=3)
    assert numbers(tmp_path) == [6]


def test_segments_that_were_deleted_renamed_or_mixed(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    record(folder, range(9), segment_windows=3)
    one, two, three = segment_files(folder)
    two.rename(folder / "windows-000000000007.safetensors")
    assert numbers(folder) == [0, 1, 2, 6, 7, 8]
    assert "its name says 7" in notes(folder)[0]
    (folder / "windows-000000000007.safetensors").unlink()
    assert notes(folder) == ["3 windows in its middle are missing: files of segments were deleted"]
    record(tmp_path / "other", range(5), segment_windows=5)
    one.write_bytes(next(iter(segment_files(tmp_path / "other"))).read_bytes())
    assert numbers(folder) == [0, 1, 2, 3, 4, 6, 7, 8]
    record(tmp_path / "long", range(9), segment_windows=9)
    one.write_bytes(next(iter(segment_files(tmp_path / "long"))).read_bytes())
    with pytest.raises(FormatError, match=f"has window 6 in {one.name} and in {three.name}"):
        load_trace(folder)
    with TraceWriter(tmp_path / "model", L, E + 1) as writer:
        writer.add(np.ones((L, E + 1)))
    one.write_bytes(next(iter(segment_files(tmp_path / "model"))).read_bytes())
    with pytest.raises(FormatError, match=r"2 layers x 5 experts, .* 2 layers x 4 experts"):
        load_trace(folder)
    equipoise.save_trace(equipoise.synthetic_trace(L, E, num_windows=2, top_k=2), one)
    assert "is no segment of a recording" in notes(folder)[0]


def test_what_cannot_be_recorded_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing/here")):
        with pytest.raises(FileAccessError, match="cannot be recorded to"):
            TraceWriter(path, L, E)
    (tmp_path / "windows-999999999999.safetensors").write_bytes(b"x")
    with pytest.raises(FormatError, match="remove it"):
        TraceWriter(tmp_path, L, E)


def test_a_segment_that_goes_between_a_look_and_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may say at any place that it is gone; what is older goes with it, what is newer is read."""
    record(tmp_path, range(9), segment_windows=3)
    gone = segment_files(tmp_path)[1]
    real = segments.open_segment

    def vanishing(path: Path) -> Any:
        if path == gone and path.exists():
            path.unlink()
            segment_files(tmp_path)[0].unlink()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return real(path)

    monkeypatch.setattr(segments, "open_segment", vanishing)
    assert numbers(tmp_path) == [6, 7, 8]


def test_windows_of_several_threads(tmp_path: Path) -> None:
    with TraceWriter(tmp_path, L, E, segment_windows=3, flush_seconds=0) as writer:
        threads = [
            threading.Thread(target=lambda part=part: [writer.add(window(n)) for n in range(part, 40, 4)])  # type: ignore[misc]
            for part in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(numbers(tmp_path)) == list(range(40))


def test_recording_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np, equipoise as eq\n"
        f"writer = eq.TraceWriter({str(tmp_path)!r}, 1, 2); writer.add(np.ones((1, 2))); writer.close()\n"
        "print({'torch', 'numba', 'scipy', 'typer'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
