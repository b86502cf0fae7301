"""What a scored program may not do: applied inside its own process, before it is loaded.

Three layers, each reported by name so that a result says how it was isolated:

- ``landlock``: the kernel refuses every file outside the interpreter, its packages and a private folder;
- ``seccomp``: the kernel refuses new processes, sockets, signals to others and a look into their memory;
- ``audit``: Python's audit events, which give the reason in words and cover Python code where the kernel
  offers neither of the others.

None needs root. This file is loaded by path in a fresh interpreter and imports the standard library alone.
Numbers are those of the Linux headers (landlock.h, seccomp.h, filter.h and the x86-64 system call table).
"""

from __future__ import annotations

import ctypes
import glob
import os
import platform
import signal
import struct
import sys
import threading
from typing import Any, ClassVar

PR_SET_NO_NEW_PRIVS = 38

# landlock.h
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
READ_FILE, READ_DIR, WRITE_FILE, TRUNCATE, IOCTL_DEV = 1 << 2, 1 << 3, 1 << 1, 1 << 14, 1 << 15
RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}

DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")

EPERM, ENOSYS = 1, 38
# x86-64 system calls that are refused whatever their arguments, by what they would allow.
REFUSED_CALLS = {
    # other processes, and a look into them
    "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "ptrace": 101, "process_vm_readv": 310,
    "process_vm_writev": 311, "process_madvise": 440, "kcmp": 312, "pidfd_open": 434, "pidfd_getfd": 438,
    "perf_event_open": 298, "bpf": 321, "setpgid": 109, "setsid": 112, "unshare": 272, "setns": 308,
    # signals to others, and signals that come while this process is stopped
    "tkill": 200, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "pidfd_send_signal": 424,
    "timer_create": 222, "mq_open": 240, "mq_notify": 244,
    # the network, and work that the kernel does for a stopped process
    "socket": 41, "io_uring_setup": 425, "io_setup": 206, "userfaultfd": 323,
    # clocks, priorities and limits
    "clock_settime": 227, "settimeofday": 164, "adjtimex": 159, "clock_adjtime": 305, "setpriority": 141,
    "sched_setparam": 142, "sched_setscheduler": 144, "sched_setattr": 314, "ioprio_set": 251,
    "migrate_pages": 256, "move_pages": 279, "setrlimit": 160,
    # files that Landlock leaves open to changes
    "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93, "lchown": 94,
    "fchownat": 260, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "setxattr": 188,
    "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
    "setxattrat": 463, "removexattrat": 466, "truncate": 76, "mount": 165, "chroot": 161,
    # memory that no limit counts, or that outlives the process
    "memfd_create": 319, "memfd_secret": 447, "shmget": 29, "shmat": 30, "msgget": 68, "semget": 64,
    "add_key": 248, "request_key": 249, "keyctl": 250,
}  # fmt: skip
# Refused where an argument (counted from 0) has a value, and where it has any other.
PR_SET_PDEATHSIG, F_SETOWN, F_SETSIG, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP = 1, 8, 10, 15, 0x8901, 0x8902
KILL, TGKILL, FCNTL, PRCTL, IOCTL, SCHED_SETAFFINITY, CLONE, CLONE3, PRLIMIT = (
    62, 234, 72, 157, 16, 203, 56, 435, 302,
)  # fmt: skip
REFUSED_IF = (
    (KILL, 1, signal.SIGCONT), (TGKILL, 2, signal.SIGCONT), (FCNTL, 1, F_SETOWN), (FCNTL, 1, F_SETSIG),
    (FCNTL, 1, F_SETOWN_EX), (IOCTL, 1, FIOSETOWN), (IOCTL, 1, SIOCSPGRP), (PRCTL, 0, PR_SET_PDEATHSIG),
)  # fmt: skip
REFUSED_UNLESS = ((KILL, 0, os.getpid()), (TGKILL, 0, os.getpid()), (SCHED_SETAFFINITY, 0, 0))

CAPABILITY_VERSION = 0x20080522
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


