"""Loads as integers."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.planning import scale
from problems import KINDS, loads_of


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_integers(kind: str) -> None:
    loads = loads_of(kind, (5, 30), 0)
    integers = scale.to_integers(loads)
    assert integers.min() >= 0
    for row, numbers in zip(loads, integers, strict=True):
        assert numbers.max() == (1 << 30 if row.max() else 0)
        assert np.allclose(numbers, row / (row.max() or 1) * (1 << 30), rtol=0, atol=0.5)
