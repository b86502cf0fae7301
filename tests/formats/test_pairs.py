"""Pair counts beside loads: in recordings, in our own files and in npz, and what commands make of them."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise import (
    ArgumentError,
    FileAccessError,
    FormatError,
    PairCounts,
    Routes,
    TraceWriter,
    load_routes,
)
from equipoise.formats import read_trace
from equipoise.formats import writer as writing
from equipoise.formats.pairs import packed, unpacked
from equipoise.formats.routes import own_routes
from equipoise.formats.segments import segment_files

pytest.importorskip("fcntl")
L, E, K = 2, 6, 3


def window(seed: int, tokens: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Loads ``[L, E]`` and pairs ``[L, E, E]`` of some tokens."""
    rng = np.random.default_rng(seed)
    topk = rng.permuted(np.tile(np.arange(E), (L, tokens, 1)), axis=2)[:, :, :K]
    pairs = eq.count_pairs(Routes(topk, E)).counts
    return np.diagonal(pairs, axis1=1, axis2=2), pairs


def record(folder: Path, seeds: range, **options: Any) -> None:
    with TraceWriter(folder, L, E, top_k=K, **options) as writer:
        for seed in seeds:
            counts, pairs = window(seed)
            writer.add(counts, pairs=pairs)


def total(seeds: Any) -> list[Any]:
    """The pairs of these windows together."""
    found: list[Any] = sum(window(seed)[1] for seed in seeds).tolist()
    return found


def read(path: Path) -> PairCounts:
    found = load_routes(path)
    assert isinstance(found, PairCounts)
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.booleans(), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sets(st.integers(0, 11)),
    st.sampled_from([0.0, 60.0]),
)
def test_pairs_add_up_over_windows(told: list[bool], size: int, restarts: set[int], seconds: float) -> None:
    """Some windows with pairs and some without; segments of any size, the writer started anew at any place."""
    about: dict[str, Any] = {"layers": (3, 5), "segment_windows": size, "flush_seconds": seconds, "top_k": K}
    with tempfile.TemporaryDirectory() as name:
        writer = TraceWriter(name, L, E, **about)
        for seed, known in enumerate(told):
            if seed in restarts:
                writer.close()
                writer = TraceWriter(name, L, E, **about)
            counts, pairs = window(seed)
            writer.add(counts, pairs=pairs if known else None)
        writer.close()
        assert len(eq.load_trace(name)) == len(told)
        if not any(told):
            assert own_routes(Path(name)) is None
            with pytest.raises(FormatError, match="pair counts of Equipoise"):
                load_routes(name)
            return
        found = read(Path(name))
    assert (found.layers, found.top_k) == ((3, 5), K)
    assert found.counts.tolist() == total(seed for seed, known in enumerate(told) if known)


def test_a_window_that_is_read_while_it_is_written_has_its_pairs(tmp_path: Path) -> None:
    with TraceWriter(tmp_path, L, E, flush_seconds=0, segment_windows=3) as writer:
        for seed in range(8):
            counts, pairs = window(seed)
            writer.add(counts, pairs=pairs)
            assert read(tmp_path).counts.tolist() == total(range(seed + 1))


def test_the_caller_may_go_on_counting_in_its_arrays(tmp_path: Path) -> None:
    counts, pairs = window(0)
    pairs = pairs.copy()
    with TraceWriter(tmp_path, L, E) as writer:
        for _ in range(2):
            writer.add(counts, pairs=pairs)
        pairs += 7
    assert read(tmp_path).counts.tolist() == (2 * window(0)[1]).tolist()


BAD = [
    np.ones((L, E, E + 1)),
    np.ones((L, E, E)),  # floats
    np.ones((L + 1, E, E), dtype=int),
    np.ones((E, E), dtype=int),
    -np.ones((L, E, E), dtype=int),
    np.triu(np.ones((L, E, E), dtype=int)),
    1 - np.tile(np.eye(E, dtype=int), (L, 1, 1)),  # more than tokens that hit either
    np.full((L, E, E), 2**58),
    "text",
]


@pytest.mark.parametrize("pairs", BAD, ids=range(len(BAD)))
def test_bad_pairs_are_refused_and_leave_nothing(pairs: Any, tmp_path: Path) -> None:
    counts, good = window(1)
    with TraceWriter(tmp_path, L, E) as writer:
        with pytest.raises(ArgumentError) as error:
            writer.add(counts, pairs=pairs)
        assert "\n" not in str(error.value)
        writer.add(counts, pairs=good)
    assert read(tmp_path).counts.tolist() == total([1])
    assert len(eq.load_trace(tmp_path)) == 1


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_the_size_is_bounded_and_pairs_go_with_their_windows(seconds: float, tmp_path: Path) -> None:
    limit = 20_000
    with TraceWriter(tmp_path, L, E, max_bytes=limit, flush_seconds=seconds) as writer:
        for seed in range(150):
            counts, pairs = window(seed)
            writer.add(counts, steps=seed + 1, pairs=pairs)
            assert size_of(tmp_path) <= limit
    steps = eq.load_trace(tmp_path).steps
    assert steps is not None
    kept = (np.diff(steps, axis=1).ravel() - 1).tolist()
    assert 3 < len(kept) < 150
    assert read(tmp_path).counts.tolist() == total(kept)


