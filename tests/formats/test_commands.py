"""``equipoise inspect`` and ``equipoise convert`` as a user meets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import samples
from equipoise import LoadTrace, load_placement, load_trace
from equipoise.report.loads import similarity, summarise

Run = Callable[..., tuple[int, str, str]]


def test_inspect_shows_what_matters(run: Run, tmp_path: Path) -> None:
    code, out, err = run("inspect", samples.stat_json(tmp_path), "--ranks", "2,4,16", "--layers", "1-2,4")
    assert (code, err) == (0, "")
    assert "3 of 6 in the model (1, 2, 4)" in out
    assert "nothing odd found" in out
    assert "hottest tenth" in out


@pytest.mark.parametrize("kind", samples.LOADS)
def test_inspect_json_of_every_format(kind: str, run: Run, tmp_path: Path) -> None:
    path = samples.LOADS[kind](tmp_path)
    code, out, _ = run("inspect", path, "--json", "--ranks", "4")
    content = json.loads(out)
    trace = load_trace(path)
    assert code == 0
    assert content["windows"] == len(trace)
    assert content["layer_numbers"] == list(trace.layers)
    assert content["per_layer"][0]["layer"] == trace.layers[0]


def test_inspect_window_options(run: Run, tmp_path: Path) -> None:
    _, out, _ = run("inspect", samples.routes(tmp_path), "--json", "--window-tokens", "25", "--experts", "16")
    assert (json.loads(out)["windows"], json.loads(out)["experts"]) == (4, 16)
    _, out, _ = run("inspect", samples.npy(tmp_path), "--json", "--window-steps", "2", "--top-k", "3")
    assert json.loads(out)["windows"] == 2
    assert [finding["kind"] for finding in json.loads(out)["findings"]] == ["top_k"]


def test_errors_are_one_line_and_two(run: Run, tmp_path: Path) -> None:
    path = samples.adrs(tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    for arguments in (
        ("inspect", path),
        ("inspect", tmp_path / "nothing"),
        ("inspect", samples.npy(tmp_path), "--ranks", "a"),
        ("inspect", samples.npy(tmp_path), "--from", "sglang"),
        ("convert", path, tmp_path / "out.safetensors"),
        ("convert", samples.npy(tmp_path), tmp_path / "out.safetensors", "--ranks", "4"),
        ("convert", samples.write_placement(tmp_path, "sglang"), tmp_path / "out.yaml"),
        ("convert", samples.write_placement(tmp_path, "vllm"), tmp_path / "out.yaml", "--window-steps", "2"),
        ("convert", samples.write_placement(tmp_path, "vllm"), tmp_path / "out.yaml", "--layers", "x"),
        ("convert", samples.npy(tmp_path), tmp_path / "out.xyz", "--to", "nothing"),
    ):
        code, out, err = run(*arguments)
        assert code == 2, arguments
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1, err
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(("out", ".out"))]


def test_convert_loads(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "loads.safetensors"
    code, out, _ = run(
        "convert", samples.stat_pt(tmp_path), target, "--window-steps", "2", "--layers", "1-2,4"
    )
    assert code == 0
    assert "2 windows" in out
    again = load_trace(target)
    np.testing.assert_array_equal(again.total(), samples.counts().sum(axis=0))
    assert again.layers == (1, 2, 4)
    assert again.num_model_layers == 6


def test_convert_gives_layers_the_numbers_of_the_model(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "loads.safetensors"
    code, _, err = run("convert", samples.adrs(tmp_path), target, "--layers", "3-4,7", "--model-layers", "9")
    assert (code, err) == (0, "")
    again = load_trace(target)
    assert (again.layers, again.num_model_layers) == ((3, 4, 7), 9)
    code, _, err = run("convert", samples.adrs(tmp_path), target, "--layers", "3-6")
    assert code == 2
    assert "counts 3 MoE layers, but --layers names 4" in err


@pytest.mark.parametrize("source", samples.FILES)
@pytest.mark.parametrize("target", samples.FILES)
def test_convert_placements_from_each_to_each(source: str, target: str, run: Run, tmp_path: Path) -> None:
    for key, needed in (("sglang.pt", "torch"), ("trtllm", "yaml")):
        if key in (source, target):
            pytest.importorskip(needed)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path, out = samples.write_placement(tmp_path / "in", source), tmp_path / "out" / samples.FILES[target]
    more = ["--ranks", "4", "--layers", "1-2,4", "--model-layers", "6"]
    code, _, err = run("convert", path, out, "--to", target.split(".")[0], *more)
    assert (code, err) == (0, "")
    expected = samples.placement()
    assert load_placement(out, num_ranks=4, layers=expected.layers, num_model_layers=6) == expected


def test_help_names_every_placement_format(run: Run) -> None:
    from equipoise.formats import PLACEMENT_FORMATS

    _, out, _ = run("convert", "--help")
    assert all(name in out for name in PLACEMENT_FORMATS)


def test_similarity_against_noise() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(64), size=4)
    pairs = [similarity(rng.multinomial(500, shares), rng.multinomial(900, shares)) for _ in range(50)]
    ratio = np.mean([pair.distance for pair in pairs if pair]) / np.mean(
        [pair.noise for pair in pairs if pair]
    )
    assert ratio == pytest.approx(1, abs=0.05)
    other = similarity(rng.multinomial(500, shares), rng.multinomial(500, shares[:, ::-1]))
    assert other is not None
    assert other.distance > 2 * other.noise
    assert similarity(np.zeros((2, 3)), np.ones((2, 3))) is None


def test_summary_of_a_table_worked_by_hand() -> None:
    counts = [[[6, 2, 0, 0], [1, 1, 1, 1]], [[2, 2, 2, 2], [0, 0, 0, 0]]]
    found = summarise(LoadTrace(counts, layers=(3, 7), top_k=2), ranks=(2, 3, 8))
    assert found.slots == (4, 6, 0)
    # Two ranks: windows 8:0 and 2:2, then 4:4 and no load at all.
    assert found.mean_imbalance[0] == pytest.approx((2 + 1 + 1 + 1) / 4)
    assert found.worst_layer[0] == pytest.approx((2 + 1) / 2)
    assert found.total_imbalance[0] == pytest.approx((12 / 8 + 1) / 2)
    assert np.isnan(found.mean_imbalance[2])
    assert found.as_dict()["mean_imbalance"][2] is None
    assert found.tokens == (16 + 4) / 2 / 2
    first = found.per_layer[0]
    assert (first.layer, first.hottest_expert, first.hottest_ratio, first.hottest_tenth) == (3, 0, 2.0, 0.5)
    assert found.halves is not None
    assert found.halves.distance == pytest.approx(0.5)
    assert [layer.layer for layer in summarise(LoadTrace(counts), ranks=(2,)).worst_layers(1)] == [0]
