"""What ranks would each compile is compiled before they are forked."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise import Topology, plan
from equipoise.plans.warmup import TransferKind


@pytest.fixture(scope="session", autouse=True)
def kernels():
    for loads in (np.arange(16.0).reshape(2, 8), np.arange(32.0).reshape(2, 2, 8)):
        plan(loads, Topology(4, 3), policy="greedy")
    TransferKind().warm()
