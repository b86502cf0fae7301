"""Kernels that Python calls, that kernels call, and that both do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core import config

from equipoise.planning.kernel import kernel


def pair() -> tuple[Any, Any]:
    """Two kernels of which the second calls the first."""

    @kernel
    def doubled(values):  # type: ignore[no-untyped-def]
        total = 0.0
        for value in values:
            total += 2.0 * value
        return total

    @kernel
    def shifted(values, by):  # type: ignore[no-untyped-def]
        return doubled(values) + by

    return doubled, shifted


@pytest.mark.parametrize("called_first", [0, 1])
def test_a_kernel_is_called_by_python_and_by_kernels(called_first: int) -> None:
    doubled, shifted = pair()
    values = np.arange(4.0)
    calls = [lambda: doubled(values) == 12.0, lambda: shifted(values, 1.5) == 13.5]
    for number in (called_first, 1 - called_first, called_first):
        assert calls[number]()
    assert doubled(np.arange(3)) == 6.0  # of other types
    assert shifted(np.arange(3), 1) == 7.0


def test_what_kernels_alone_call_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    _, shifted = pair()
    assert shifted(np.arange(4.0), 1.5) == 13.5
    assert {path.name.split(".")[1] for path in tmp_path.rglob("*.nb*")} == {"shifted"}


def test_an_error_in_a_called_kernel_is_raised() -> None:
    @kernel
    def refuses(size):  # type: ignore[no-untyped-def]
        return np.empty(size, np.int64).size

    @kernel
    def asks(size):  # type: ignore[no-untyped-def]
        return refuses(size) + 1

    assert asks(3) == 4
    with pytest.raises(ValueError, match="negative dimensions"):
        asks(-1)
