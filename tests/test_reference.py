"""The plain-Python reference itself gives the published example."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reference import greedy

WEIGHTS = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
PHY2LOG = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def test_the_published_example() -> None:
    phy2log, log2phy, logcnt = greedy(WEIGHTS, 16, 4, 2, 8)
    assert phy2log.tolist() == PHY2LOG
    assert logcnt.sum(axis=1).tolist() == [16, 16]
    assert log2phy.shape == (2, 12, 2)


@pytest.mark.parametrize("topology", [(24, 6), (32, 4), (16, 16), (20, 1)])
def test_the_form_in_plain_torch_gives_the_same(topology: tuple[int, int]) -> None:
    """What `benchmarks/bench_gpu.py` times."""
    torch = pytest.importorskip("torch")
    import deepseek_torch

    loads = np.random.default_rng(0).integers(1, 50, (3, 16)).astype(np.float64)  # with ties
    found = deepseek_torch.greedy(torch.from_numpy(loads), *topology)
    assert found.tolist() == greedy(loads, topology[0], 1, 1, topology[1])[0].tolist()


def test_the_benchmark_of_gpus_says_so_where_there_is_none() -> None:
    pytest.importorskip("torch")
    script = Path(__file__).parents[1] / "benchmarks" / "bench_gpu.py"
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(script)], env=hidden, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "there is no GPU: nothing was measured on a GPU\n"
