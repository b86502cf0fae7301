"""`equipoise warmup`: what it says, and that it says the truth."""

from __future__ import annotations

import os

from equipoise.plans.warmup import EVERY_KIND


def test_says_what_was_compiled_and_the_second_time_nothing(run):
    assert run("warmup").code == 0
    result = run("warmup")
    assert (result.code, result.err) == (0, "")
    assert result.out == "All kernels have been compiled before; there is nothing to do.\n"


def test_kernels_that_cannot_be_kept_are_one_line(run, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", os.devnull)
    monkeypatch.setattr("equipoise.plans.warmup.EVERY_KIND", EVERY_KIND[-1:])
    assert "compiled kernels are not kept" in run("warmup").error
