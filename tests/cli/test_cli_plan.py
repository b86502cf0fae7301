"""`equipoise plan` from a file to a file, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq

OPTIONS = ("--ranks", 4, "--redundant", 4)


def test_writes_what_the_engine_reads(run, load, tmp_path):
    output = tmp_path / "placement.json"
    result = run("plan", load, *OPTIONS, "-o", output, "--layers", "1-2")
    assert result.code == 0, result.err
    content = json.loads(output.read_text())
    assert list(content) == ["physical_to_logical_map"]
    table = np.array(content["physical_to_logical_map"])
    assert table.shape == (3, 20)  # the dense layer has its row
    expected = eq.plan(eq.load_trace(load, layers=(1, 2)), eq.Topology(4, 5))
    np.testing.assert_array_equal(table[1:], expected.placement.phy2log)
    for words in (
        "mean imbalance",
        "worst layer",
        "balancedness, mean of ratios",
        "balancedness, ratio of sums",
        "lower bound",
        "gap to the bound",
        "twins",
        "moves",
        "planning time",
        "in-sample",
        "--init-expert-location",
        "--ep-num-redundant-experts 4",
    ):
        assert words in result.out
    assert f"{expected.report.after.mean_imbalance:.4f}" in result.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["load.json", "placement.json"]


def test_without_output_only_reports(run, load, tmp_path):
    result = run("plan", load, *OPTIONS)
    assert result.code == 0
    assert "Nothing was written" in result.out
    assert [p.name for p in tmp_path.iterdir()] == ["load.json"]


def test_json_is_all_of_standard_output(run, load, tmp_path):
    output = tmp_path / "placement.pt"
    pytest.importorskip("torch")
    result = run(
        "plan", load, *OPTIONS, "--json", "-o", output, "--seed", 7, "--policy", "greedy", "--layers", "1-2"
    )
    assert result.code == 0
    content = json.loads(result.out)
    assert content["topology"]["num_slots"] == 20
    assert content["layers"] == [1, 2]
    assert content["seed"] == 7
    assert content["output"] == {"path": str(output), "format": "sglang"}
    report = content["report"]
    assert report["policy"] == "greedy"
    assert report["scored"] == "in-sample"
    assert report["after"]["mean_imbalance"] <= report["before"]["mean_imbalance"]
    assert len(report["bound"]) == 2
    assert eq.load_placement(output, num_ranks=4, layers=[1, 2]).num_slots == 20


@pytest.mark.parametrize("policy", list(eq.policies))
def test_all_policies(run, load, policy):
    assert run("plan", load, *OPTIONS, "--policy", policy, "--json").code == 0


def test_groups_stay_on_nodes(run, load, tmp_path):
    output = tmp_path / "p.json"
    result = run("plan", load, *OPTIONS, "--nodes", 2, "--groups", 4, "-o", output)
    assert "4 expert groups kept on nodes" in result.out
    table = np.array(json.loads(output.read_text())["physical_to_logical_map"])[1:]
    for row in table:
        groups = [set(part // 4) for part in row.reshape(2, 10)]
        assert not groups[0] & groups[1]


def test_moves_count_from_the_current_placement(run, load, tmp_path):
    output = tmp_path / "placement.json"
    assert run("plan", load, *OPTIONS, "-o", output).code == 0
    again = run("plan", load, *OPTIONS, "--current", output, "--json")
    assert json.loads(again.out)["report"]["moved_share"] == 0
    assert "current" in run("plan", load, *OPTIONS, "--current", output).out


@pytest.mark.parametrize(("budget", "fetches"), [("3", 3), ("5%", 2), ("0.05", 2), ("0", 0)])
def test_moves_stay_in_the_budget(run, load, tmp_path, budget, fetches):
    """5 % of 2 layers x 20 slots are two fetches."""
    layers = ("--layers", "1-2")
    start = tmp_path / "start.json"
    contiguous = eq.contiguous_placement(3, 16, 4, 20)
    eq.save_placement(contiguous, start, format="sglang")
    result = run(
        "plan",
        load,
        *OPTIONS,
        *layers,
        "--current",
        start,
        "--max-moves",
        budget,
        "--policy",
        "robust",
        "--json",
    )
    assert result.code == 0, result.err
    moves = sum(json.loads(result.out)["report"]["moves"])
    assert moves <= fetches
    assert moves or not fetches


def test_stat_dump_of_torch(run, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "dump.pt"
    counts = torch.randint(1, 99, (4, 2, 16), dtype=torch.int32)
    torch.save({"rank": 0, "logical_count": counts}, path)
    result = run("plan", path, *OPTIONS)
    assert result.code == 0, result.err
    assert "2 MoE layers x 16 experts" in result.out


def test_own_loads(run, load, tmp_path):
    path = tmp_path / "load.safetensors"
    eq.save_trace(eq.load_trace(load), path)
    assert run("plan", path, *OPTIONS).code == 0


def test_recorded_load(run, traces):
    load = traces / "deepseek-r1-sglang" / "prefill_in1024.json"
    result = run("plan", load, "--ranks", 32, "--redundant", 32, "--policy", "ensemble", "--json")
    report = json.loads(result.out)["report"]
    assert report["after"]["mean_imbalance"] < 1.0023
    assert sum(report["twins"]) == 0


BAD_FILES = {
    "missing": (None, "does not exist"),
    "empty": ("", "is empty"),
    "no such key": ('{"physical_count": [[1, 2], [3, 4]]}', ""),
    "ragged": ('{"logical_count": [[1, 2], [3]]}', "logical_count"),
    "negative": ('{"logical_count": [[1, 2], [3, -4]]}', "negative"),
    "nan": ('{"logical_count": [[1, 2], [3, NaN]]}', ""),
    "words": ('{"logical_count": "many"}', "logical_count"),
    "truncated": ('{"logical_count": [[1, 2], [3', ""),
}


@pytest.mark.parametrize(("content", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file(run, tmp_path, content, words):
    path, output = tmp_path / "bad.json", tmp_path / "out" / "placement.json"
    if content is not None:
        path.write_text(content)
    output.parent.mkdir()
    error = run("plan", path, "--ranks", 2, "-o", output).error
    assert str(path) in error
    assert words in error
    assert not list(output.parent.iterdir())


class Evil:
    """What unpickles to a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("written_by", ["pickle", "torch"])