def test_a_size_without_room_for_pairs_is_refused_where_they_come(tmp_path: Path) -> None:
    big = np.tile(np.eye(64, dtype=int), (4, 1, 1))
    with TraceWriter(tmp_path, 4, 64, max_bytes=60_000) as writer:
        writer.add(np.ones((4, 64)))
        with pytest.raises(
            ArgumentError, match=r"at least .* 4 layers x 64 experts and their pairs, got 60000"
        ):
            writer.add(np.ones((4, 64)), pairs=big)
        writer.add(np.ones((4, 64)))
    assert len(eq.load_trace(tmp_path)) == 2


def test_a_full_disk_loses_pairs_with_their_windows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise FileAccessError(path, os.strerror(errno.ENOSPC))

    with TraceWriter(tmp_path, L, E, segment_windows=2, flush_seconds=0) as writer:
        for seed in range(8):
            with monkeypatch.context() as patch:
                if 3 <= seed < 6:  # the segments of windows 2 and 3 (in part) and of 4 and 5 are not whole
                    patch.setattr(writing, "write_file", full)
                counts, pairs = window(seed)
                writer.add(counts, pairs=pairs)
    assert read(tmp_path).counts.tolist() == total([0, 1, 2, 6, 7])
    assert len(eq.load_trace(tmp_path)) == 5


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_segment_is_left_out_with_its_pairs(place: int, tmp_path: Path) -> None:
    record(tmp_path, range(9), segment_windows=3)
    victim = segment_files(tmp_path)[place]
    sound = victim.read_bytes()
    rest = [seed for seed in range(9) if seed // 3 != place]
    rng = np.random.default_rng(place)
    for _ in range(30):
        data = bytearray(sound)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        victim.write_bytes(data)
        assert read(tmp_path).counts.tolist() == total(rest)
    for length in (0, 1, 9, len(sound) // 2, len(sound) - 1):
        victim.write_bytes(sound[:length])
        assert read(tmp_path).counts.tolist() == total(rest)
    victim.unlink()
    assert read(tmp_path).counts.tolist() == total(rest)


def test_pairs_of_damaged_segments_alone_are_none(tmp_path: Path) -> None:
    """Loads are read on; nothing asks for what is not there."""
    record(tmp_path, range(3), segment_windows=3)
    with TraceWriter(tmp_path, L, E, segment_windows=3) as writer:
        writer.add(window(3)[0])
    first = segment_files(tmp_path)[0]
    first.write_bytes(first.read_bytes()[:-1])
    assert own_routes(tmp_path) is None
    assert len(eq.load_trace(tmp_path)) == 1


def trace_of(seeds: range) -> tuple[eq.LoadTrace, PairCounts]:
    counts = np.stack([window(seed)[0] for seed in seeds])
    trace = eq.LoadTrace(counts, layers=(1, 4), top_k=K)
    return trace, PairCounts(np.array(total(seeds)), K, layers=(1, 4))


@pytest.mark.parametrize("name", ["loads.safetensors", "loads.npz"])
def test_files_of_loads_keep_them(name: str, tmp_path: Path) -> None:
    trace, pairs = trace_of(range(3))
    path = tmp_path / name
    eq.save_trace(trace, path, pairs=pairs)
    found = read(path)
    assert found.counts.tolist() == pairs.counts.tolist()
    assert found.layers == (1, 4)
    assert eq.load_trace(path).counts.tolist() == trace.counts.tolist()
    assert read_trace(path)[1] == []
    one = load_routes(path, layers=[4])
    assert isinstance(one, PairCounts)
    assert one.counts.tolist() == pairs.counts[1:].tolist()
    eq.save_trace(trace, path)
    assert own_routes(path) is None
    with pytest.raises(FormatError, match="no token routes"):
        load_routes(path)


def test_pairs_of_other_layers_are_not_written(tmp_path: Path) -> None:
    trace, pairs = trace_of(range(2))
    for other in (pairs.rows([0]), PairCounts(pairs.counts), PairCounts(np.ones((2, 5, 5)), layers=(1, 4))):
        with pytest.raises(ArgumentError, match="of the layers and experts of the loads"):
            eq.save_trace(trace, tmp_path / "loads.npz", pairs=other)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (np.ones((L, E, E - 1)), "pairs must be"),
        (np.ones((1, E, E)), "pairs must be"),
        (np.full((L, E, E), np.nan), "pairs"),
        (-np.ones((L, E, E)), "pairs"),
        (np.triu(np.ones((L, E, E))), "symmetric"),
        (np.array(["x"]), "pairs must be"),
    ],
)
def test_broken_pairs_of_npz_files(pairs: np.ndarray, words: str, tmp_path: Path) -> None:
    path = tmp_path / "loads.npz"
    np.savez(path, counts=window(0)[0], pairs=pairs)
    for reader in (load_routes, eq.load_trace):
        with pytest.raises(FormatError, match=words) as error:
            reader(path)
        assert "\n" not in str(error.value)


