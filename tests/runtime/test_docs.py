"""The program of docs/runtime.md runs as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
PAGE = Path(__file__).parents[2] / "docs" / "runtime.md"


def test_the_program_serves_and_moves_experts(tmp_path):
    [program] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "serve.py").write_text(program, encoding="utf-8")
    threads = {"OMP_NUM_THREADS": "1", "EQUIPOISE_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "serve.py"],
        env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"rank (\d): (\w+), commits of each layer (\[.*?\])", done.stdout)
    assert sorted(int(rank) for rank, *_ in found) == [0, 1, 2, 3]
    assert len({commits for *_, commits in found}) == 1
    assert all(state != "degraded" for _, state, _ in found)
    assert max(json.loads(found[0][2])) >= 1