def test_pickle_that_is_no_dump_is_refused_and_not_run(run, tmp_path, written_by):
    torch = pytest.importorskip("torch")
    path, trap, output = tmp_path / "dump.pt", tmp_path / "trap", tmp_path / "placement.json"
    content = {"logical_count": Evil(trap)}
    if written_by == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert str(path) in run("plan", path, *OPTIONS, "-o", output).error
    assert not trap.exists()
    assert not output.exists()


def test_truncated_torch_file(run, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "dump.pt"
    torch.save({"logical_count": torch.ones(4, 2, 16, dtype=torch.int32)}, path)
    path.write_bytes(path.read_bytes()[:-300])
    assert str(path) in run("plan", path, *OPTIONS).error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--ranks 4 --redundant 3", ["--redundant 0 or 4"]),
        ("--ranks 32 --redundant 3", ["--redundant 16"]),
        ("--ranks 0", ["--ranks"]),
        ("--ranks 4 --redundant -4", ["--redundant"]),
        ("--ranks 4 --nodes 3", ["--ranks 4", "--nodes 3"]),
        ("--ranks 4 --groups 5", ["--groups 5"]),
        ("--ranks 4 --policy best", ["'best'", "ensemble"]),
        ("--ranks 4 --from pickle", ["'pickle'", "sglang"]),
        ("--ranks 4 --format pickle -o x.json", ["'pickle'", "sglang"]),
        ("--ranks 4 -o x.csv", ["x.csv", ".json"]),
        ("--ranks 4 --max-moves some", ["--max-moves", "5%"]),
        ("--ranks 4 --max-moves 5% --policy greedy", ["--max-moves"]),
        ("--ranks 4 --seed -1", ["seed"]),
        ("--ranks 4 --current none.json", ["none.json", "does not exist"]),
    ],
)
def test_bad_argument(run, load, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    error = run("plan", load, *arguments.split()).error
    for word in words:
        assert word in error
    assert [p.name for p in tmp_path.iterdir()] == ["load.json"]


def test_current_of_another_shape(run, load, tmp_path):
    current = tmp_path / "current.json"
    assert run("plan", load, "--ranks", 4, "--redundant", 8, "-o", current).code == 0
    found = run("plan", load, *OPTIONS, "--current", current)
    assert found.code == 0
    assert "moves" in found.out
    assert (
        "ranks, slots or experts" in run("plan", load, *OPTIONS, "--current", current, "--max-moves", 3).error
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [((0, -1), "empty"), ((3, 0), "lost"), (None, "whole")],
    ids=["empty", "lost", "whole"],
)
def test_current_with_holes(run, load, tmp_path, change, words):
    """A slot that a scale-up left empty, an expert that went with its rank: planned all the same."""
    current = tmp_path / "current.json"
    assert run("plan", load, *OPTIONS, "-o", current).code == 0
    content = json.loads(current.read_text())
    for row in content["physical_to_logical_map"]:
        if change is not None and change[1] < 0:
            row[change[0]] = -1
        elif change is not None:
            row[:] = [change[1] if expert == change[0] else expert for expert in row]
    current.write_text(json.dumps(content))
    found = run("plan", load, *OPTIONS, "--current", current, "--json")
    assert found.code == 0, found.err
    moves = json.loads(found.out)["report"]["moves"]
    assert (sum(moves) > 0) == (change is not None), words


def test_output_that_cannot_be_written(run, load, tmp_path):
    assert "does not exist" in run("plan", load, *OPTIONS, "-o", tmp_path / "no" / "p.json").error
    folder = tmp_path / "folder.json"
    folder.mkdir()
    assert "is a folder" in run("plan", load, *OPTIONS, "-o", folder).error
    assert not list(folder.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_in_a_read_only_folder(run, load, tmp_path):
    folder = tmp_path / "sealed"
    folder.mkdir()
    folder.chmod(0o500)
    assert "cannot be written" in run("plan", load, *OPTIONS, "-o", folder / "p.json").error


def test_failure_leaves_the_old_file(run, load, tmp_path):
    output = tmp_path / "placement.json"
    assert run("plan", load, *OPTIONS, "-o", output).code == 0
    before = output.read_bytes()
    assert run("plan", load, "--ranks", 3, "-o", output).code == 2
    assert output.read_bytes() == before


@pytest.mark.parametrize("arguments", [("--rank", 4), (), ("--ranks", "four")])
def test_usage_errors(run, load, arguments):
    result = run("plan", load, *arguments)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert "--ranks" in result.err


def test_help_names_the_commands(run):
    result = run("--help")
    assert result.code == 0
    assert "plan" in result.out
    assert "demo" in result.out
    assert run("--version").out == f"equipoise {eq.__version__}\n"


def command(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    start = "from equipoise.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", start, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def test_first_run_says_what_it_waits_for_and_ctrl_c_ends_it(load, tmp_path):
    """An empty cache makes this a first run; it is interrupted as soon as it has said so."""
    output = tmp_path / "placement.json"
    process = command("plan", load, *OPTIONS, "-o", output, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    stop = threading.Timer(120, process.kill)
    stop.start()
    try:
        line = process.stderr.readline()
        assert line == "compiling kernels, once; later runs start at once\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    finally:
        stop.cancel()
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert not output.exists()
    assert not list(tmp_path.glob(".placement*"))


def test_cached_kernels_are_not_announced(run, load):
    assert run("plan", load, *OPTIONS).code == 0  # whatever was to be compiled is now in the cache
    process = command("plan", load, *OPTIONS)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert err == ""
    assert "mean imbalance" in out


@pytest.fixture
def routes(tmp_path: Path) -> Path:
    """Token routes: two layers, 640 tokens, two of 16 experts each."""
    rng = np.random.default_rng(0)
    topk = rng.random((2, 640, 16)).argsort(axis=2)[:, :, :2]
    path = tmp_path / "routes.npz"
    np.savez(path, topk=topk, num_experts=16)
    return path


def test_windows_are_cut_as_in_inspect(run, routes):
    hint = "hint: all 640 tokens are one window; --window-tokens 80 makes 8 of them"
    one = run("plan", routes, *OPTIONS)
    assert hint in one.out.replace("\n", " ")
    assert "held-out" not in one.out
    cut = ("--window-tokens", 80, "--window-steps", 2)
    several = run("plan", routes, *OPTIONS, *cut)
    assert ": 4 windows, 2 MoE layers x 16 experts" in several.out.replace("\n", " ")
    assert "hint" not in several.out
    assert "held-out: planned from the first 3 windows" in " ".join(several.out.split())
    trace = eq.load_trace(routes, window_tokens=80, window_steps=2)
    expected = eq.plan(trace, eq.Topology(4, 5)).report.after.mean_imbalance
    found = json.loads(run("plan", routes, *OPTIONS, *cut, "--json").out)
    assert found["report"]["after"]["mean_imbalance"] == expected
    windows = json.loads(run("inspect", routes, *cut, "--json").out)["windows"]
    assert windows == trace.num_windows == 4


def test_a_replay_of_one_window_says_how_to_cut(run, routes):
    error = run("replay", routes, "--ranks", 4).error
    assert "all 640 tokens are one window; --window-tokens 20 makes 32" in error
    options = ("--policies", "greedy", "--reference", "greedy", "--window-tokens", 20)
    assert run("replay", routes, "--ranks", 4, *options).code == 0


def test_experts_and_top_k_reach_the_loads(run, routes, load):
    assert "x 20 experts" in run("plan", routes, "--ranks", 4, "--experts", 20).out.replace("\n", " ")
    assert run("plan", load, *OPTIONS, "--top-k", 2).code == 0
    assert "--window-tokens is for token routes" in run("plan", load, *OPTIONS, "--window-tokens", 8).error
    assert "cannot regroup 1 window by 2" in run("plan", load, *OPTIONS, "--window-steps", 2).error


def test_shares_are_written_with_the_placement_that_they_are_for(run, routes, tmp_path):
    from safetensors import safe_open

    path, output = tmp_path / "shares.safetensors", tmp_path / "placement.safetensors"
    result = run(
        "plan", routes, *OPTIONS, "--shares-out", path, "-o", output, "--format", "equipoise", "--json"
    )
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["shares_output"] == str(path)
    assert content["report"]["split"] is not None
    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["equipoise"])
        shares, phy2log = file.get_tensor("shares"), file.get_tensor("phy2log")
    about = {"num_ranks": 4, "num_experts": 16, "layers": [0, 1], "num_model_layers": None}
    assert header == {"kind": "shares", "version": 1, **about}
    placement = eq.load_placement(output)
    np.testing.assert_array_equal(phy2log, placement.phy2log)
    np.testing.assert_array_equal(shares, eq.split_shares(eq.load_trace(routes), placement))
    for layer in range(2):
        np.testing.assert_allclose(np.bincount(phy2log[layer], weights=shares[layer]), 1)
    assert "shares [layers, slots] and phy2log" in run("plan", routes, *OPTIONS, "--shares-out", path).out


@pytest.mark.parametrize(
    ("name", "words"), [("s.npz", ".safetensors"), ("no/s.safetensors", "does not exist")]
)
def test_shares_that_cannot_be_written(run, routes, tmp_path, name, words):
    assert words in run("plan", routes, *OPTIONS, "--shares-out", tmp_path / name).error
    both = tmp_path / "both.safetensors"
    error = run("plan", routes, *OPTIONS, "--shares-out", both, "-o", both, "--format", "equipoise").error
    assert "--output and --shares-out" in error
    assert [p.name for p in tmp_path.iterdir()] == ["routes.npz"]


def test_rank_speed_is_planned_for(tmp_path: Path, run) -> None:
    loads, speeds = [[600, 560, 120, 120, 20, 10, 10, 10]], (1, 1, 1, 0.5)
    path = tmp_path / "load.json"
    path.write_text(json.dumps({"logical_count": loads}))
    command = ("plan", path, "--ranks", 4, "--rank-speed")
    content = json.loads(run(*command, "1,1,1,0.5", "--json").out)
    expected = eq.plan(loads, eq.Topology(4, 2, rank_speed=speeds))
    assert content["topology"]["rank_speed"] == list(speeds)
    assert content["report"]["imbalance_after"] == expected.report.imbalance_after.tolist()
    assert "their speeds 0.5 to 1" in run(*command, "1,1,1,0.5").out
    for wrong in ("1,fast", "1,1", "1,1,1,0"):
        assert "--rank-speed" in run(*command, wrong).error
    assert "leave out --rank-speed" in run(*command, "1,1,1,0.5", "--policy", "greedy").error


def test_split_by_batch_is_planned_and_written_where_that_can_be_said(run, load, tmp_path):
    output = tmp_path / "placement.safetensors"
    result = run("plan", load, *OPTIONS, "--split", "batch", "-o", output, "--format", "equipoise")
    assert result.code == 0, result.err
    assert "each split by its load, 3 sweeps" in result.out
    assert eq.load_placement(output).split == "batch"
    for arguments, words in [
        (("-o", tmp_path / "p.json"), "splits evenly"),
        (("--policy", "greedy"), "needs the policy robust"),
        (("--nodes", 2, "--groups", 2), "--groups must be 1"),
    ]:
        refused = run("plan", load, *OPTIONS, "--split", "batch", *arguments)
        assert refused.code == 2
        assert words in refused.err
    refused = run("convert", output, tmp_path / "p.json", "--to", "sglang")
    assert refused.code == 2
    assert "splits evenly" in refused.err
    assert not (tmp_path / "p.json").exists()
    assert run("plan", load, *OPTIONS, "--split", "odd").code == 2
    assert run("plan", load, *OPTIONS, "--split", "batch", "--current", output).code == 0
    limited = run("plan", load, *OPTIONS, "--split", "batch", "--current", output, "--max-moves", 3)
    assert limited.code == 0, limited.err