def test_broken_pairs_of_our_own_files(tmp_path: Path) -> None:
    from equipoise.formats.native import encode_own

    trace, pairs = trace_of(range(2))
    header = {"layers": [1, 4], "top_k": K}
    arrays = {"counts": trace.counts, "steps": trace.steps}
    path = tmp_path / "loads.safetensors"
    cells = E * (E + 1) // 2
    first, second = np.triu_indices(E)
    upper = pairs.counts[:, first, second]
    for wrong, words in (
        (np.ones((L, cells + 1)), "pairs must be"),
        (np.ones((L, E, E)), "pairs must be"),
        (np.full((L, cells), np.nan), "pairs"),
        (-upper, "pairs"),
        (upper + np.where(first == second, 0, 10**6), "diagonal"),
    ):
        path.write_bytes(encode_own("load", {**arrays, "pairs": wrong}, header))  # type: ignore[dict-item]
        with pytest.raises(FormatError, match=words):
            load_routes(path)
    path.write_bytes(encode_own("load", {**arrays, "pairs": upper}, header))  # type: ignore[dict-item]
    assert read(path).counts.tolist() == pairs.counts.tolist()


def test_commands_read_the_pairs_of_a_recording(tmp_path: Path, run: Any) -> None:
    """As they read a file of pairs that is named."""
    rng = np.random.default_rng(0)
    folder, pairs, placement = (
        tmp_path / "recording",
        tmp_path / "pairs.safetensors",
        tmp_path / "p.safetensors",
    )
    topk = rng.permuted(np.tile(np.arange(16), (2, 400, 1)), axis=2)[:, :, :4]
    with TraceWriter(folder, 2, 16, top_k=4, segment_windows=2) as writer:
        for part in np.split(topk, 5, axis=1):
            found = eq.count_pairs(Routes(part, 16)).counts
            writer.add(np.diagonal(found, axis1=1, axis2=2), pairs=found)
    eq.save_pairs(eq.count_pairs(Routes(topk, 16)), pairs)
    command = ("plan", folder, "--ranks", 4, "--nodes", 2, "--affinity", 1.2)
    _, text, _ = run(*command, "-o", placement, "--format", "equipoise")
    assert "pairs of a token's experts on one node" in text
    again = tmp_path / "q.safetensors"
    run(*command, "--routes", pairs, "-o", again, "--format", "equipoise")
    assert again.read_bytes() == placement.read_bytes()
    _, out, _ = run("inspect", folder, "--ranks", "4", "--nodes", 2, "--json")
    _, named, _ = run("inspect", folder, "--ranks", "4", "--nodes", 2, "--json", "--routes", pairs)
    assert json.loads(out)["communication"] == json.loads(named)["communication"] is not None
    _, text, _ = run("inspect", folder, "--ranks", "4", "--nodes", 2)
    assert "by pair counts" in text
    _, out, _ = run("compare", placement, again, "--load", folder, "--nodes", 2, "--json")
    told = [each["communication"] for each in json.loads(out)["placements"]]
    assert "mean_pairs_on_one_node" in told[0]
    page = tmp_path / "replay.html"
    command = ("replay", folder, "--ranks", 4, "--nodes", 2, "--interval", 2, "--history", 2, "--html", page)
    summaries = []
    for more in ((), ("--routes", pairs)):
        _, out, _ = run(*command, "--json", *more)
        summaries.append([each["summary"]["pairs_on_one_node"] for each in json.loads(out)["series"]])
        assert all(text in page.read_text() for text in ("pairs on one node", "need token routes"))
    assert summaries[0] == summaries[1]
    assert 0 < summaries[0][0] < 1
    _, text, _ = run(*command)
    assert "one node" in text
    assert "need token routes" in " ".join(text.split())
    for name in ("one.safetensors", "one.npz"):
        assert run("convert", folder, tmp_path / name)[0] == 0
        assert read(tmp_path / name).counts.tolist() == read(pairs).counts.tolist()
    assert run("convert", tmp_path / "one.npz", tmp_path / "two.safetensors", "--layers", "3-4")[0] == 0
    assert read(tmp_path / "two.safetensors").layers == (3, 4)


@pytest.mark.parametrize(("largest", "size"), [(65_535, 3.8), (65_536, 7.6)])
def test_what_pairs_take_in_a_segment(largest: int, size: float) -> None:
    """The figures of docs/formats.md, for 58 layers of 256 experts."""
    counts = np.zeros((58, 256, 256), np.int64)
    counts[0, 0, 0] = largest
    assert round(packed(counts).nbytes / 1e6, 1) == size


@given(st.integers(1, 6), st.integers(1, 3), st.sampled_from([1, 255, 256, 2**31, 2**40]), st.integers(0, 99))
def test_triangles_are_the_whole_table(experts: int, layers: int, largest: int, seed: int) -> None:
    table = np.random.default_rng(seed).integers(0, largest + 1, (layers, experts, experts))
    table = np.maximum(table, table.transpose(0, 2, 1))
    for counts in (table, table / 2):
        assert unpacked(packed(counts), experts).tolist() == counts.tolist()
