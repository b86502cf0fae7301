"""Readers of loads: what each makes of a file as the engine writes it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import samples
from equipoise import ArgumentError, FileAccessError, FormatError, LoadTrace, load_trace, save_trace
from equipoise.formats import LOAD_FORMATS, read_trace

EXPECTED = samples.counts()


@pytest.mark.parametrize("kind", samples.LOADS)
def test_found_by_content_whatever_the_name(kind: str, tmp_path: Path) -> None:
    path = samples.LOADS[kind](tmp_path)
    other = path.rename(path.with_name("renamed")) if path.is_file() and kind != "csv" else path
    assert load_trace(other, layers=(1, 2, 4)).num_layers == samples.LAYERS


@pytest.mark.parametrize("kind", ["stat_json", "stat_pt"])
def test_sglang_stat(kind: str, tmp_path: Path) -> None:
    trace = load_trace(samples.LOADS[kind](tmp_path), layers=(1, 2, 4))
    np.testing.assert_array_equal(trace.counts, EXPECTED)
    assert trace.layers == (1, 2, 4)
    assert trace.num_model_layers == 6
    assert trace.counts.dtype == np.int64


def test_sglang_stat_without_steps_and_with_floats(tmp_path: Path) -> None:
    path = tmp_path / "sum.json"
    table = samples.with_dense(EXPECTED)[0].astype(float)
    path.write_text(json.dumps({"logical_count": table.tolist()}))
    trace = load_trace(path, layers=(1, 2, 4))
    np.testing.assert_array_equal(trace.counts, EXPECTED[:1])
    assert trace.counts.dtype == np.int64


def test_sglang_ring_buffer(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    ring = np.zeros((8, 6, samples.EXPERTS), dtype=np.int32)
    table = samples.with_dense(EXPECTED)
    ring[6:], ring[:2] = table[:2], table[2:]  # the write position stood at 6 after an earlier dump
    torch.save({"rank": 0, "logical_count": torch.from_numpy(ring)}, tmp_path / "ring.pt")
    trace, findings = read_trace(tmp_path / "ring.pt", layers=(1, 2, 4))
    np.testing.assert_array_equal(trace.counts, EXPECTED)
    assert trace.steps is not None
    assert trace.steps.tolist() == [[6, 7], [7, 8], [8, 9], [9, 10]]
    assert {finding.kind for finding in findings} == {"empty_steps", "rotated"}


def test_sglang_records_are_summed_over_ranks_and_folded(tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    folder.mkdir()
    table = samples.phy2log(layers=2)
    physical = np.random.default_rng(3).integers(0, 9, (3, 2, samples.SLOTS))  # [rank, layer, slot]
    for rank in range(3):
        records = [samples.record(rank, 7, physical[rank], forward_mode=[1, 4, 1][rank])]
        if rank == 1:  # a pass that the others had not recorded yet
            records.append(samples.record(1, 8, physical[1], forward_mode=2))
        samples.save_records(folder, rank, records, table)
    trace, findings = read_trace(folder)
    logical = np.zeros((2, samples.EXPERTS), dtype=np.int64)
    for layer in range(2):
        for slot in range(samples.SLOTS):
            logical[layer, table[layer, slot]] += physical[:, layer, slot].sum()
    np.testing.assert_array_equal(trace.counts, logical[None])
    assert trace.steps is not None
    assert trace.steps.tolist() == [[7, 8]]
    assert trace.phases == ("prefill",)
    assert [finding.kind for finding in findings] == ["reader"]


def test_sglang_per_token_records_tell_top_k(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = tmp_path / "dump"
    folder.mkdir()
    topk = torch.full((2, 5, 8), -1, dtype=torch.int32)
    topk[:, :, :6] = 1
    row = samples.record(0, 1, np.ones((2, samples.SLOTS)), topk_ids_of_layer=topk, forward_mode=2)
    samples.save_records(folder, 0, [row], samples.phy2log(layers=2))
    trace = load_trace(folder)
    assert trace.top_k == 6
    assert trace.phases == ("decode",)


def test_json_with_nan(tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text('{"logical_count": [[1, NaN]]}')
    with pytest.raises(FormatError) as caught:
        load_trace(tmp_path / "n.json")
    assert caught.value.problem == "holds NaN: loads must be finite and not negative"


def test_sglang_records_complain(tmp_path: Path) -> None:
    folder = samples.records(tmp_path, ranks=3)
    one = folder / "expert_distribution_recorder_1730.15_1.pt"
    with pytest.raises(FormatError, match="one rank of a recording"):
        load_trace(one)
    copy = folder / "expert_distribution_recorder_9999.15_1.pt"
    copy.write_bytes(one.read_bytes())
    with pytest.raises(FormatError, match="more than one run"):
        load_trace(folder)
    copy.unlink()
    one.unlink()
    with pytest.raises(FormatError, match="no file of rank 1"):
        load_trace(folder)
    table = samples.phy2log(layers=5)  # another rank with another number of layers
    samples.save_records(folder, 1, [samples.record(1, 10, np.ones((5, samples.SLOTS)))], table)
    with pytest.raises(FormatError, match="layers x experts"):
        load_trace(folder)


def test_trtllm_statistics(tmp_path: Path) -> None:
    folder = samples.trtllm_statistics(tmp_path)
    (folder / "rank0_raw.safetensors").write_bytes(b"token-level data, no part of the sum")
    trace = load_trace(folder)
    np.testing.assert_array_equal(trace.counts, samples.counts(0) + samples.counts(1))
    assert trace.layers == (1, 2, 4)
    assert trace.top_k == 2
    assert trace.steps is not None
    assert trace.steps[0].tolist() == [100, 101]
    (folder / "rank0.safetensors").rename(folder / "rank2.safetensors")
    with pytest.raises(FormatError, match=r"no rank0\.safetensors"):
        load_trace(folder)


def test_trtllm_layers_that_differ_between_ranks(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = samples.trtllm_statistics(tmp_path)
    save_file({"100_1": np.ones(samples.EXPERTS, dtype=np.int64)}, folder / "rank1.safetensors")
    with pytest.raises(FormatError, match="1 layers, but rank 0 has 3"):
        load_trace(folder)


def test_adrs(tmp_path: Path) -> None:
    path = samples.adrs(tmp_path)
    calls: list[tuple[int, int]] = []
    trace = load_trace(path, progress=lambda done, size: calls.append((done, size)))
    np.testing.assert_array_equal(trace.counts, EXPECTED)
    assert calls[-1] == (path.stat().st_size, path.stat().st_size)
    np.testing.assert_array_equal(
        load_trace(path, window_steps=2).counts, EXPECTED.reshape(2, 2, 3, -1).sum(1)
    )


def test_vllm_statistics(tmp_path: Path) -> None:
    trace = load_trace(samples.vllm_stats(tmp_path))
    for step in range(samples.STEPS):
        physical = np.random.default_rng(step).integers(1, 9, (samples.LAYERS, samples.SLOTS))
        for layer, row in enumerate(samples.phy2log(step)):
            expected = np.bincount(row, weights=physical[layer], minlength=samples.EXPERTS)
            np.testing.assert_array_equal(trace.counts[step, layer], expected)
    assert trace.steps is not None
    assert trace.steps[:, 0].tolist() == [0, 50, 100, 150]


def test_routes(tmp_path: Path) -> None:
    path = samples.routes(tmp_path)
    topk = np.load(path)["topk"]
    trace, findings = read_trace(path, window_tokens=30)
    assert trace.counts.shape == (3, samples.LAYERS, samples.EXPERTS)
    for window in range(3):
        for layer in range(samples.LAYERS):
            part = topk[layer, 30 * window : 30 * window + 30].ravel()
            expected = np.bincount(part, minlength=samples.EXPERTS)
            np.testing.assert_array_equal(trace.counts[window, layer], expected)
    assert trace.top_k == 2
    assert "10 tokens" in findings[0].message
    assert load_trace(path, num_experts=16).num_experts == 16
    with pytest.raises(FormatError, match="topk has expert"):
        load_trace(path, num_experts=4)
    with pytest.raises(FormatError, match="fewer than a window"):
        load_trace(path, window_tokens=101)


def test_routes_with_padding(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", topk=np.array([[[0, -1], [2, 1]]]))
    assert load_trace(tmp_path / "r.npz").counts.tolist() == [[[1, 1, 1]]]


@pytest.mark.parametrize("kind", ["npy", "npz", "csv"])
def test_arrays(kind: str, tmp_path: Path) -> None:
    trace = load_trace(samples.LOADS[kind](tmp_path))
    np.testing.assert_array_equal(trace.counts, EXPECTED)
    assert trace.layers == ((1, 2, 4) if kind == "npz" else (0, 1, 2))


def test_fractions_in_csv_stay(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1, 2.5\n3,4\n")
    assert load_trace(tmp_path / "a.csv").counts.tolist() == [[[1, 2.5], [3, 4]]]


def test_csv_with_a_heading(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("layer,expert\n1,2\n")
    with pytest.raises(FormatError, match="line 1 must be numbers between commas, got 'layer,expert'"):
        load_trace(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("-1,2\n3,4\n")
    with pytest.raises(FormatError, match=r"table\[0, 0, 0\] is -1: loads must be finite .*and not negative"):
        load_trace(tmp_path / "a.csv")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trace=samples.traces())
def test_own_format_keeps_everything(trace: LoadTrace, tmp_path: Path) -> None:
    save_trace(trace, tmp_path / "t.safetensors")
    again = load_trace(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(again.counts, trace.counts)
    assert again.counts.dtype == trace.counts.dtype
    np.testing.assert_array_equal(again.steps, trace.steps)
    for name in ("layers", "num_model_layers", "phases", "top_k", "source"):
        assert getattr(again, name) == getattr(trace, name)


@pytest.mark.parametrize("kind", samples.LOADS)
def test_every_format_converts_to_the_own_one_exactly(kind: str, tmp_path: Path) -> None:
    trace = load_trace(samples.LOADS[kind](tmp_path))
    save_trace(trace, tmp_path / "converted.safetensors")
    again = load_trace(tmp_path / "converted.safetensors")
    np.testing.assert_array_equal(again.counts, trace.counts)
    assert (again.layers, again.phases, again.source) == (trace.layers, trace.phases, trace.source)


def test_npz_round_trip(tmp_path: Path) -> None:
    save_trace(samples.trace(), tmp_path / "t.npz", "array")
    again = load_trace(tmp_path / "t.npz")
    np.testing.assert_array_equal(again.counts, EXPECTED)
    assert again.layers == (1, 2, 4)


class Payload:
    """A pickle that would leave a file behind if anybody ran it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(zipped: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path, mark = tmp_path / "evil.pt", tmp_path / "ran"
    content = {"logical_count": Payload(mark)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    for format in (None, "sglang"):
        with pytest.raises(FormatError, match="refused and not run"):
            load_trace(path, format)
    assert not mark.exists()


def test_tensor_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    huge = torch.ones(1, dtype=torch.int32).expand(100_000, 61, 100_000)
    torch.save({"logical_count": huge}, tmp_path / "bomb.pt")
    with pytest.raises(FormatError, match="holds fewer numbers"):
        load_trace(tmp_path / "bomb.pt")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_that_claim_more_than_they_hold(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb.{suffix}"
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000, 1000, 1000), }".ljust(117) + b"\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    if suffix == "npy":
        path.write_bytes(member)
    else:
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("counts.npy", member)
    with pytest.raises(FormatError, match="more than the file holds"):
        load_trace(path)


def test_deflated_zeros(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", counts=np.zeros((60, 1000, 1000), dtype=np.int8))
    with pytest.raises(FormatError, match="no plausible recording"):
        load_trace(tmp_path / "zeros.npz")


def test_arguments(tmp_path: Path) -> None:
    path = samples.npy(tmp_path)
    with pytest.raises(ArgumentError, match="unknown load format 'sglan'"):
        load_trace(path, "sglan")
    with pytest.raises(ArgumentError, match="window_tokens is for token routes"):
        load_trace(path, window_tokens=5)
    with pytest.raises(ArgumentError, match="window_tokens must be positive"):
        load_trace(samples.routes(tmp_path), window_tokens=0)
    with pytest.raises(ArgumentError, match="cannot regroup 4 windows by 5"):
        load_trace(path, window_steps=5)
    with pytest.raises(FileAccessError, match="does not exist"):
        load_trace(tmp_path / "nothing")
    with pytest.raises(ArgumentError, match="cannot be written as 'trtllm'"):
        save_trace(samples.trace(), tmp_path / "x.npz", "trtllm")
    with pytest.raises(ArgumentError, match=r"must end in \.safetensors"):
        save_trace(samples.trace(), tmp_path / "x.json", "equipoise")
    with pytest.raises(FormatError, match="is a placement file"):
        load_trace(samples.write_placement(tmp_path, "sglang"))


def test_torch_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from equipoise import MissingDependencyError

    path = samples.stat_pt(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'equipoise\[torch\]'"):
        load_trace(path)


def test_registry_is_read_only_and_described() -> None:
    with pytest.raises(TypeError):
        LOAD_FORMATS["x"] = LOAD_FORMATS["sglang"]  # type: ignore[index]
    assert all(name == found.name and found.description for name, found in LOAD_FORMATS.items())
