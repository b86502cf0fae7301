"""The examples in docstrings and in README.md give what they say."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import equipoise

PACKAGE = Path(equipoise.__file__).parent
README = PACKAGE.parents[1] / "README.md"
MODULES = sorted(
    ".".join(("equipoise", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    result = doctest.testmod(import_module(name), extraglobs={"np": np, "eq": equipoise})
    assert result.attempted
    assert not result.failed


def test_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted
    assert not result.failed
