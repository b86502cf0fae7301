"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Tests run side by side on few cores; torch's threads would wait for each other more than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Kernels for Triton run in its interpreter, on the processor; it is asked for before Triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("equipoise", deadline=None, derandomize=True)
settings.load_profile("equipoise")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def traces() -> Path:
    """The folder of real loads beside the repository; tests that need it are skipped where it is missing."""
    folder = ROOT.parent / "shared" / "traces"
    if not folder.is_dir():
        pytest.skip("the real traces (../shared/traces) are not on this machine")
    return folder
