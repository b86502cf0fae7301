"""Programs that cheat, or take more than they may, are refused with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from programs import HONEST, cheat

from equipoise.scoring import Limits, Score, score_program
from equipoise.synthetic import synthetic_trace
from equipoise.topology import Topology

TOPOLOGY = Topology(num_ranks=4, slots_per_rank=5, num_nodes=2, num_groups=4)
LIMITS = Limits(start_seconds=60, call_seconds=20, memory_mb=1024)


def score(tmp_path: Path, text: str, limits: Limits = LIMITS, protocol: str = "equipoise") -> Score:
    trace = synthetic_trace(2, 16, 4, seed=1)
    (tmp_path / "program.py").write_text(text)
    return score_program(tmp_path / "program.py", trace, protocol, topology=TOPOLOGY, window=1, limits=limits)


def refused(outcome: Score, reason: str) -> None:
    assert outcome.error is not None
    assert reason in outcome.error
    assert outcome.combined_score == 0.0
    assert not outcome.metrics


def test_the_honest_program_that_the_cheats_are_made_of_is_scored(tmp_path: Path) -> None:
    outcome = score(tmp_path, cheat())
    assert outcome.error is None
    assert 0.5 < outcome.combined_score < 1
    assert outcome.windows == 3
    assert "audit" in outcome.isolation


def test_log2phy_of_four_dimensions(tmp_path: Path) -> None:
    refused(score(tmp_path, cheat(after="log2phy = log2phy[..., None]")), "log2phy must have the axes")


def test_counts_that_claim_more_replicas_than_the_map_has(tmp_path: Path) -> None:
    refused(score(tmp_path, cheat(after="logcnt = logcnt * 4")), "logcnt: layer 0 claims")


def test_experts_dropped(tmp_path: Path) -> None:
    dropping = "hot = phy2log[0, 0]; phy2log[0][phy2log[0] == (hot + 1) % 16] = hot"
    refused(score(tmp_path, cheat(after=dropping)), "drops expert")


@pytest.mark.parametrize(
    "look",
    [
        "import sys; caller = sys._getframe(1)",
        "import inspect; caller = inspect.stack()[1].frame",
        "import inspect; caller = inspect.currentframe().f_back",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    caller = error.__traceback__.tb_frame.f_back",
        "import traceback; caller = next(traceback.walk_stack(None))[0]",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    import traceback\n"
        "    caller = next(traceback.walk_tb(error.__traceback__))[0]",
        "import gc; everything = gc.get_objects()",
    ],
)
def test_the_callers_frame_read_for_the_next_window(tmp_path: Path, look: str) -> None:
    outcome = score(tmp_path, cheat(inside=f"{look}"))
    assert outcome.error is not None
    assert "frames of its caller" in outcome.error or "interpreter's objects" in outcome.error


def test_there_is_no_next_window_in_the_process_to_be_found(tmp_path: Path) -> None:
    # Even with the run of the whole process in hand: its own windows so far are all that its memory holds.
    trace = synthetic_trace(2, 16, 4, seed=1, tokens_per_window=1 << 40)
    (tmp_path / "program.py").write_text(
        cheat(
            before="import numpy as np, mmap, os",
            inside=f"""
needle = {trace.counts[3].tobytes()[:16]!r}
for descriptor in range(64):
    try:
        size = os.fstat(descriptor).st_size
        area = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        continue
    if area.find(needle) >= 0:
        raise RuntimeError("found the last window")
