"""The runtime's names are there when they are asked for, and torch no earlier."""

from __future__ import annotations

import subprocess
import sys

import pytest

import equipoise
import equipoise.runtime as runtime
from equipoise import MissingDependencyError


def test_every_name_is_there_and_explained():
    pytest.importorskip("torch")
    for name in runtime.__all__:
        assert getattr(runtime, name).__doc__, name
        assert name in dir(runtime)
    assert equipoise.LiveBalancer is runtime.LiveBalancer
    with pytest.raises(AttributeError):
        runtime.nothing_of_this_name  # noqa: B018


@pytest.mark.parametrize(
    "statement", ["import equipoise.runtime", "from equipoise import *", "from equipoise.runtime import Pace"]
)
def test_torch_is_not_imported_before_it_is_needed(statement):
    code = f"{statement}\nimport sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_torch_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("equipoise.runtime.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(vars(runtime), "LiveBalancer", raising=False)
    with pytest.raises(MissingDependencyError, match="pip install"):
        runtime.LiveBalancer  # noqa: B018
