"""Programs that attack the scorer itself: its data, its clock, its memory, its messages, its files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from programs import COMMAND, FORGE, HONEST, SOURCE, SYSCALL, cheat, command

from equipoise.errors import EquipoiseError, MissingDependencyError
from equipoise.formats import save_trace
from equipoise.scoring import Limits, Score, drifting_trace, folder, process, score_program
from equipoise.scoring.messages import bounded
from equipoise.scoring.process import Program, Refused
from equipoise.synthetic import synthetic_trace
from equipoise.topology import Topology

TOPOLOGY = Topology(num_ranks=4, slots_per_rank=5, num_nodes=2, num_groups=4)
LIMITS = Limits(start_seconds=60, call_seconds=20, memory_mb=1024)
OPTIONS = ("--ranks", "4", "--slots", "20", "--nodes", "1", "--groups", "1", "--window", "1")
TRACE = synthetic_trace(2, 16, 4, seed=1)


def score(tmp_path: Path, text: str, limits: Limits = LIMITS) -> Score:
    (tmp_path / "program.py").write_text(text)
    return score_program(tmp_path / "program.py", TRACE, topology=TOPOLOGY, window=1, limits=limits)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("trace") / "trace.safetensors"
    save_trace(TRACE, path)
    return str(path)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of its own."""
    import tempfile

    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


# The data: nothing about later windows is to be had.


REMADE = cheat(
    before="""
import numpy as np
from equipoise.synthetic import synthetic_trace
made = [synthetic_trace(num_windows=1, seed=seed, preset="scoring").counts[0] for seed in range(3)]
""",
    inside="""
for window in made:
    for known, seen in ((window, weight), (np.sort(window), np.sort(weight)), (window.sum(0), weight.sum(0))):
        if np.array_equal(known, seen):
            raise RuntimeError("the seed is found")
""",
)