def drop_privileges() -> None:
    """Give up what root may do beyond reaching files, for this thread and all that it starts."""
    kept = 1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(24)
    if libc.capget(header, held) == 0:
        low = [word & kept for word in struct.unpack("=3I", held.raw[:12])]
        libc.capset(header, struct.pack("=6I", *low, 0, 0, 0))


def restrict_files(readable: list[str], private: str) -> bool:
    """Landlock this thread and all that it starts; whether the kernel could."""
    libc = ctypes.CDLL(None, use_errno=True)
    abi = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return False
    rights = RIGHTS_BY_ABI[min(abi, 3)]
    # Rights on networks exist from version 4 on, on signals and abstract sockets from version 6 on.
    network, scoped = (3 if abi >= 4 else 0), (3 if abi >= 6 else 0)
    attributes = struct.pack("=QQQ", rights, network, scoped)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    system = [f"/proc/{os.getpid()}", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys", "/sys"]
    rules = [(path, READ_FILE | READ_DIR) for path in [*readable, *system]]
    rules += [(path, READ_FILE | WRITE_FILE) for path in [*DEVICES, *glob.glob("/dev/nvidia*")]]
    rules.append((private, rights))
    for path, allowed in rules:
        try:
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not os.path.isdir(path):
            allowed &= READ_FILE | WRITE_FILE | TRUNCATE
        libc.syscall(ADD_RULE, ruleset, 1, struct.pack("=Qi", allowed & rights, folder), 0)
        os.close(folder)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    done: int = libc.syscall(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return done == 0


def restrict_calls() -> bool:
    """Put a seccomp filter on all threads; whether the kernel could."""
    if platform.machine() != "x86_64":
        return False
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, missing = 0x7FFF0000, 0x00050000 | EPERM, 0x00050000 | ENOSYS
    number, architecture, arguments = 0, 4, 16

    filters: list[tuple[int, int, int, int]] = [
        (load, 0, 0, architecture),
        (equal, 1, 0, 0xC000003E),
        (give, 0, 0, refuse),
        (load, 0, 0, number),
        (at_least, 0, 1, 0x40000000),  # the x32 numbers of the same calls
        (give, 0, 0, refuse),
    ]
    for call in REFUSED_CALLS.values():
        filters += [(equal, 0, 1, call), (give, 0, 0, refuse)]
    # clone3 hides its flags behind a pointer; "not there" makes the C library fall back to clone.
    filters += [(equal, 0, 1, CLONE3), (give, 0, 0, missing)]
    # clone only for threads.
    filters += [(equal, 0, 4, CLONE), (load, 0, 0, arguments), (any_bit, 0, 1, 0x10000)]
    filters += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    # prlimit64 may ask but not set: the new limits are its third argument, a pointer.
    filters += [(equal, 0, 6, PRLIMIT), (load, 0, 0, arguments + 16), (equal, 0, 3, 0)]
    filters += [(load, 0, 0, arguments + 20), (equal, 0, 1, 0), (give, 0, 0, allow), (give, 0, 0, refuse)]
    # The kernel reads these arguments as 32-bit numbers, as the filter does.
    for rules, (hit, miss) in ((REFUSED_IF, (0, 1)), (REFUSED_UNLESS, (1, 0))):
        for call, argument, value in rules:
            filters += [(equal, 0, 3, call), (load, 0, 0, arguments + 8 * argument)]
            filters += [(equal, hit, miss, value), (give, 0, 0, refuse), (load, 0, 0, number)]
    filters += [(give, 0, 0, allow)]

    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in filters)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(filters), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.syscall(317, 1, 1, program) == 0)  # a filter, synchronised to all threads


