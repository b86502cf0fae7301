"""`equipoise compare`: placements side by side, each number as its definition says."""

from __future__ import annotations

import json

import numpy as np
import pytest

import equipoise as eq
from equipoise.plans.compare import compare

LAYERS, EXPERTS = 3, 16


@pytest.fixture
def counts():
    return np.random.default_rng(0).integers(0, 1000, (5, LAYERS, EXPERTS))


@pytest.fixture
def files(tmp_path, counts):
    """Loads of five windows, and placements of two engines."""
    loads = tmp_path / "loads.safetensors"
    eq.save_trace(eq.LoadTrace(counts), loads)
    made = {
        "a.safetensors": eq.contiguous_placement(LAYERS, EXPERTS, 4, 20),
        "b.json": eq.plan(counts, eq.Topology(4, 5), "greedy").placement,
        "c.jsonl": eq.plan(counts, eq.Topology(4, 6), "greedy").placement,
    }
    for name, placement in made.items():
        eq.save_placement(
            placement,
            tmp_path / name,
            {"a.safetensors": "equipoise", "b.json": "sglang", "c.jsonl": "vllm"}[name],
        )
    return loads, made


def imbalance_of(counts, placement):
    """Plainly: every token to its expert's replicas in equal parts, the busiest rank over the mean, averaged."""
    found = []
    for window in counts:
        for layer, loads in enumerate(window):
            experts = placement.phy2log[layer]
            slots = np.array([loads[e] / np.sum(experts == e) for e in experts])
            ranks = slots.reshape(placement.num_ranks, -1).sum(axis=1)
            found.append(ranks.max() / ranks.mean())
    return np.mean(found)


def fetches(old, new):
    per_rank = [
        [set(row) for row in placement.phy2log[layer].reshape(placement.num_ranks, -1).tolist()]
        for layer in range(LAYERS)
        for placement in (old, new)
    ]
    return sum(
        len(after - before)
        for layer in range(LAYERS)
        for before, after in zip(per_rank[2 * layer], per_rank[2 * layer + 1], strict=True)
    )


def test_numbers_are_those_of_their_definitions(run, files, counts, tmp_path):
    loads, made = files
    names = [tmp_path / name for name in made]
    result = run("compare", *names, "--load", loads, "--ranks", 4, "--json")
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["windows"] == 5
    for found, (name, placement) in zip(content["placements"], made.items(), strict=True):
        assert found["name"] == name
        assert found["mean_imbalance"] == pytest.approx(imbalance_of(counts, placement))
        summed = imbalance_of(counts.sum(axis=0)[None], placement)
        assert found["mean_imbalance_summed"] == pytest.approx(summed)
        assert found["twins"] == placement.twins.sum()
    for i, old in enumerate(made.values()):
        for j, new in enumerate(made.values()):
            assert content["moves"][i][j] == fetches(old, new)
    least = min(content["placements"], key=lambda found: found["mean_imbalance"])
    assert content["best"] == least["name"]


def test_table_and_sentence_agree(run, files, tmp_path):
    loads, made = files
    arguments = ("compare", *(tmp_path / name for name in made), "--load", loads, "--ranks", 4)
    result = run(*arguments)
    assert result.code == 0, result.err
    assert f"{json.loads(run(*arguments, '--json').out)['best']} holds best" in result.out
    for words in ("5 windows x 3 layers", "4 x 5", "4 x 6", "Moves from the row to the column"):
        assert words in result.out
    assert max(map(len, result.out.splitlines())) <= 80


def test_windows_are_summed(run, files, tmp_path):
    loads, made = files
    names = [tmp_path / name for name in made]
    content = json.loads(
        run("compare", *names, "--load", loads, "--ranks", 4, "--window-steps", 5, "--json").out
    )
    assert content["windows"] == 1
    for found in content["placements"]:
        assert found["mean_imbalance"] == pytest.approx(found["mean_imbalance_summed"])


def test_other_ranks_have_no_moves_between_them(counts):
    four, two = (eq.contiguous_placement(LAYERS, EXPERTS, ranks, 16) for ranks in (4, 2))
    found = compare({"four": four, "two": two}, eq.LoadTrace(counts))
    assert found.moves.tolist() == [[0, -1], [-1, 0]]
    assert found.as_dict()["moves"] == [[0, None], [None, 0]]


def test_files_of_one_name_are_told_apart(run, files, tmp_path):
    loads, _ = files
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.json").write_bytes((tmp_path / "b.json").read_bytes())
    paths = [tmp_path / "b.json", other / "b.json"]
    content = json.loads(run("compare", *paths, "--load", loads, "--ranks", 4, "--json").out)
    assert [found["name"] for found in content["placements"]] == list(map(str, paths))
    assert content["moves"] == [[0, 0], [0, 0]]


def test_what_does_not_fit_is_one_line(run, files, tmp_path):
    loads, made = files
    paths = [tmp_path / name for name in made]
    assert "two placements or more" in run("compare", paths[0], "--load", loads).error
    assert "named twice" in run("compare", paths[0], paths[0], "--load", loads).error
    assert "give --ranks" in run("compare", *paths, "--load", loads).error
    assert "none.json" in run("compare", *paths, tmp_path / "none.json", "--load", loads, "--ranks", 4).error
    other = tmp_path / "other.safetensors"
    eq.save_placement(eq.contiguous_placement(LAYERS, 8, 4), other)
    assert "8 experts, but the loads have 16" in run("compare", paths[0], other, "--load", loads).error
    assert "'--load'" in run("compare", *paths).error


def test_a_placement_for_batches_is_scored_as_it_is_served(run, files, tmp_path):
    """Beside one for an even split: each window of the first is split by its own load."""
    loads, made = files
    trace = eq.load_trace(loads)
    placement = eq.plan(trace, eq.Topology(4, 5), eq.Robust(split="batch")).placement
    eq.save_placement(placement, tmp_path / "batch.safetensors", "equipoise")
    swept = np.mean(
        [
            eq.imbalance(eq.rank_loads(window, placement, eq.split_batch(window, placement))).mean()
            for window in trace.counts
        ]
    )
    names = (tmp_path / "a.safetensors", tmp_path / "batch.safetensors")
    found = json.loads(run("compare", *names, "--load", loads, "--json").out)["placements"]
    assert [one["split"] for one in found] == ["even", "batch"]
    assert found[0]["mean_imbalance"] == pytest.approx(imbalance_of(trace.counts, made["a.safetensors"]))
    assert found[1]["mean_imbalance"] == pytest.approx(swept)
    assert found[1]["mean_imbalance"] < imbalance_of(trace.counts, placement)
    shown = run("compare", *names, "--load", loads).out
    assert "split" in shown
    assert "split" not in run("compare", names[0], tmp_path / "b.json", "--load", loads).out
