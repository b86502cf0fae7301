"""The command, called in this process as a shell would call it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.cli import main


@dataclass
class Result:
    """What a run left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an expected failure; whatever else was printed fails the test."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1, self.err
        return self.err.rstrip("\n")


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: Any) -> Result:
        monkeypatch.setattr(sys, "argv", ["equipoise", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code
        out, err = capsys.readouterr()
        return Result(code or 0, out, err)

    return call


@pytest.fixture
def load(tmp_path: Path) -> Path:
    """A stat dump as JSON: two MoE layers of 16 experts behind a dense one."""
    counts = np.random.default_rng(3).integers(1, 1000, (3, 16))
    counts[0] = 0
    path = tmp_path / "load.json"
    path.write_text(json.dumps({"logical_count": counts.tolist()}))
    return path
