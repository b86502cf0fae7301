"""Programs to score: honest ones and cheats, as text."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import equipoise
from equipoise.cli import main

SOURCE = str(Path(equipoise.__file__).parents[1])
COMMAND = "from equipoise.cli import main; main()"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with this source tree, in a process of its own."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": SOURCE, **environment},
    )


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``equipoise score`` with these arguments, as a process where it needs another environment.

    In this process it imports nothing anew; programs have processes of their own in either case.
    """
    if set(environment) - {"COLUMNS"}:
        return run("-c", COMMAND, "score", *arguments, **environment)
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors="surrogateescape") for _ in range(2)]
    before, code = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}, 0
    with pytest.MonkeyPatch.context() as here:
        for name, value in environment.items():
            here.setenv(name, value)
        here.setattr(sys, "argv", ["equipoise", "score", *arguments])
        here.setattr(sys, "stdout", streams[0])
        here.setattr(sys, "stderr", streams[1])
        try:
            main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    for number, handler in before.items():
        signal.signal(number, handler)
    out, err = ((stream.flush(), stream.buffer.getvalue().decode())[1] for stream in streams)
    return subprocess.CompletedProcess(arguments, code, out, err)


HONEST = """
import numpy as np

def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):
    weight = np.asarray(weight)
    layers, experts = weight.shape
    phy2log = np.empty((layers, num_replicas), dtype=np.int64)
    logcnt = np.ones((layers, experts), dtype=np.int64)
    for layer in range(layers):
        for _ in range(num_replicas - experts):
            logcnt[layer, np.argmax(weight[layer] / logcnt[layer])] += 1
        replicas = np.repeat(np.arange(experts), logcnt[layer])
        load = (weight[layer] / logcnt[layer])[replicas]
        totals, room = np.zeros(num_gpus), np.full(num_gpus, num_replicas // num_gpus)
        for item in np.argsort(-load, kind="stable"):
            rank = int(np.argmin(np.where(room > 0, totals, np.inf)))
            room[rank] -= 1
            phy2log[layer, rank * (num_replicas // num_gpus) + room[rank]] = replicas[item]
            totals[rank] += load[item]
    log2phy = np.full((layers, experts, logcnt.max()), -1, dtype=np.int64)
    for layer in range(layers):
        for expert in range(experts):
            slots = np.flatnonzero(phy2log[layer] == expert)
            log2phy[layer, expert, : len(slots)] = slots
    return phy2log, log2phy, logcnt
"""


def cheat(before: str = "", inside: str = "", after: str = "") -> str:
    """The honest program with lines at the top, before its answer is computed, and before it is returned."""

    def indent(lines: str) -> str:
        return "".join(f"    {line}\n" for line in lines.strip("\n").split("\n"))

    return (
        HONEST.replace("def rebalance_experts", "def honest")
        + f"\n{before}\n\n"
        + "def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):\n"
        + indent(inside or "pass")
        + "    phy2log, log2phy, logcnt = honest(weight, num_replicas, num_groups, num_nodes, num_gpus)\n"
        + indent(after or "pass")
        + "    return phy2log, log2phy, logcnt\n"
    )


TORCH = """
import torch

# EVOLVE-BLOCK-START
def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):
    assert isinstance(weight, torch.Tensor) and weight.dtype == torch.int64
    layers, experts = weight.shape
    phy2log = (torch.arange(num_replicas) % experts).repeat(layers, 1)
    logcnt = torch.ones(layers, experts, dtype=torch.int64)
    logcnt[:, : num_replicas - experts] += 1
    log2phy = torch.stack([torch.arange(experts), torch.arange(experts) + experts], dim=1)
    log2phy[num_replicas - experts :, 1] = -1
    return phy2log, log2phy.repeat(layers, 1, 1), logcnt
# EVOLVE-BLOCK-END
"""

# Any system call, behind the back of Python's audit events: a module of the standard library asks for the function.
SYSCALL = """
import ctypes
import string
_known = string.Formatter().get_field("0.syscall", (ctypes.pythonapi,), {})[0]
_raw = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_long] * 7, use_errno=True)(
    ctypes.cast(_known, ctypes.c_void_p).value
)

def syscall(number, *arguments):
    ctypes.set_errno(0)
    result = _raw(number, *arguments, *[0] * (6 - len(arguments)))
    return result, ctypes.get_errno()
"""

# Writes an answer into shared memory and says that it is there.
FORGE = """
import mmap, os, stat

def forge(text):
    for descriptor in range(3, 256):
        try:
            size = os.fstat(descriptor).st_size
            area = mmap.mmap(descriptor, size)
        except (OSError, ValueError):
            continue
        area[8 : 8 + len(text)] = text
        area[0:8] = len(text).to_bytes(8, "little")
    for descriptor in range(3, 256):
        try:
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.write(descriptor, b"d")
        except OSError:
            pass
    while True:
        pass
"""
