"""Token routes of every recording that has them, pair counts, and what the commands make of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq
import samples
from equipoise import ArgumentError, FileAccessError, FormatError, PairCounts, Routes, load_routes, save_pairs
from equipoise.plans.communication import communication, count_pairs


def npz(folder: Path, topk: np.ndarray, **more: np.ndarray) -> Path:
    path = folder / "routes.npz"
    np.savez(path, topk=topk, **more)
    return path


def test_npz(tmp_path: Path) -> None:
    topk = np.array([[[0, 3], [1, -1]], [[2, 0], [3, 1]]])
    found = load_routes(npz(tmp_path, topk))
    assert isinstance(found, Routes)
    assert (found.topk.tolist(), found.num_experts) == (topk.tolist(), 4)
    assert load_routes(npz(tmp_path, topk, num_experts=np.array(9))).num_experts == 9
    assert load_routes(npz(tmp_path, topk), num_experts=16, layers=[1, 2]).num_experts == 16


def test_sglang_per_token(tmp_path: Path) -> None:
    """Physical ids become experts by the file's map; a rank's tokens come from it; dense layers have none."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    table, expected, source = samples.phy2log(layers=3), [], []
    for rank in range(2):
        records = []
        for number, tokens in enumerate((3, 0, 2)):
            physical = rng.integers(0, samples.SLOTS, (3, tokens, 2))
            physical[0] = -1
            ids = torch.from_numpy(physical.astype(np.int32))
            records.append(samples.record(rank, number, np.ones((3, samples.SLOTS)), topk_ids_of_layer=ids))
            for token in range(tokens):
                expected.append([table[layer, physical[layer, token]].tolist() for layer in (1, 2)])
                source.append(rank)
        samples.save_records(tmp_path, rank, records, table)
    found = load_routes(tmp_path)
    assert isinstance(found, Routes)
    assert found.layers == (1, 2)
    assert found.rank_of_token is not None
    assert found.rank_of_token.tolist() == source
    assert found.topk.transpose(1, 0, 2).tolist() == expected
    assert load_routes(tmp_path, layers=(2,)).topk.tolist() == found.topk[1:].tolist()
    with pytest.raises(FormatError, match="no routes of layer 5"):
        load_routes(tmp_path, layers=(5,))


def test_sglang_without_tokens_says_so(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="per_token"):
        load_routes(samples.records(tmp_path))


@pytest.mark.parametrize(
    ("ids", "words"), [(np.full((3, 1, 2), samples.SLOTS), "slots"), (np.zeros((2, 1, 2)), "2")]
)
def test_sglang_ids_that_the_map_lacks(tmp_path: Path, ids: np.ndarray, words: str) -> None:
    torch = pytest.importorskip("torch")
    one = samples.record(
        0, 0, np.ones((3, samples.SLOTS)), topk_ids_of_layer=torch.from_numpy(ids.astype(np.int32))
    )
    samples.save_records(tmp_path, 0, [one], samples.phy2log(layers=3))
    with pytest.raises(FormatError, match=words):
        load_routes(tmp_path)


def test_trtllm_raw(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = samples.trtllm_statistics(tmp_path)
    rng = np.random.default_rng(0)
    for rank in range(2):
        tables = {
            f"{i}_{layer}": rng.integers(0, samples.EXPERTS, (2 + i, 2))
            for i in range(2)
            for layer in (1, 2, 4)
        }
        tables["2_1"] = np.zeros((3, 2), np.int64)  # an iteration of which the other layers are missing
        save_file(tables, folder / f"rank{rank}_raw.safetensors")
        if rank == 1:
            last = tables
    found = load_routes(folder)
    assert isinstance(found, Routes)
    assert (found.layers, found.num_experts, found.num_tokens) == ((1, 2, 4), samples.EXPERTS, 10)
    assert found.rank_of_token is not None
    assert found.rank_of_token.tolist() == [0] * 5 + [1] * 5
    assert found.topk[1, 7:].tolist() == last["1_2"].tolist()
    assert eq.load_trace(folder).num_layers == 3  # the loads beside them are read as before


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"wrong": np.zeros((2, 2), np.int64)}, "iteration"),
        ({"0_1": np.zeros((2, 2), np.int64), "1_2": np.zeros((2, 2), np.int64)}, "no iteration"),
        ({"0_1": np.full((2, 2), 99)}, "expert 99"),
        ({"0_1": np.zeros(2, np.int64)}, "2 axes"),
        ({"0_1": np.zeros((2, 2))}, "integers"),
    ],
)
def test_broken_trtllm_raw(tmp_path: Path, tables: dict[str, np.ndarray], words: str) -> None:
    from safetensors.numpy import save_file

    folder = samples.trtllm_statistics(tmp_path)
    save_file(tables, folder / "rank0_raw.safetensors")
    with pytest.raises(FormatError, match=words):
        load_routes(folder)


