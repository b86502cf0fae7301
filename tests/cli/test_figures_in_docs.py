"""The figures in README.md are those that the command prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import equipoise as eq

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
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


RECORDED = dict(
    re.findall(
        r"^\| `?([\w() ]+)`? \|([\d.*%| ]+)\|$",
        (ROOT / "docs" / "demo.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
)


@pytest.mark.parametrize("policy", eq.policies)
def test_table_of_the_recorded_load(run, policy):
    series = json.loads(run("demo", "--policy", policy, "--json").out)["recorded"]["series"]
    roles = {"do-nothing": "(do nothing)", "policy": policy}
    judged = {
        roles[one["role"]]: one["summary"]
        for one in series
        if one["role"] in roles and one["policy"] in ("contiguous", policy)
    }
    for name in ("(do nothing)", policy):
        mean, worst, moved = (float(cell.strip(" *%") or 0) for cell in RECORDED[name].split("|"))
        assert judged[name]["mean_imbalance"] == pytest.approx(mean, abs=6e-5)
        assert judged[name]["worst_layer"] == pytest.approx(worst, abs=6e-5)
        assert 100 * judged[name]["moves_share"] == pytest.approx(moved, abs=0.06)
