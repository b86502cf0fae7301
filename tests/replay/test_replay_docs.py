"""The figures in ``docs/replay.md`` are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from equipoise.control import ACCELERATORS, FORECASTS, LINKS, MODELS, WEIGHT_BYTES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "replay.md"


def row(name):
    lines = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}` |")
    ]
    assert len(lines) == 1, name
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    model, cells = MODELS[name], row(name)
    widths = [f"{model.hidden:,}", f"{model.intermediate:,}"]
    shape = [str(model.layers), str(model.experts), str(model.top_k)]
    assert cells[1:-1] == [*shape, *widths, model.dtype, f"{model.expert_bytes() / 1e6:.1f}"]
    assert model.source in cells[-1]


def test_the_other_presets():
    for name, weights in WEIGHT_BYTES.items():
        assert row(name)[1:] == [f"{weights.bytes:.5g}", weights.source]
    for name, link in LINKS.items():
        assert row(name)[1:] == [f"{link.bytes_per_s / 1e9:.0f}", link.source]
    for name, chip in ACCELERATORS.items():
        assert row(name)[2:] == [chip.source, f"{chip.memory_bytes / 1e9:g}"]
    for name in FORECASTS:
        row(name)