def test_a_synthetic_trace_cannot_be_made_again_from_its_seed(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(REMADE)
    plain = synthetic_trace(num_windows=2, seed=2, preset="scoring")
    outcome = score_program(path, plain, "leaderboard", window=1)
    assert outcome.error is not None, "the attack does not work"
    assert "the seed is found" in outcome.error
    outcome = score_program(path, drifting_trace(2, num_windows=2), "leaderboard")
    assert outcome.error is None


def test_every_run_has_a_salt_of_its_own_and_can_be_repeated(tmp_path: Path) -> None:
    traces = [drifting_trace(0, 2) for _ in range(2)]
    assert not np.array_equal(traces[0].counts, traces[1].counts)
    again = drifting_trace(0, 2, salt="x")
    assert np.array_equal(again.counts, drifting_trace(0, 2, salt="x").counts)
    assert not np.array_equal(again.counts, drifting_trace(1, 2, salt="x").counts)
    assert "seed 0, salt x" in again.source

    first = json.loads(command("greedy", "--synthetic", "5", "--json").stdout)
    repeated = json.loads(command("greedy", "--synthetic", "5", "--json", "--salt", first["salt"]).stdout)
    other = json.loads(command("greedy", "--synthetic", "5", "--json").stdout)
    balance = "balancedness_score_gpu"
    assert first[balance] == repeated[balance] != other[balance]
    assert first["salt"] == repeated["salt"] != other["salt"]


@pytest.mark.parametrize("salt", ["", "a b", "\x1b[31m", "x" * 65])
def test_a_salt_that_could_not_be_printed_is_refused(salt: str) -> None:
    with pytest.raises(ValueError, match="salt must be 1 to 64 letters"):
        drifting_trace(0, 2, salt=salt)


def test_the_warm_up_window_cannot_be_put_back_into_order(tmp_path: Path) -> None:
    outcome = score(
        tmp_path,
        cheat(
            before="import numpy as np\nwarm = []",
            inside="""
if len(warm) < 2:
    warm.append(np.array(weight))
else:
    order = np.random.default_rng(0).permutation(weight.shape[1])
    for seen in warm:
        back = np.empty_like(seen)
        back[:, order] = seen
        assert not np.array_equal(back, weight), "un-permuted"
        for row, other in zip(np.sort(seen, axis=1), np.sort(weight, axis=1)):
            assert (row == other).mean() < 0.5, "matched by its values"
""",
        ),
    )
    assert outcome.error is None


# The maps: as many layers as the window has.


@pytest.mark.parametrize("rows", ["[:1]", "[:0]", "[[0, 1, 1]]", "[:, :0]", "[()][None]"])
def test_too_few_or_too_many_layers(tmp_path: Path, recorded: str, rows: str) -> None:
    program = tmp_path / "program.py"
    cut = f"phy2log, log2phy, logcnt = (m{rows} for m in (phy2log, log2phy, logcnt))"
    program.write_text(cheat(after=cut))
    outcome = score_program(program, TRACE, topology=TOPOLOGY, window=1)
    assert outcome.error is not None
    assert "must begin with" in outcome.error or "must have" in outcome.error or "larger" in outcome.error
    done = command(str(program), "--trace", recorded, *OPTIONS)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_log2phy_may_be_padded_to_all_slots(tmp_path: Path) -> None:
    wide = "wide = np.full((2, 16, 20), -1); wide[:, :, : log2phy.shape[2]] = log2phy; log2phy = wide"
    assert score(tmp_path, cheat("import numpy as np", after=wide)).error is None


# The memory that is shared, and what is forged in it.


def test_shared_memory_cannot_be_cut_short(tmp_path: Path, recorded: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        cheat(
            "import os",
            """
cut = 0
for descriptor in range(3, 256):
    for size in (0, 4096, 1 << 30):
        try:
            os.ftruncate(descriptor, size)
            cut += 1
        except OSError:
            pass
assert not cut
""",
        )
    )
    # A parent that reads what is no longer there is killed by SIGBUS: it must not be this process.
    done = command(str(program), "--trace", recorded, *OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "answer",
    [
        b"[" * 60_000,
        b'{"shapes": ' + b"[" * 60_000,
        b'{"a":' * 12_000,
        b'{"shapes": [[1e999, 2], [2], [2]]}',
        b'{"shapes": [[Infinity], [NaN], [2]]}',
        b'{"shapes": [[-1, 20], [2, 16, 2], [2, 16]]}',
        b'{"shapes": [[-1], [-1], [-1]]}',
        b'{"shapes": [[1e1], [2], [2]]}',
        b'{"shapes": [[true, 2], [2], [2]]}',
        b'{"shapes": [[4294967296, 4294967296], [2], [2]]}',
        b'{"shapes": [[' + b"9" * 5000 + b"], [2], [2]]}",
        b'{"shapes": [[' + b"1," * 5000 + b"1], [2], [2]]}",
        b'{"shapes": [[], [], []]}',
        b'{"shapes": [[0], [0], [0]]}',
        b'{"shapes": {"0": 1}}',
        b'{"shapes": [[2, 20]]}',
        b'{"error": {"deep": [1]}}',
        b'{"error": "\\ud800 \\u001b[31mred\\u202e \\u0000"}',
        b"\xff\xfe",
        b"null",
        b"1e999",
        b'{"maps": 1}',
        b" ",
    ],
)
def test_a_forged_answer_is_refused_in_words(tmp_path: Path, answer: bytes) -> None:
    outcome = score(tmp_path, cheat(FORGE, f"forge({answer[:40]!r} + {answer[40:]!r})"), Limits(60, 2, 1024))
    assert outcome.error is not None
    assert outcome.error.isprintable()
    outcome.error.encode()


@pytest.mark.parametrize("seed", range(4))
def test_garbage_for_an_answer(seed: int) -> None:
    """The same parsing, without a process: cut, changed and mixed answers."""
    good = b'{"shapes": [[2, 20], [2, 16, 3], [2, 16]], "isolation": ["audit"], "error": "x"}'
    rng = np.random.default_rng(seed)
    with Program(HONEST, (2, 16), np.dtype(np.int64), TOPOLOGY, LIMITS) as program:
        for _ in range(1000):
            text = bytearray(good[: rng.integers(1, len(good) + 1)])
            for _ in range(rng.integers(0, 6)):
                text[rng.integers(len(text))] = rng.integers(256)
            program._memory[8 : 8 + len(text)] = bytes(text)
            program._memory[0:8] = len(text).to_bytes(8, "little")
            with contextlib.suppress(Refused):
                answer = program._answer()
                program._maps(answer)


# The clock: nothing runs while it does not.

COUNTER = """
import threading
ticks = [0]
def tick():
    while True:
        ticks[0] += 1
def start():
    if not started:
        started.append(1)
        threading.Thread(target=tick, daemon=True).start()
started = []
"""

# timer_create(CLOCK_MONOTONIC, SIGEV_SIGNAL with SIGCONT) and timer_settime, every 50 milliseconds.
TIMER = """
import struct
def arm():
    event = ctypes.create_string_buffer(struct.pack("=QiiQ", 0, 18, 0, 0) + bytes(64))
    timer = ctypes.create_string_buffer(8)
    made = syscall(222, 1, ctypes.addressof(event), ctypes.addressof(timer))
    if made[0] == 0:
        each = ctypes.create_string_buffer(struct.pack("=QQQQ", 0, 50_000_000, 0, 50_000_000))
        syscall(223, struct.unpack("=i", timer.raw[:4])[0], 0, ctypes.addressof(each), 0)
    return made
"""


def started(text: str) -> Program:
    """A process without restrictions, as on a machine whose kernel offers none."""
    return Program(text, (2, 16), np.dtype(np.int64), TOPOLOGY, LIMITS, trusted=True)


def start_and_call_later(program: Program) -> None:
    program.start(TRACE.counts[0])
    time.sleep(0.2)
    program.call(TRACE.counts[0])


def test_a_timer_that_continues_the_stopped_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STOP_SECONDS", 1.0)
    program = started(cheat(SYSCALL + TIMER, "assert arm()[0] == 0"))
    with (
        program,
        pytest.raises(Refused, match=r"ran while its process was stopped|kept its process from being"),
    ):
        start_and_call_later(program)
    outcome = score(tmp_path, cheat(SYSCALL + TIMER, "assert arm() == (-1, 1)"))
    if "seccomp" in outcome.isolation:
        assert outcome.error is None


def test_a_process_that_continues_itself_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A thread that sends SIGCONT can take back the SIGSTOP that is under way: the parent must not wait for ever.
    monkeypatch.setattr(process, "STOP_SECONDS", 1.0)
    loop = """
import os, signal, threading
def keep():
    while True:
        os.kill(os.getpid(), signal.SIGCONT)
"""
    begin = "for _ in range(4): threading.Thread(target=keep, daemon=True).start()"
    with started(cheat(loop, begin)) as program, contextlib.suppress(Refused):
        program.start(TRACE.counts[0])
        for _ in range(3):
            program.call(TRACE.counts[0])
    outcome = score(tmp_path, cheat("import os", "os.kill(os.getpid(), 18)"))
    if "seccomp" in outcome.isolation:
        assert outcome.error is not None
        assert "PermissionError" in outcome.error


@pytest.mark.waits
def test_nothing_is_computed_between_calls() -> None:
    text = cheat(
        COUNTER + "import time\nlast = []",
        "start()\nused = time.process_time() - last[-1] if last else 0\nassert used < 0.5, used",
        "last.append(time.process_time())",
    )
    with Program(text, (2, 16), np.dtype(np.int64), TOPOLOGY, LIMITS) as program:
        program.start(TRACE.counts[0])
        for _ in range(2):
            time.sleep(1.5)
            program.call(TRACE.counts[0])


CALLS = {
    "setpriority of the parent": "141, 0, os.getppid(), 19",
    "sched_setscheduler": "144, os.getppid(), 0, 0",
    "sched_setaffinity of the parent": "203, os.getppid(), 8, 0",
    "ioprio_set": "251, 1, os.getppid(), 0",
    "move_pages": "279, os.getppid(), 0, 0, 0, 0, 0",
    "prctl(PR_SET_PDEATHSIG)": "157, 1, 0",
    "fcntl(F_SETSIG)": "72, 0, 10, 18",
    "fcntl(F_SETOWN)": "72, 0, 8, os.getppid()",
    "fcntl(F_SETOWN_EX)": "72, 0, 15, 0",
    "ioctl(FIOSETOWN)": "16, 0, 0x8901, 0",
    "kill of itself with SIGCONT": "62, os.getpid(), 18",
    "kill of itself with SIGCONT, sign-extended": "62, os.getpid(), 18 | 1 << 40",
    "kill of the parent": "62, os.getppid(), 0",
    "kill of all": "62, -1, 0",
    "tgkill of itself with SIGCONT": "234, os.getpid(), os.getpid(), 18",
    "tkill": "200, os.getpid(), 18",
    "timer_create": "222, 1, 0, 0",
    "memfd_create": "319, 0, 0",
    "memfd_secret": "447, 0",
    "shmget": "29, 0, 1 << 20, 0o600",
    "msgget": "68, 0, 0o600",
    "mq_open": "240, 0, 0, 0, 0",
    "add_key": "248, 0, 0, 0, 0, 0",
    "chmod": "90, 0, 0o777",
    "fchmodat2": "452, 0, 0, 0, 0",
    "utimensat": "280, 0, 0, 0, 0",
    "truncate": "76, 0, 0",
    "setxattr": "188, 0, 0, 0, 0, 0",
    "clock_settime": "227, 0, 0",
    "adjtimex": "159, 0",
    "perf_event_open": "298, 0, os.getppid(), -1, -1, 0",
    "prlimit64 of itself": "302, 0, 9, 4096, 0",
    "io_setup": "206, 1, 0",
    "fork": "57",
    "vfork by clone": "56, 0x4111, 0, 0, 0, 0",
    "x32": "0x40000000 + 39",
}
ALLOWED = {
    "getpid": "39",
    "kill of itself with nothing": "62, os.getpid(), 0",
    "sched_setaffinity of itself": "203, 0, 8, ctypes.addressof(mask)",
    "fcntl(F_GETFD)": "72, 2, 1",
    "prlimit64 asks": "302, 0, 9, 0, 0",
    "prctl(PR_SET_NAME)": "157, 15, ctypes.addressof(mask)",
}


def test_system_calls_that_are_refused(tmp_path: Path) -> None:
    tries = "".join(f"results[{name!r}] = syscall({arguments})\n" for name, arguments in CALLS.items())
    allowed = "".join(f"results[{name!r}] = syscall({arguments})\n" for name, arguments in ALLOWED.items())
    outcome = score(
        tmp_path,
        cheat(
            SYSCALL + "import os",
            "mask = ctypes.create_string_buffer(b'\\x01' + bytes(15), 16)\nresults = {}\n"
            + tries
            + "wrong = [name for name, result in results.items() if result != (-1, 1)]\nresults = {}\n"
            + allowed
            + "wrong += [name for name, result in results.items() if result[0] < 0]\nassert not wrong, wrong",
        ),
    )
    if "seccomp" not in outcome.isolation:
        pytest.skip("no system call filter on this machine")
    assert outcome.error is None


def test_root_runs_programs_without_its_privileges(tmp_path: Path) -> None:
    look = """
for line in open("/proc/self/status"):
    if line.startswith(("CapEff", "CapPrm")):
        assert int(line.split()[1], 16) & ~0b110 == 0, line
"""
    assert score(tmp_path, cheat(inside=look)).error is None


HONEST_HABITS = {
    "threads": """
import concurrent.futures
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert sum(pool.map(int, range(100))) == 4950
""",
    "torch": """
torch = pytest_torch
torch.set_num_threads(2)
assert float((torch.ones(300, 300) @ torch.ones(300, 300)).sum()) == 300.0**3
""",
    "scipy": """
from scipy.optimize import linear_sum_assignment
assert len(linear_sum_assignment(weight)[0]) == 2
""",
    "numba": """
import numba
@numba.njit(parallel=True, cache=True)
def total(x):
    t = 0.0
    for i in numba.prange(len(x)):
        t += x[i]
    return t
assert total(weight[0].astype(float)) == weight[0].sum()
""",
    "files": """
import os, pathlib, tempfile
with tempfile.TemporaryDirectory() as name:
    pathlib.Path(name, "notes").write_text("x")
    pathlib.Path(name, "notes").touch()
    os.replace(os.path.join(name, "notes"), os.path.join(name, "more"))
    np.save(os.path.join(name, "array.npy"), weight)
    assert np.array_equal(np.load(os.path.join(name, "array.npy")), weight)
""",
    "a time limit of its own": """
import signal, time
class Late(Exception):
    pass
def late(number, frame):
    raise Late
signal.signal(signal.SIGALRM, late)
signal.setitimer(signal.ITIMER_REAL, 0.02)
try:
    while True:
        pass
except Late:
    pass
""",
    "a profile of its own": """
import logging, time, traceback, warnings
began = time.perf_counter()
logging.getLogger("program").warning("slow: %s", time.perf_counter() - began)
warnings.warn("note")
try:
    [][1]
except IndexError:
    traceback.format_exc()
""",
}


@pytest.mark.parametrize("habit", HONEST_HABITS)
def test_honest_habits_are_no_offence(tmp_path: Path, habit: str) -> None:
    lines = HONEST_HABITS[habit]
    if habit == "torch":
        pytest.importorskip("torch")
        lines = lines.replace("torch = pytest_torch", "import torch\nweight = weight.numpy()")
    assert score(tmp_path, cheat("import numpy as np", lines), Limits(60, 20, 4096)).error is None


# Frames, files and what is left of them.


@pytest.mark.parametrize(
    "trace",
    [
        "import sys; sys.setprofile(lambda *_: None)",
        "import sys; sys.settrace(lambda *_: None)",
        "import threading, sys; threading.settrace(lambda *_: None); sys.settrace(threading._trace_hook)",
        "import bdb; bdb.Bdb().set_trace()",
    ],
)
def test_code_of_the_caller_cannot_be_traced(tmp_path: Path, trace: str) -> None:
    outcome = score(tmp_path, cheat(inside=f"try:\n    {trace}\nexcept BaseException:\n    pass"))
    assert outcome.error is not None
    assert "traces the code of its caller" in outcome.error or "frames of its caller" in outcome.error


def test_the_frames_that_a_signal_handler_gets_hold_no_later_window(tmp_path: Path) -> None:
    # Frames cannot be kept from a program; there is just nothing in them.
    outcome = score(
        tmp_path,
        cheat(
            "import signal, os\nimport numpy as np\nfound, past = [], []",
            """
def handler(number, frame):
    while frame is not None:
        found.append(frame.f_code.co_name)
        for value in list(frame.f_locals.values()):
            for thing in (value, *getattr(value, "__dict__", {}).values()):
                if isinstance(thing, np.ndarray) and thing.shape == weight.shape and thing.any():
                    assert any(np.array_equal(thing, window) for window in past), "a window not yet seen"
        frame = frame.f_back
past.append(weight.copy())
signal.signal(signal.SIGUSR1, handler)
os.kill(os.getpid(), signal.SIGUSR1)
assert "call" in found
""",
        ),
    )
    assert outcome.error is None


@pytest.mark.parametrize(
    "change",
    [
        "os.chmod(path, 0)",
        "os.utime(path, (0, 0))",
        "os.truncate(path, 0)",
        "os.remove(path)",
        "os.rename(path, path + 'x')",
        "os.link(path, 'mine')",
        "os.setxattr(path, 'user.x', b'1')",
        "os.chown(path, 0, 0)",
        "os.mkdir(path + '.folder')",
        "os.symlink(path, 'mine'); open('mine', 'r+').truncate(0)",
    ],
)
def test_a_file_that_is_not_the_programs_own_is_left_as_it_is(tmp_path: Path, change: str) -> None:
    path = tmp_path / "trace.bin"
    path.write_bytes(b"loads")
    os.utime(path, (1000, 1000))
    before = path.stat()
    attack = f"import os\npath = {str(path)!r}\ntry:\n    {change}\nexcept OSError:\n    pass"
    outcome = score(tmp_path, cheat(inside=attack))
    assert outcome.error is not None
    assert "outside its own folder" in outcome.error
    after = path.stat()
    assert path.read_bytes() == b"loads"
    assert (before.st_mode, before.st_mtime, before.st_nlink) == (
        after.st_mode,
        after.st_mtime,
        after.st_nlink,
    )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["program.py", "trace.bin"]


def test_the_kernel_refuses_changes_behind_pythons_back(tmp_path: Path) -> None:
    path = tmp_path / "trace.bin"
    path.write_bytes(b"loads")
    path.chmod(0o600)
    attack = f"name = ctypes.create_string_buffer({str(path).encode()!r})\n" + "\n".join(
        f"assert syscall({call}, ctypes.addressof(name), {argument})[0] == -1"
        for call, argument in ((90, 0), (76, 0), (132, 0), (87, 0), (92, 1), (2, 0))
    )
    outcome = score(tmp_path, cheat(SYSCALL, attack))
    if not {"landlock", "seccomp"} <= set(outcome.isolation):
        pytest.skip("this kernel lacks Landlock or seccomp")
    assert outcome.error is None
    assert path.read_bytes() == b"loads"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("hoard", "reason"),
    [
        (
            "for i in range(3): open(f'f{i}', 'wb').write(os.urandom(30 << 20))",
            "more than its 64 MB in files",
        ),
        ("for i in range(10_001): open(f'f{i}', 'w').close()", "more than 10,000 files"),
    ],
)
def test_files_count_as_memory(tmp_path: Path, hoard: str, reason: str) -> None:
    outcome = score(tmp_path, cheat("import os", hoard), Limits(60, 20, 64))
    assert outcome.error is not None
    assert reason in outcome.error


