"""The process in which a program is scored. Started with ``python -I``; never imported by the package.

It gets shapes and limits on its command line, one window at a time in shared memory, and single-byte commands
on a pipe. It never gets a path of the trace, and the window that it is scored on does not exist in it. The
parent holds the clock and stops this process whenever the clock does not run.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import inspect
import json
import mmap
import os
import resource
import signal
import sys
import time
import types
from typing import Any

HEADER = 1 << 16
MOST_FILES_OPEN = 512
"""open files and pipes hold memory, too"""
CLOCKS = ("perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "time", "time_ns", "process_time")


def load_beside(name: str) -> types.ModuleType:
    """A module that lies beside this file, without putting the folder on the path."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py")
    return load(path, "_scoring_" + name)


def load(path: str, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Runner:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.shape = (config["layers"], config["experts"])
        self.memory = mmap.mmap(config["memory_fd"], config["memory_size"])
        self.private = config["private"]
        self.readable = [*config["readable"], *{sys.prefix, sys.base_prefix, sys.exec_prefix}]
        self.isolation: list[str] = []
        self.watch: Any = None
        self.function: Any = None
        self.takes_current = False
        self.clocks = {name: getattr(time, name) for name in CLOCKS}

    def prepare(self) -> None:
        """Imports that may be slow, and the restrictions that need no program yet."""
        sandbox = load_beside("sandbox") if self.config["sandbox"] else None
        if sandbox is not None:
            sandbox.drop_privileges()
        # Threads that exist before are not restricted, so this comes before anything that starts some.
        if sandbox is not None and sandbox.restrict_files(self.readable, self.private):
            self.isolation.append("landlock")
        import numpy

        self.numpy = numpy
        self.torch: Any = importlib.import_module("torch") if self.config["torch"] else None
        for name in self.config["preload"]:
            importlib.import_module(name)
        loads = numpy.frombuffer(
            self.memory, self.config["dtype"], self.shape[0] * self.shape[1], self.config["input_at"]
        ).reshape(self.shape)
        slots = self.config["slots"]
        current = numpy.frombuffer(
            self.memory, "int64", self.shape[0] * slots, self.config["current_at"]
        ).reshape(self.shape[0], slots)
        self.loads: Any = loads if self.torch is None else self.torch.from_numpy(loads)
        self.current: Any = current if self.torch is None else self.torch.from_numpy(current)
        self.nothing = (
            numpy.zeros((self.shape[0], slots), "int64"),
            numpy.zeros((*self.shape, 2), "int64"),
            numpy.zeros(self.shape, "int64"),
        )
        self.limit()
        if sandbox is not None:
            if sandbox.restrict_calls():
                self.isolation.append("seccomp")
            program = self.config["program"]
            self.watch = sandbox.Watch(program, self.readable, self.private)
            self.isolation.append("audit")

    def limit(self) -> None:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        for what, most in (
            (resource.RLIMIT_AS, used + self.config["memory_limit"]),
            (resource.RLIMIT_CPU, self.config["cpu_limit"]),
            (resource.RLIMIT_FSIZE, 1 << 28),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NOFILE, MOST_FILES_OPEN),
        ):
            hard = resource.getrlimit(what)[1]
            value = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(what, (value, value))

    def load_program(self) -> dict[str, Any]:
        module = load(self.config["program"], "program")
        self.function = getattr(module, "rebalance_experts", None)
        if not callable(self.function):
            return {"error": "the program has no function rebalance_experts"}
        with contextlib.suppress(TypeError, ValueError):
            self.takes_current = "current" in inspect.signature(self.function).parameters
        return {}

    def call(self, with_current: bool) -> dict[str, Any]:
        keywords = {"current": self.current} if with_current and self.takes_current else {}
        config = self.config
        result = self.function(
            self.loads, config["slots"], config["groups"], config["nodes"], config["ranks"], **keywords
        )
        return self.store(result)

    def store(self, result: Any) -> dict[str, Any]:
        """Copy the three maps into shared memory; their types and shapes are the answer."""
        if not isinstance(result, tuple | list) or len(result) != 3:
            return {"error": f"rebalance_experts returned {describe(result)}, not three maps"}
        shapes = []
        for name, value, at, room in zip(
            ("phy2log", "log2phy", "logcnt"),
            result,
            self.config["output_at"],
            self.config["output_room"],
            strict=True,
        ):
            if self.torch is not None and type(value) is self.torch.Tensor:
                value = value.detach().cpu().numpy()
            if type(value) is not self.numpy.ndarray:
                return {"error": f"{name} is {describe(value)}, not an array or a tensor"}
            if value.dtype.kind not in "iu":
                return {"error": f"{name} has dtype {value.dtype}, not integers"}
            if value.size * 8 <= room:
                target = self.numpy.frombuffer(self.memory, "int64", value.size, at)
                target.reshape(value.shape)[...] = value
            shapes.append(list(value.shape))
        return {"shapes": shapes}

    def output_flushed(self) -> None:
        for stream in (sys.stdout, sys.__stdout__):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.flush()

    def answer(self, command: bytes) -> dict[str, Any]:
        if command == b"n":
            return {**self.store(self.nothing), "isolation": self.isolation}
        try:
            answer = self.load_program() if command == b"l" else self.call(command == b"c")
        except MemoryError:
            answer = {"error": f"the program needs more than its {self.config['memory_limit'] >> 20} MB"}
        except BaseException as error:  # sys.exit and KeyboardInterrupt of the program are its errors too
            answer = {"error": f"the program raised {type(error).__name__}: {error}"[:2000]}
            if "allocate" in str(error):
                answer["error"] = (
                    f"the program needs more than its {self.config['memory_limit'] >> 20} MB ({error})"[:500]
                )
        self.output_flushed()
        if self.watch is not None and self.watch.reasons:
            return {"error": self.watch.reasons[0]}
        if sys.modules.get("time") is not time:
            return {"error": "the program replaced the module time"}
        for name, clock in self.clocks.items():
            if getattr(time, name, None) is not clock:
                return {"error": f"the program replaced the clock time.{name}"}
        return answer

    def serve(self) -> None:
        commands, done = self.config["command_fd"], self.config["done_fd"]
        while command := os.read(commands, 1):
            text = json.dumps(self.answer(command)).encode()[: HEADER - 8]
            self.memory[8 : 8 + len(text)] = text
            self.memory[0:8] = len(text).to_bytes(8, "little")
            os.write(done, b"d")


def describe(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__


def main() -> None:
    config = json.loads(sys.argv[1])
    # The process is stopped most of the time; without this it would outlive a killed parent, stopped.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != config["parent"]:
        sys.exit(1)
    sys.argv = ["program"]
    # In front: an installed copy of the package must not take the place of the one that is running.
    sys.path[:0] = [path for path in config["paths"] if path not in sys.path]
    runner = Runner(config)
    runner.prepare()
    runner.serve()


main()
