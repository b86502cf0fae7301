"""The figures in README.md are those that the command prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import equipoise as eq

README = Path(__file__).resolve().parents[2] / "README.md"
ROWS = {
    name: [float(cell.strip(" *") or "nan") for cell in cells.split("|")]
    for name, cells in re.findall(
        r"^\| `(\w+)`[^|]*\|([\d.*| ]+)\|$", README.read_text(encoding="utf-8"), re.MULTILINE
    )
}


def test_every_policy_has_its_row():
    assert list(ROWS) == list(eq.policies)


@pytest.mark.parametrize("policy", ROWS)
def test_table_of_policies(run, policy):
    content = json.loads(run("demo", "--policy", policy, "--json").out)["synthetic"]
    mean, worst, twins, held_out = ROWS[policy]
    report = content["report"]
    assert report["after"]["mean_imbalance"] == pytest.approx(mean, abs=1e-4)
    assert report["after"]["worst_layer"] == pytest.approx(worst, abs=1e-4)
    assert sum(report["twins"]) == twins
    assert content["held_out"]["after"]["mean_imbalance"] == pytest.approx(held_out, abs=1e-4)
