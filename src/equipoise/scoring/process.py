"""The parent's side of a scored program: it owns the data, the clock and the end of the process."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, EquipoiseError, MissingDependencyError
from ..topology import Topology
from .folder import PrivateFolder
from .messages import bounded

HEADER = 1 << 16
NULL_ROUNDS = 30
MOST_FILES = 10_000
"""in the private folder, folders included"""
STOP_SECONDS = 10.0
"""how long a process may take to stop; it takes microseconds unless something keeps it from stopping"""
TORCH = re.compile(r"^[ \t]*(import|from)[ \t]+torch\b", re.MULTILINE)
TORCH_AT_THE_TOP = re.compile(r"^(import|from)[ \t]+torch\b", re.MULTILINE)
MAPS = ("phy2log", "log2phy", "logcnt")
MOST_AXES = 8
TAMPERED = "the program tampered with the process that runs it"
NO_TORCH = (
    "the program needs torch, which this Python does not have: install it (pip install torch); packages on "
    "PYTHONPATH do not count, because programs are run without it"
)


class Refused(Exception):
    """A program broke a rule or a limit; the message is the reason."""


@dataclass(frozen=True)
class Limits:
    """What a program may take. Times are wall-clock seconds by the parent's clock."""

    start_seconds: float = 120.0
    """Loading the program and one call to warm up, together."""
    call_seconds: float = 30.0
    """Each scored call."""
    memory_mb: int = 4096
    """Address space on top of what the interpreter and the imported array library take."""

    def __post_init__(self) -> None:
        for name in ("start_seconds", "call_seconds", "memory_mb"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ArgumentError(f"{name} must be positive, got {value}")


class Program:
    """A program in a process of its own, from start to end; use it as a context manager.

    Parameters
    ----------
    source : the program's text
    shape, dtype : of each window, ``(L, E)``, int64 or float64
    topology : slots, ranks, nodes and groups that the program is asked for
    limits : time and memory
    trusted : run without restrictions on files and system calls; for the package's own policies
    arrays : "torch", "numpy", or "auto": torch tensors if the program imports torch
    calls : scored calls to come, for the limit on processor time

    Raises
    ------
    Refused
        from `start` and `call`, when the program breaks a rule
    """

    def __init__(
        self,
        source: str,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        topology: Topology,
        limits: Limits,
        *,
        trusted: bool = False,
        arrays: str = "auto",
        calls: int = 100,
    ) -> None:
        if not hasattr(os, "memfd_create"):
            raise EquipoiseError("programs are scored on Linux only: their isolation needs its kernel")
        self._limits = limits
        self._shape, self._dtype, self._slots = shape, dtype, topology.num_slots
        self.isolation: tuple[str, ...] = ()
        self.overhead = 0.0
        self._stopped = False
        self._has_torch = find_spec("torch") is not None
        if not self._has_torch and (
            arrays == "torch" or (arrays == "auto" and TORCH_AT_THE_TOP.search(source))
        ):
            raise MissingDependencyError(NO_TORCH)
        torch = arrays == "torch" or (arrays == "auto" and self._has_torch and bool(TORCH.search(source)))
        self.arrays = "torch" if torch else "numpy"

        seconds = limits.start_seconds + limits.call_seconds * calls
        package = [str(Path(__file__).resolve().parents[2])] if re.search(r"\bequipoise\b", source) else []
        config: dict[str, Any] = {
            "parent": os.getpid(),
            "input_at": HEADER,
            "layers": shape[0],
            "experts": shape[1],
            "dtype": str(dtype),
            "slots": topology.num_slots,
            "ranks": topology.num_ranks,
            "nodes": topology.num_nodes,
            "groups": topology.num_groups,
            "paths": package,
            "readable": [*package, "/usr", "/lib", "/lib64", "/etc", *_package_folders()],
            "preload": ["numba"] if re.search(r"\bnumba\b", source) and find_spec("numba") else [],
            "torch": torch,
            "sandbox": not trusted,
            "memory_limit": limits.memory_mb << 20,
            "cpu_limit": 60 + int(seconds * (os.cpu_count() or 1)),
        }
        with contextlib.ExitStack() as resources:
            try:
                self._begin(resources, source, config, trusted)
            except OSError as error:
                raise EquipoiseError(
                    f"the process for the program cannot be set up: {bounded(str(error))}; check the folder "
                    "for temporary files (TMPDIR), the room on its disk and the memory that is left"
                ) from None
            self._resources = resources.pop_all()

    def _begin(
        self, resources: contextlib.ExitStack, source: str, config: dict[str, Any], trusted: bool
    ) -> None:
        """Folder, shared memory, pipes and the process itself, each given back by ``resources``."""
        self._folder = PrivateFolder()
        resources.callback(self._folder.close)
        private = str(self._folder.path)
        program = self._folder.path / "program.py"
        program.write_text(source, encoding="utf-8")
        self._allocate(resources)
        command_out, self._commands = os.pipe()
        resources.callback(os.close, self._commands)
        self._answers, answer_in = os.pipe()
        resources.callback(os.close, self._answers)
        os.set_blocking(self._answers, False)
        self._stdout = resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._stderr = resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        config.update(
            command_fd=command_out,
            done_fd=answer_in,
            memory_fd=self._memory_fd,
            memory_size=self._size,
            current_at=self._current_at,
            output_at=self._output_at,
            output_room=self._output_room,
            program=str(program),
            private=private,
        )
        runner = str(Path(__file__).with_name("runner.py"))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", runner, json.dumps(config)],
                stdin=subprocess.DEVNULL,
                stdout=self._stdout,
                stderr=self._stderr,
                cwd=private,
                env=_environment(private, trusted),
                pass_fds=(command_out, answer_in, self._memory_fd),
                start_new_session=True,
            )
        finally:
            os.close(command_out)
            os.close(answer_in)
        resources.callback(self._kill)

    def _allocate(self, resources: contextlib.ExitStack) -> None:
        import fcntl

        layers, experts = self._shape
        window, slots = layers * experts * 8, layers * self._slots * 8
        self._current_at = HEADER + window
        first = self._current_at + slots
        # log2phy may be padded to all slots; what is not written takes no memory.
        rooms = (slots, window * self._slots, window)
        self._output_at = [first, first + rooms[0], first + rooms[0] + rooms[1]]
        self._output_room = list(rooms)
        self._size = first + sum(rooms)
        self._memory_fd = os.memfd_create("equipoise", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        resources.callback(os.close, self._memory_fd)
        os.ftruncate(self._memory_fd, self._size)
        # Sealed: whoever reads shared memory that another process has cut short is killed by SIGBUS.
        fcntl.fcntl(
            self._memory_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
        self._memory = mmap.mmap(self._memory_fd, self._size)
        self._input = np.frombuffer(self._memory, self._dtype, layers * experts, HEADER).reshape(self._shape)
        self._current = np.frombuffer(self._memory, np.int64, layers * self._slots, self._current_at).reshape(
            layers, self._slots
        )

    def start(self, warm_up: npt.NDArray[Any], with_current: bool = False) -> None:
        """Load the program and let it compile on a window that is not scored, once more with a placement."""
        deadline = time.perf_counter() + self._limits.start_seconds
        # Nobody can have tampered with these rounds: the program is not loaded yet. The fastest one is what a
        # plan that takes no time costs in transport, and is taken off every measured time.
        try:
            rounds = [self._round(b"n", self._limits.start_seconds, "start-up") for _ in range(NULL_ROUNDS)]
        except Refused as reason:
            if self._process.poll() is None:
                raise
            # What ends it here is the machine's fault, not the program's.
            if "No module named 'torch'" in self.stderr:
                raise MissingDependencyError(NO_TORCH) from None
            raise EquipoiseError(
                f"the process for the program does not start: {bounded(str(reason))}"
            ) from None
        self.overhead = min(seconds for _, seconds in rounds)
        self.isolation = tuple(rounds[0][0]["isolation"])
        self._round(b"l", max(deadline - time.perf_counter(), 0.0), "loading it")
        self._put(warm_up, None)
        answer, _ = self._round(b"g", max(deadline - time.perf_counter(), 0.0), "its warm-up call")
        phy2log = self._maps(answer)[0]
        if with_current and phy2log.shape == self._current.shape:
            self._put(warm_up, phy2log)
            self._round(b"c", max(deadline - time.perf_counter(), 0.0), "its second warm-up call")

    def call(
        self, window: npt.NDArray[Any], current: npt.NDArray[np.int64] | None = None
    ) -> tuple[list[npt.NDArray[np.int64]], float]:
        """The three maps that the program answers with, copied, and the seconds it took."""
        self._put(window, current)
        answer, seconds = self._round(b"g" if current is None else b"c", self._limits.call_seconds)
        if not np.array_equal(self._input, window):
            raise Refused("the program changed its input in place")
        if current is not None and not np.array_equal(self._current, current):
            raise Refused("the program changed the current placement in place")
        return self._maps(answer), max(seconds - self.overhead, 1e-6)

    def _put(self, window: npt.NDArray[Any], current: npt.NDArray[np.int64] | None) -> None:
        self._input[...] = window
        if current is not None:
            self._current[...] = current

    def _round(self, command: bytes, seconds: float, doing: str = "a call") -> tuple[dict[str, Any], float]:
        """One command and its answer. The process runs only in between."""
        self._memory[0:8] = bytes(8)
        with contextlib.suppress(BlockingIOError):
            if os.read(self._answers, 1):
                raise Refused("the program answered without being asked")
        if self._stopped:
            self._check_still_stopped()
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        begin = time.perf_counter()
        os.kill(self._process.pid, signal.SIGCONT)
        try:
            os.write(self._commands, command)
        except BrokenPipeError:
            raise Refused(self._ending()) from None
        ready = self._wait(poll, begin + seconds)
        end = time.perf_counter()
        if not ready:
            raise Refused(f"the program exceeded its time limit: {doing} took more than {seconds:.3g} s")
        if os.read(self._answers, 1) == b"":
            raise Refused(self._ending())
        self._stop()
        answer = self._answer()
        if "error" in answer:
            error = answer["error"]
            if not self._has_torch and isinstance(error, str) and "No module named 'torch'" in error:
                raise MissingDependencyError(NO_TORCH)
            raise Refused(error if isinstance(error, str) else TAMPERED)
        if written := os.fstat(self._stdout.fileno()).st_size:
            raise Refused(
                f"the program wrote {written} bytes to standard output: {self._tail(self._stdout)!r}"
            )
        self._check_folder()
        return answer, end - begin

    def _wait(self, poll: select.poll, deadline: float) -> bool:
        """Whether an answer comes in time. Calls of more than a second are looked after meanwhile."""
        while True:
            left = deadline - time.perf_counter()
            if poll.poll(max(min(left, 1.0), 0.0) * 1000):
                return True
            if left <= 1.0:
                return False
            self._check_folder()

    def _answer(self) -> dict[str, Any]:
        """What lies in shared memory. Anything may: the program can write there, too."""
        size = int.from_bytes(self._memory[0:8], "little")
        if not 0 < size <= HEADER - 8:
            raise Refused("the program answered before it had finished")
        try:
            answer = json.loads(self._memory[8 : 8 + size])
        except (ValueError, RecursionError):
            raise Refused(TAMPERED) from None
        if not isinstance(answer, dict):
            raise Refused(TAMPERED)
        return answer

    def _stop(self) -> None:
        """Freeze the process: nothing may be computed or changed while the clock does not run."""
        os.kill(self._process.pid, signal.SIGSTOP)
        deadline = time.perf_counter() + STOP_SECONDS
        while not self._changed(os.WUNTRACED):
            if time.perf_counter() > deadline:
                raise Refused("the program kept its process from being stopped")
            time.sleep(2e-5)
        self._stopped = True

    def _check_still_stopped(self) -> None:
        """Refuse a process that was continued, by a timer say, while its clock did not run."""
        if self._changed(os.WUNTRACED | os.WCONTINUED):
            raise Refused("the program ran while its process was stopped")

    def _changed(self, options: int) -> bool:
        """Whether the process has stopped or been continued since the last look; `Refused` if it is dead."""
        pid, status = os.waitpid(self._process.pid, options | os.WNOHANG)
        if pid and (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
            self._process.returncode = os.waitstatus_to_exitcode(status)
            raise Refused(self._ending())
        return bool(pid)

    def _check_folder(self) -> None:
        """Files in the private folder count as memory; those that have no name any more are not seen."""
        try:
            size, files = self._folder.size(MOST_FILES)
        except FileNotFoundError:
            return  # a file that the program removed meanwhile
        except OSError:
            raise Refused("the program made folders that cannot be listed") from None
        if files > MOST_FILES:
            raise Refused(f"the program keeps more than {MOST_FILES:,} files")
        if size > self._limits.memory_mb << 20:
            raise Refused(f"the program keeps more than its {self._limits.memory_mb} MB in files")

    def _maps(self, answer: dict[str, Any]) -> list[npt.NDArray[np.int64]]:
        shapes = answer.get("shapes")
        if not isinstance(shapes, list) or len(shapes) != len(MAPS):
            raise Refused(TAMPERED)
        maps = []
        for name, shape, at, room in zip(MAPS, shapes, self._output_at, self._output_room, strict=True):
            if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
                raise Refused(TAMPERED)
            size = math.prod(shape)
            if size * 8 > room or len(shape) > MOST_AXES:
                raise Refused(f"{name} has the shape {shape[:MOST_AXES]}: larger than any legal one")
            maps.append(np.frombuffer(self._memory, np.int64, size, at).reshape(shape).copy())
        return maps

    def _ending(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        tail = self._tail(self._stderr).strip().splitlines()
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        if code == -signal.SIGXCPU:
            how = "by the limit on processor time"
        return f"the program ended its process {how}" + (f" ({tail[-1]})" if tail else "")

    @property
    def stderr(self) -> str:
        """The last of what the program wrote to standard error."""
        return self._tail(self._stderr)

    @staticmethod
    def _tail(file: Any, size: int = 300) -> str:
        data: bytes = os.pread(file.fileno(), size, max(os.fstat(file.fileno()).st_size - size, 0))
        return data.decode("utf-8", "replace")

    def _kill(self) -> None:
        """Kill the process, whatever it does."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """End the process, and give back its memory and its folder."""
        self._resources.close()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def clean_up_on_sigterm() -> None:
    """For commands: let SIGTERM end this process as an exception, so that programs and folders are cleaned up."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _environment(folder: str, trusted: bool) -> dict[str, str]:
    """A small environment: nothing in it names the trace, and temporary files go to the private folder."""
    kept: Sequence[str] = (
        "PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
        "NUMBA_NUM_THREADS", "CUDA_VISIBLE_DEVICES",
    )  # fmt: skip
    if trusted:
        kept = (*kept, "HOME", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    defaults = {"LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder, "NUMBA_CACHE_DIR": folder + "/numba"}
    if trusted:
        defaults = {"LANG": "C.UTF-8", "TMPDIR": folder}
    return {**defaults, **environment}


def _package_folders() -> list[str]:
    """Where the interpreter keeps its packages, and where the loader looks for libraries."""
    import sysconfig

    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return sorted(folders | set(filter(os.path.isabs, os.environ.get("LD_LIBRARY_PATH", "").split(":"))))
