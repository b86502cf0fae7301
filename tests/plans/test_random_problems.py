"""Several hundred of the random problems of benchmarks/fuzz_plans.py."""

from __future__ import annotations

import numpy as np
import pytest

import equipoise as eq
import fuzz_plans


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_random_problems(first: int) -> None:
    for number in range(first, first + 100):
        case = fuzz_plans.case_of(number)
        assert not list(fuzz_plans.findings(case)), number


def test_the_checks_can_fail() -> None:
    row = np.array([[0, 0, 1, 2]])
    assert list(fuzz_plans.twins(row, eq.Topology(2, 2), "auto"))
    assert not list(fuzz_plans.twins(np.array([[0, 1, 0, 2]]), eq.Topology(2, 2), "auto"))
    placement = eq.Placement([[0, 1, 0, 2]], 2, 3)
    assert fuzz_plans.exact_imbalance(np.array([[[2.0, 1.0, 3.0]]]), placement).tolist() == [4 / 3]