def test_pairs_are_written_and_read(tmp_path: Path) -> None:
    pairs = count_pairs(Routes([[[0, 1], [1, 2]], [[2, 0], [0, 1]]], 4, layers=(3, 5)))
    path = tmp_path / "pairs.safetensors"
    save_pairs(pairs, path)
    found = load_routes(path)
    assert isinstance(found, PairCounts)
    assert np.array_equal(found.counts, pairs.counts)
    assert (found.layers, found.top_k) == ((3, 5), 2)
    assert load_routes(path, layers=[5]).num_layers == 1
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(FormatError):
            load_routes(path)
    path.write_bytes(whole[:-3])
    with pytest.raises(FormatError):
        load_routes(path)
    with pytest.raises(ArgumentError, match=r"\.safetensors"):
        save_pairs(pairs, tmp_path / "pairs.npz")
    with pytest.raises(FileAccessError):
        save_pairs(pairs, tmp_path / "none" / "pairs.safetensors")


def test_what_has_no_routes(tmp_path: Path) -> None:
    samples.csv(tmp_path)
    eq.save_trace(samples.trace(), tmp_path / "own.safetensors")
    for path in (samples.stat_json(tmp_path), tmp_path / "own.safetensors", tmp_path):
        with pytest.raises(FormatError):
            load_routes(path)
    with pytest.raises(FileAccessError):
        load_routes(tmp_path / "none")


def test_commands_read_them(tmp_path: Path, run) -> None:
    """The routes of the loads themselves, a file of pairs, and a placement that is compared by both."""
    rng = np.random.default_rng(0)
    topk = rng.permuted(np.tile(np.arange(16), (2, 300, 1)), axis=2)[:, :, :4]
    path, pairs, placement = npz(tmp_path, topk), tmp_path / "pairs.safetensors", tmp_path / "p.safetensors"
    routes = load_routes(path)
    assert isinstance(routes, Routes)
    save_pairs(count_pairs(routes), pairs)
    command = ("plan", path, "--ranks", 4, "--nodes", 2)
    _, out, _ = run(*command, "--affinity", 1.2, "--json", "-o", placement, "--format", "equipoise")
    report = json.loads(out)["report"]
    made = communication(routes, eq.load_placement(placement), eq.Topology(4, 4, 2))
    assert report["communication"] == made.as_dict()
    _, text, _ = run(*command)
    assert "nodes a token" in text
    _, text, _ = run(*command, "--routes", pairs)
    assert "pairs of a token's experts on one node" in text
    again = tmp_path / "q.safetensors"
    run(*command, "--affinity", 1.2, "--routes", pairs, "-o", again, "--format", "equipoise")
    assert again.read_bytes() == placement.read_bytes()
    _, text, _ = run(*command, "--token-bytes", 1000)
    assert "bytes to other nodes, a layer" in text
    _, out, _ = run("compare", placement, again, "--load", path, "--nodes", 2, "--json")
    assert [each["communication"] for each in json.loads(out)["placements"]] == [made.as_dict()] * 2
    _, text, _ = run("compare", placement, again, "--load", path, "--nodes", 2)
    assert "Where tokens go, 2 nodes" in text
    _, out, _ = run("inspect", path, "--ranks", "4,8,3,32", "--nodes", 2, "--json")
    assert set(json.loads(out)["communication"]) == {"4", "8"}
    _, text, _ = run("inspect", path, "--ranks", "4,8", "--nodes", 2)
    assert "Contiguous placement on 2 nodes, by token routes" in text
    code, _, error = run(*command, "--affinity", 1.2, "--policy", "greedy")
    assert (code, "--affinity" in error) == (2, True)
    other = samples.own_trace(tmp_path)
    code, _, error = run("plan", other, "--ranks", 4, "--routes", pairs)
    assert (code, error.count("\n")) == (2, 1)
    assert "routes of" in error
