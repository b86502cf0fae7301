"""What a planner does before serving, so that its first answer does nothing that later ones do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FIRST_ANSWERS = """
import sys, logging
import numpy as np
from equipoise import Topology, contiguous_placement
from equipoise.engines.planning import Planner
from equipoise.engines.question import Question
from equipoise.engines.settings import Settings
from equipoise.problem import Held
from numba.core import event

planner = Planner(Settings(policy=sys.argv[1]), logging.getLogger("test"))
planner.prepare(Topology(4, 5), 3, 16)
known, compiled = set(sys.modules), event.RecordingListener()
held = Held(contiguous_placement(3, 16, 4, 20).phy2log, 4, 16)
with event.install_listener("numba:compile", compiled):
    for seed in range(2):
        counts = np.random.default_rng(seed).lognormal(0, 1, (3, 16))
        made = planner.answer(Question(counts, Topology(4, 5), held, True))
        assert made.placement is not None, made.reason
print(len(compiled.buffer), sorted(set(sys.modules) - known))
print("prometheus_client" in sys.modules)
"""


@pytest.mark.parametrize("policy", ["robust", "greedy", "ensemble"])
def test_a_first_answer_compiles_and_imports_nothing(policy: str, tmp_path: Path) -> None:
    """The client of Prometheus included, which takes longer to import than most plans take."""
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", FIRST_ANSWERS, policy],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found, client = done.stdout.splitlines()
    assert found == "0 []"
    pytest.importorskip("prometheus_client")
    assert client == "True"
