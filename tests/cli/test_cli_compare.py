"""`equipoise compare`: placements side by side, each number as its definition says."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


@pytest.fixture
def numbered(tmp_path):
    """Loads that count three MoE layers; what serves them is layers 1 to 3 of a model in three files."""
    counts = np.random.default_rng(1).integers(0, 1000, (4, 3, 16))
    made = eq.plan(counts, eq.Topology(4, 5), "greedy").placement
    with_numbers = replace(made, layers=(1, 2, 3), num_model_layers=4)
    loads = tmp_path / "counted.safetensors"
    eq.save_trace(eq.LoadTrace(counts), loads)
    files = {"sglang": "b.json", "equipoise": "c.safetensors", "vllm": "d.jsonl"}
    for engine, name in files.items():
        # A row for the dense layer before them is in SGLang's file; the others count as the loads do.
        eq.save_placement(with_numbers if engine == "sglang" else made, tmp_path / name, engine)
    return loads, [tmp_path / name for name in files.values()], counts, made


def test_loads_that_count_layers_are_not_read_shifted(run, numbered, tmp_path):
    loads, files, counts, made = numbered
    for order in permutations(files):
        result = run("compare", *order, "--load", loads, "--ranks", 4, "--json")
        assert result.code == 0, result.err
        content = json.loads(result.out)
        assert content["layers"] == [1, 2, 3]
        assert "b.json" in content["note"]
        assert np.array(content["moves"]).sum() == 0
        for found in content["placements"]:
            assert found["mean_imbalance"] == pytest.approx(imbalance_of(counts, made))
    shown = run("compare", *files, "--load", loads, "--ranks", 4).out
    assert shown.count("count 3 MoE layers from 0; they are taken for the layers 1 to 3") == 1


def test_loads_with_numbers_beside_files_without(run, numbered, tmp_path):
    _, files, counts, made = numbered
    loads = tmp_path / "numbered.safetensors"
    eq.save_trace(eq.LoadTrace(counts, layers=(1, 2, 3), num_model_layers=4), loads)
    content = json.loads(run("compare", *files, "--load", loads, "--ranks", 4, "--json").out)
    assert content["note"] is None
    assert [found["mean_imbalance"] for found in content["placements"]] == pytest.approx(
        [imbalance_of(counts, made)] * 3
    )


def test_layers_that_nobody_can_tell_are_refused(run, numbered, tmp_path):
    """SGLang's file has rows of four layers, none of which looks like filling, and the loads are of three."""
    loads, files, counts, _ = numbered
    rows = np.stack([np.random.default_rng(layer).permutation(np.r_[:16, :4]) for layer in range(4)])
    path = tmp_path / "four.json"
    path.write_text(json.dumps({"physical_to_logical_map": rows.tolist()}))
    for order in ((path, files[1]), (files[1], path)):
        error = run("compare", *order, "--load", loads, "--ranks", 4).error
        assert "four.json has the model's layers 0 to 3, the loads count 3 MoE layers from 0" in error
        assert "say with --layers which ones they are" in error
    named = run("compare", path, files[1], "--load", loads, "--ranks", 4, "--layers", "1-3", "--json")
    served = eq.Placement(rows[1:], 4, 16)
    assert json.loads(named.out)["placements"][0]["mean_imbalance"] == pytest.approx(
        np.mean([eq.imbalance(eq.rank_loads(window, served)) for window in counts])
    )


def test_files_of_other_layers_are_refused(run, numbered, tmp_path):
    loads, files, _, made = numbered
    eq.save_placement(replace(made, layers=(0, 1, 3), num_model_layers=4), tmp_path / "other.safetensors")
    error = run("compare", files[0], tmp_path / "other.safetensors", "--load", loads, "--ranks", 4).error
    assert "other.safetensors: has no layer 2; it has 0, 1, 3" in error


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), experts=st.integers(2, 9), seed=st.integers(0, 1 << 16))
def test_whatever_layers_are_dense_rows_and_loads_meet(run, tmp_path, data, experts, seed):
    """Loads that count, and SGLang's file of all layers of a model: scored by the right rows, or refused."""
    total = data.draw(st.integers(1, 6))
    moe = sorted(data.draw(st.sets(st.integers(0, total - 1), min_size=1)))
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 50, (2, len(moe), experts)) + 1
    rows = np.stack([rng.permutation(np.r_[:experts, :experts]) for _ in moe])
    made = eq.Placement(rows, 2, experts, layers=tuple(moe), num_model_layers=total)
    eq.save_placement(made, tmp_path / "a.json", "sglang")
    eq.save_placement(made, tmp_path / "b.safetensors", "equipoise")
    eq.save_trace(eq.LoadTrace(counts), tmp_path / "loads.safetensors")
    names = tmp_path / "a.json", tmp_path / "b.safetensors"
    result = run("compare", *names, "--load", tmp_path / "loads.safetensors", "--ranks", 2, "--json")
    if result.code:
        assert "say with --layers" in result.error
        return
    wanted = np.mean([eq.imbalance(eq.rank_loads(window, made)) for window in counts])
    found = [one["mean_imbalance"] for one in json.loads(result.out)["placements"]]
    assert found == pytest.approx([wanted] * 2)


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