""",
        )
    )
    outcome = score_program(tmp_path / "program.py", trace, topology=TOPOLOGY, window=1, limits=LIMITS)
    assert outcome.error is None


@pytest.mark.parametrize(
    "read",
    [
        "open({path!r}, 'rb').read()",
        "import numpy; numpy.load({path!r})",
        "import pathlib; pathlib.Path({path!r}).read_bytes()",
        "import os; os.open({path!r}, os.O_RDONLY)",
        "import os; open(f'/proc/{{os.getppid()}}/cmdline').read()",
        "import os; os.listdir({folder!r})",
        "import ctypes; ctypes.CDLL(None).open({path!r}.encode(), 0)",
    ],
)
@pytest.mark.parametrize("hides", [False, True])
def test_files_read_for_the_next_window(tmp_path: Path, read: str, hides: bool) -> None:
    path = tmp_path / "trace.npy"
    np.save(path, np.arange(10))
    line = read.format(path=str(path), folder=str(tmp_path))
    if hides:
        line = f"try:\n    {line}\nexcept OSError:\n    pass"
    outcome = score(tmp_path, cheat(inside=line))
    assert outcome.error is not None
    assert "outside its own folder" in outcome.error or "system libraries" in outcome.error


def test_the_kernel_refuses_files_that_are_read_behind_pythons_back(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    from safetensors.numpy import save_file

    save_file({"x": np.arange(4)}, path)
    outcome = score(
        tmp_path,
        cheat(
            before="import safetensors",
            inside=f"with safetensors.safe_open({str(path)!r}, 'np') as file:\n    file.get_tensor('x')",
        ),
    )
    if "landlock" not in outcome.isolation:
        pytest.skip("this kernel has no Landlock")
    assert outcome.error is not None


def test_another_process(tmp_path: Path) -> None:
    refused(score(tmp_path, cheat(inside="import os; os.fork()")), "starts another process")
    refused(
        score(tmp_path, cheat(inside="import subprocess; subprocess.run(['true'])")),
        "starts another process",
    )


def test_a_socket(tmp_path: Path) -> None:
    refused(score(tmp_path, cheat(inside="import socket; socket.socket()")), "opens a socket")


def test_the_parent_cannot_be_killed(tmp_path: Path) -> None:
    outcome = score(tmp_path, cheat(inside="import os; os.kill(os.getppid(), 0)"))
    if "seccomp" not in outcome.isolation:
        pytest.skip("no system call filter on this machine")
    refused(outcome, "PermissionError")


def test_the_input_changed_in_place(tmp_path: Path) -> None:
    refused(score(tmp_path, cheat(after="weight[0, 0] += 1")), "changed its input in place")


def test_the_current_placement_changed_in_place(tmp_path: Path) -> None:
    changing = "num_gpus, current=None):\n    if current is not None: current[:] = 0"
    text = cheat().replace("num_gpus):\n    pass", changing)
    refused(score(tmp_path, text), "changed the current placement in place")


@pytest.mark.parametrize(
    "patch",
    [
        "import time; time.perf_counter = lambda: 0.0",
        "import sys, types; sys.modules['time'] = types.ModuleType('time')",
    ],
)
def test_a_patched_clock(tmp_path: Path, patch: str) -> None:
    refused(score(tmp_path, cheat(before=patch)), "the program replaced the")


def test_an_endless_loop(tmp_path: Path) -> None:
    limits = Limits(start_seconds=60, call_seconds=1)
    loop = "global calls; calls += 1\nwhile calls == 2:\n    pass"
    refused(
        score(tmp_path, cheat("calls = 0", loop), limits, "leaderboard"),
        "exceeded its time limit: a call took more than 1 s",
    )
    limits = Limits(start_seconds=2, call_seconds=1)
    refused(score(tmp_path, "while True:\n    pass\n", limits), "exceeded its time limit: loading it")


@pytest.mark.parametrize(
    "allocate", ["numpy.ones(10 * 10**9 // 8)", "bytearray(10 * 10**9)", "[bytes(10**8) for _ in range(100)]"]
)
def test_ten_gigabytes_allocated(tmp_path: Path, allocate: str) -> None:
    refused(score(tmp_path, cheat("import numpy", f"hoard = {allocate}")), "needs more than its 1024 MB")


@pytest.mark.parametrize(
    "write", ["print('combined_score 1.0')", "import os; os.write(1, b'{\"score\": 1}')"]
)
def test_output_on_stdout(tmp_path: Path, write: str) -> None:
    refused(score(tmp_path, cheat(inside=write)), "to standard output")


def test_output_on_stderr_is_no_offence(tmp_path: Path) -> None:
    assert score(tmp_path, cheat("import sys", "print('note', file=sys.stderr)")).error is None


def test_an_answer_that_is_computed_after_the_clock_has_stopped(tmp_path: Path) -> None:
    # The process is stopped once it has answered: what a thread would write later is not there.
    late = """
import threading, time
def later(array, right):
    time.sleep(0.5)
    array[...] = right
wrong = numpy.zeros_like(phy2log)
threading.Thread(target=later, args=(wrong, phy2log), daemon=True).start()
phy2log = wrong
"""
    refused(score(tmp_path, cheat("import numpy", after=late)), "drops expert")


def test_an_answer_that_is_only_promised(tmp_path: Path) -> None:
    lazy = "class Lazy(numpy.ndarray):\n    pass\nphy2log = phy2log.view(Lazy)"
    refused(score(tmp_path, cheat("import numpy", after=lazy)), "phy2log is Lazy, not an array")


def test_a_forged_answer(tmp_path: Path) -> None:
    forge = """
import os
for descriptor in range(3, 256):
    try:
        os.write(descriptor, b'd')
    except OSError:
        pass
while True:
    pass
"""
    outcome = score(tmp_path, cheat(inside=forge))
    assert outcome.error is not None
    # Found out at once where the forgery reaches the pipe, and by its endless loop where it does not.
    assert any(reason in outcome.error for reason in ("before it had finished", "tampered", "time limit"))


def test_a_program_that_ends_its_process(tmp_path: Path) -> None:
    refused(score(tmp_path, cheat(inside="import os; os._exit(0)")), "ended its process with exit code 0")
    refused(score(tmp_path, cheat(inside="raise SystemExit")), "raised SystemExit")
    refused(score(tmp_path, cheat(inside="import os, signal; os.kill(os.getpid(), 9)")), "by signal 9")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n", "no function rebalance_experts"),
        ("def broken(:\n", "SyntaxError"),
        ("import nonesuch\n", "ModuleNotFoundError"),
        (cheat(inside="raise ValueError('no idea')"), "raised ValueError: no idea"),
        (HONEST.replace("return phy2log, log2phy, logcnt", "return phy2log"), "not three maps"),
        (cheat(after="phy2log = phy2log.tolist()"), "phy2log is a list of 2, not an array"),
        (cheat(after="logcnt = logcnt + 0.5"), "logcnt has dtype float64"),
        (cheat(after="phy2log[0, 0] = 99"), "holds expert 99, out of range"),
        (cheat(after="phy2log = phy2log[:, :-1]"), "phy2log must begin with the shape [2, 20]"),
        (cheat(after="log2phy[0] = log2phy[0, ::-1].copy()"), "log2phy: layer 0"),
        (cheat(after="log2phy[log2phy == -1] = 0"), "expected -1 (padding)"),
    ],
)
def test_faulty_programs_are_named(tmp_path: Path, text: str, reason: str) -> None:
    refused(score(tmp_path, text), reason)
