"""The command ``equipoise``: thin wrappers that parse, call and print."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

__all__ = ["main"]

INTERRUPTED = 130


def leave(number: int = 0, frame: FrameType | None = None) -> NoReturn:
    """Exit with status 130, not waiting for threads that compile kernels or plan; also a handler of signals."""
    if sys.stdout is not None:
        sys.stdout.flush()
    os.write(2, b"\n")
    os._exit(INTERRUPTED)


def main() -> None:
    """Run the command line; from the first import on, Ctrl-C ends it without a traceback."""
    # An extension module that is being imported turns KeyboardInterrupt into errors of its own.
    signal.signal(signal.SIGINT, leave)
    from .app import main as run

    run()