@pytest.mark.parametrize(
    "leave",
    [
        "for _ in range(1200): os.mkdir('dddd'); os.chdir('dddd')",
        "os.mkdir('d'); open('d/f', 'w').close(); os.mkdir('d/e', 0); os.umask(0o777); os.mkdir('d/g')",
        "os.symlink('/', 'root'); os.symlink('.', 'self'); os.mkfifo('fifo')",
        "open('\\udcff\\n', 'w').close(); os.mkdir(b'\\xff\\xfe')",
    ],
)
def test_no_folder_is_left(tmp_path: Path, temporary: Path, leave: str) -> None:
    score(tmp_path, cheat("import os", leave))
    assert not list(temporary.iterdir())


def test_removing_a_folder_touches_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    inner = tmp_path / "gone" / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "gone" / "file").symlink_to(tmp_path / "kept" / "file")
    folder.remove(tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").read_text() == "x"


@contextlib.contextmanager
def scoring(tmp_path: Path, text: str) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """The command while it scores a program: its process, the program's, and the folder for temporary files."""
    temporary = tmp_path / "temporary"
    temporary.mkdir(exist_ok=True)
    (tmp_path / "program.py").write_text(text)
    save_trace(TRACE, tmp_path / "trace.safetensors")
    arguments = [str(tmp_path / "program.py"), "--trace", str(tmp_path / "trace.safetensors"), *OPTIONS]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, "score", *arguments],
        env={**os.environ, "PYTHONPATH": SOURCE, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as parent:
        try:
            yield parent, wait_for_child(parent, temporary), temporary
        finally:
            parent.kill()


def wait_for_child(parent: subprocess.Popen[bytes], temporary: Path) -> int:
    """The program's process, once the program has said that it runs."""
    deadline = time.monotonic() + 60
    while not list(temporary.glob("equipoise-score-*/runs")):
        assert parent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    return int(children[0])


RUNS = "open('runs', 'w').close()\nwhile True:\n    pass\n"
CLINGS = (
    SYSCALL
    + "syscall(157, 1, 0)\nimport signal\n"
    + (
        "for number in range(1, 65):\n    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n" + RUNS
    )
)


@pytest.mark.parametrize("text", [RUNS, CLINGS])
def test_a_killed_run_leaves_no_process_and_the_next_one_removes_its_folder(
    tmp_path: Path, text: str
) -> None:
    with scoring(tmp_path, text) as (parent, child, temporary):
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 30
        while Path(f"/proc/{child}/stat").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text():
            assert time.monotonic() < deadline, "the program outlives the run"
            time.sleep(0.02)
        assert list(temporary.iterdir())
        (tmp_path / "program.py").write_text(HONEST)
        done = command(
            str(tmp_path / "program.py"),
            *("--trace", str(tmp_path / "trace.safetensors"), *OPTIONS),
            TMPDIR=str(temporary),
        )
        assert done.returncode == 0, done.stderr
        assert not list(temporary.iterdir())


def test_a_stopped_program_dies_with_its_parent() -> None:
    keeps = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_attacks import TRACE, started
from programs import HONEST
with started(HONEST) as program:
    program.start(TRACE.counts[0])
    print(program._process.pid, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", keeps],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = Path(f"/proc/{int(parent.stdout.readline())}/stat")
        assert child.read_text().rpartition(")")[2].split()[0] == "T"
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 30
        while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_the_evaluators_command_cleans_up_when_it_is_terminated(tmp_path: Path, recorded: str) -> None:
    program, temporary = tmp_path / "program.py", tmp_path / "temporary"
    program.write_text(RUNS)
    temporary.mkdir()
    places = {"PYTHONPATH": SOURCE, "TMPDIR": str(temporary)}
    long = tmp_path / "long.safetensors"
    save_trace(replace(synthetic_trace(2, 16, 2), steps=np.array([[0, 100], [100, 200]])), long)
    with subprocess.Popen(
        [sys.executable, "-m", "equipoise.scoring", str(program)],
        env={**os.environ, **places, "EQUIPOISE_TRACE": str(long)},
        stderr=subprocess.PIPE,
    ) as parent:
        wait_for_child(parent, temporary)
        parent.terminate()
        assert b"Traceback" not in parent.communicate(timeout=60)[1]
    assert not list(temporary.iterdir())


def test_a_terminated_run_cleans_up_and_leaves_the_folders_of_others(tmp_path: Path) -> None:
    with scoring(tmp_path, RUNS) as (parent, child, temporary):
        others = [path.name for path in temporary.iterdir()]
        trace = str(tmp_path / "trace.safetensors")
        done = command("greedy", "--trace", trace, *OPTIONS, TMPDIR=str(temporary))
        assert done.returncode == 0, done.stderr
        assert [path.name for path in temporary.iterdir()] == others
        parent.send_signal(signal.SIGTERM)
        _, errors = parent.communicate(timeout=60)
        assert parent.returncode == 143
        assert b"Traceback" not in errors
        assert not list(temporary.iterdir())
        assert not Path(f"/proc/{child}").exists()


# The host: what it lacks is not the program's fault.

NEEDS_TORCH = {
    "at the top": "import torch\n" + HONEST,
    "in the function": cheat(inside="import torch"),
    "from": "from torch import nn\n" + HONEST,
}
OPTIONAL_TORCH = "try:\n    import torch\nexcept ImportError:\n    torch = None\n" + HONEST
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\n"


@pytest.mark.parametrize("name", NEEDS_TORCH)
def test_torch_missing_on_the_host_is_wrong_use(
    tmp_path: Path, recorded: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import util

    real = util.find_spec
    monkeypatch.setattr(process, "find_spec", lambda name: None if name == "torch" else real(name))
    # In the program's own process torch is hidden by a module of its name that fails as a missing one does.
    text = NEEDS_TORCH[name].replace(
        "    import torch", "    raise ModuleNotFoundError(\"No module named 'torch'\")"
    )
    with pytest.raises(MissingDependencyError, match="needs torch, which this Python does not have"):
        score(tmp_path, text)


def test_the_command_says_that_torch_is_missing(tmp_path: Path, recorded: str) -> None:
    from programs import run

    program = tmp_path / "program.py"
    program.write_text(NEEDS_TORCH["at the top"])
    arguments = [str(program), "--trace", recorded, *OPTIONS]
    done = run("-c", WITHOUT_TORCH + COMMAND, "score", *arguments)
    assert done.returncode == 2
    assert "pip install torch" in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    done = run("-c", WITHOUT_TORCH + COMMAND, "score", *arguments[1:], "--arrays", "torch", "greedy")
    assert done.returncode == 2
    program.write_text(OPTIONAL_TORCH)
    done = run("-c", WITHOUT_TORCH + COMMAND, "score", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["arrays"] == "numpy"


def test_a_process_that_does_not_start_is_not_the_programs_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(
        EquipoiseError, match="does not start: the program ended its process with exit code 1"
    ):
        score(tmp_path, HONEST)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(EquipoiseError, match="cannot be set up"):
        score(tmp_path, HONEST)


def test_no_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(EquipoiseError, match="cannot be set up"):
        score(tmp_path, HONEST)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "large"])
def test_a_program_that_is_no_plain_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "program.py"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(OSError, match=r"is not a plain file|too large for a program"):
        score_program(path, TRACE, topology=TOPOLOGY, window=1)


# What it prints.


@pytest.mark.parametrize(
    "raising",
    [
        r"raise ValueError('\x1b[31mred \x07 \u202e\ud800\n\r\x9b2J')",
        r"raise type('\x1b[31m', (Exception,), {})('x')",
        r"raise SystemExit('\x1b]0;title\x07')",
        r"import sys, os; sys.stderr.buffer.write(b'\x1b[31mred\n'); sys.stderr.flush(); os._exit(3)",
        r"import os; os.write(1, b'\x1b[31mred')",
        r"open('/\x1b[31mred')",
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_a_program_says_never_steers_the_terminal(
    tmp_path: Path, recorded: str, raising: str, as_json: bool
) -> None:
    program = tmp_path / "program.py"
    program.write_text(cheat(inside=raising))
    done = command(str(program), "--trace", recorded, *OPTIONS, *(["--json"] if as_json else []))
    assert done.returncode == 1, done.stderr
    shown = done.stdout + done.stderr
    assert not [c for c in shown if not (c.isprintable() or c == "\n")]
    if as_json:
        assert json.loads(done.stdout)["error"].isprintable()
    else:
        assert done.stdout.startswith("refused:")


def test_the_name_of_a_program_and_the_source_of_a_trace_are_printed_safely(tmp_path: Path) -> None:
    program = tmp_path / "pro\x1b[31mgram.py"
    program.write_text(HONEST)
    path = tmp_path / "trace.safetensors"
    save_trace(replace(TRACE, source="from \x1b]0;x\x07 [red]"), path)
    done = command(str(program), "--trace", str(path), *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    program.write_text(cheat(after="logcnt = logcnt * 2"))
    assert "\x1b" not in command(str(program), "--trace", str(path), *OPTIONS).stdout


@pytest.mark.parametrize("text", ["\n", "import ", "import\n", "from          "])
def test_a_program_of_blanks_does_not_hold_up_the_parent(text: str) -> None:
    # A pattern whose time grew with the square of the text would take hours here.
    assert not process.TORCH.search(text * 500_000)
    assert not process.TORCH_AT_THE_TOP.search(text * 500_000)


def test_any_text_is_one_line_that_can_be_printed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        text = "".join(chr(int(code)) for code in rng.integers(0, 0x3000, rng.integers(0, 40)))
        for more in ("", "\ud800", "\U0010ffff", "x" * 5000):
            shown = bounded(text + more)
            assert shown.isprintable()
            assert len(shown) <= 500
            shown.encode()