class Watch:
    """Audit events of the program: refuses some, and remembers the reason of each refusal."""

    processes = ("os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system", "subprocess.Popen")
    internals = ("gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys._current_frames")
    frames = ("tb_frame", "gi_frame", "cr_frame", "ag_frame")
    tracers = ("sys.setprofile", "sys.settrace", "sys.monitoring.register_callback")
    # Events of changes to files, with how many of their arguments are paths.
    changes: ClassVar[dict[str, int]] = {
        "os.chmod": 1, "os.chown": 1, "os.utime": 1, "os.setxattr": 1, "os.removexattr": 1, "os.truncate": 1,
        "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.rename": 2, "os.link": 2,
    }  # fmt: skip
    # These hand frames on; the rest of the module prints tracebacks, which is no offence.
    walkers = ("walk_stack", "walk_tb")

    def __init__(self, program: str, readable: list[str], private: str) -> None:
        self.reasons: list[str] = []
        self._program = program
        self._readable = [os.path.realpath(path) for path in readable] + ["/sys", "/proc/self"]
        self._readable += [
            f"/proc/{os.getpid()}",
            "/proc/cpuinfo",
            "/proc/meminfo",
            "/proc/stat",
            "/proc/sys",
        ]
        self._private = os.path.realpath(private)
        self._busy: set[int] = set()
        self._getframe = sys._getframe
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        thread = threading.get_ident()
        if thread in self._busy:
            return
        self._busy.add(thread)
        try:
            reason = self._reason(event, args)
        finally:
            self._busy.discard(thread)
        if reason:
            raise PermissionError(reason)

    def _reason(self, event: str, args: tuple[Any, ...]) -> str | None:
        if event == "open":
            return self._open(args[0], args[1], args[2], self._inside() and not self._importing())
        if event in ("os.listdir", "os.scandir", "os.chdir"):
            # Packages look through the import path for their plug-ins; names alone give nothing away.
            return self._open(args[0] if args and args[0] is not None else ".", "r", 0, self._direct())
        if event in self.changes:
            by_program = self._inside() and not self._importing()
            reasons = (self._open(path, "w", 0, by_program) for path in args[: self.changes[event]])
            return next(filter(None, reasons), None)
        if event == "sys._getframe" or (event == "object.__getattr__" and args[1] in self.frames):
            return self._note("looks into the frames of its caller") if self._direct() else None
        if event in self.tracers:
            return self._note("traces the code of its caller") if self._inside() else None
        if event in self.internals:
            return self._note("searches the interpreter's objects") if self._direct() else None
        if event in self.processes:
            return self._note("starts another process") if self._inside() else f"{event} is refused"
        if event in ("ctypes.dlopen", "ctypes.dlsym"):
            return self._note("calls into system libraries") if self._direct() else None
        if event.startswith("socket.") and event != "socket.gethostname":
            return self._note("opens a socket") if self._inside() else f"{event} is refused"
        return None

    def _open(self, path: Any, mode: Any, flags: Any, by_program: bool) -> str | None:
        if isinstance(path, int):
            return None
        name = os.path.realpath(os.fsdecode(path))
        if name.startswith((self._private + os.sep, "/dev/nvidia")) or name in (self._private, *DEVICES):
            return None
        writes = isinstance(mode, str) and any(c in mode for c in "wax+")
        writes = writes or bool(flags and flags & (os.O_WRONLY | os.O_RDWR))
        if not writes and any(name == root or name.startswith(root + os.sep) for root in self._readable):
            return None
        # A package that looks for its settings gets a refusal; the program itself is out.
        what = f"{'writes' if writes else 'reads'} {os.fsdecode(path)}, outside its own folder"
        return self._note(what) if by_program else f"the program {what}"

    def _note(self, what: str) -> str:
        reason = f"the program {what}"
        self.reasons.append(reason)
        return reason

    def _frames(self) -> list[tuple[str, str]]:
        """Files and functions of the frames below the hook, innermost first."""
        frame: Any = self._getframe(0)
        places = []
        while frame is not None:
            places.append((frame.f_code.co_filename, frame.f_code.co_name))
            frame = frame.f_back
        return [place for place in places if place[0] != __file__]

    def _direct(self) -> bool:
        """Whether the program itself asked, or did so through `inspect` and the like."""
        for name, function in self._frames():
            if name.endswith(("inspect.py", os.sep + "ctypes/__init__.py")):
                continue
            if name.endswith(os.sep + "traceback.py") and function in self.walkers:
                continue
            return name == self._program
        return False

    def _inside(self) -> bool:
        return any(name == self._program for name, _ in self._frames())

    def _importing(self) -> bool:
        for name, _ in self._frames():
            if name.startswith("<frozen importlib") or "/importlib/" in name:
                return True
            if name == self._program:
                return False
        return False
