"""What the tests of reports share."""

from __future__ import annotations

import pytest
from pages import run

from equipoise import Topology


@pytest.fixture(scope="session")
def result():
    return run(
        ["one", "two"], [Topology(8, 3, 2, 4), Topology(4, 5)], forecasts=["windows", "last"], layers=6
    )
