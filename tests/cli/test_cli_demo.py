"""`equipoise demo`: honest about its load, readable anywhere."""

from __future__ import annotations

import json


def test_replays_what_was_recorded_and_says_so(run):
    result = run("demo")
    assert result.out.startswith("RECORDED")
    content = json.loads(run("demo", "--json").out)["recorded"]
    judged = {
        series["policy"]: series["summary"]["mean_imbalance"]
        for series in content["series"]
        if series["role"] in ("policy", "do-nothing")
    }
    assert judged["robust"] < judged["greedy"] < judged["contiguous"]
    for imbalance in judged.values():
        assert f" {imbalance:.4f} " in result.out
    assert result.out.index("RECORDED") < result.out.index("SYNTHETIC")


def test_says_synthetic_and_draws_every_rank(run):
    result = run("demo")
    assert result.code == 0
    assert "SYNTHETIC" in result.out
    lines = result.out.splitlines()
    first = lines.index(next(line for line in lines if line.startswith("rank")))
    bars = lines[first + 1 : first + 33]
    assert [int(line.split()[0]) for line in bars] == list(range(32))
    assert all(len(line.split()) == 5 for line in bars)
    hottest = max(bars, key=lambda line: float(line.split()[2]))
    assert len(hottest.split()[1]) == max(len(line.split()[1]) for line in bars)
    assert float(hottest.split()[2]) > 1.5
    assert all(float(line.split()[4]) < 1.05 for line in bars)
    assert "held-out" in result.out


def test_fits_80_columns_without_colour(run):
    result = run("demo")
    assert max(len(line) for line in result.out.splitlines()) <= 80
    assert "\x1b" not in result.out


def test_no_color_on_a_colourful_terminal(run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[3" in run("demo").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in run("demo").out


def test_json(run):
    both = json.loads(run("demo", "--json", "--policy", "greedy").out)
    assert list(both) == ["recorded", "synthetic"]
    assert both["recorded"]["settings"]["policies"] == ["greedy"]
    content = both["synthetic"]
    assert content["source"].startswith("synthetic")
    assert content["report"]["policy"] == "greedy"
    assert len(content["layers"]) == 58
    assert content["topology"]["num_slots"] == 288
    held_out = content["held_out"]
    assert 1.0 < held_out["after"]["mean_imbalance"] < held_out["before"]["mean_imbalance"]


def test_same_seed_same_plan(run):
    first, second, other = (
        json.loads(run("demo", "--json", "--seed", s).out)["synthetic"] for s in (1, 1, 2)
    )
    for content in (first, second, other):
        content["report"].pop("seconds")
    assert first == second
    assert first["report"] != other["report"]
