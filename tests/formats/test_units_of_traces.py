"""Counts of batches: what they count is kept in files, and is not taken for tokens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise import ArgumentError, FormatError, LoadTrace, TraceWriter, load_trace, save_trace
from equipoise.advice.windows import joined, parted
from equipoise.formats import native, read_trace
from equipoise.formats.hygiene import diagnose
from equipoise.report.loads import similarity

Run = Callable[..., tuple[int, str, str]]
COUNTS = np.array([[[1, 0, 2]], [[3, 3, 0]], [[1, 4, 1]]])
BATCHES = np.array([2, 3, 4])


def trace(**options: Any) -> LoadTrace:
    return LoadTrace(COUNTS, unit="batches", batches=BATCHES, top_k=2, **options)


def test_a_file_keeps_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "load.safetensors"
    save_trace(trace(), path)
    found, findings = read_trace(path)
    assert (found.unit, found.batches.tolist()) == ("batches", [2, 3, 4])  # type: ignore[union-attr]
    assert np.array_equal(found.counts, COUNTS)
    assert findings == []
    save_trace(LoadTrace(COUNTS), path)
    assert b"unit" not in path.read_bytes(), "files of tokens are what they were"
    assert load_trace(path).unit == "tokens"


def test_other_files_would_be_taken_for_tokens(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "load.npz"
    with pytest.raises(ArgumentError, match=r"'array' files count tokens, and these loads count batches"):
        save_trace(trace(), path)
    save_trace(trace(), tmp_path / "own.safetensors")
    code, _, err = run("convert", tmp_path / "own.safetensors", path)
    assert (code, err.count("\n")) == (2, 1)
    assert not path.exists()


@pytest.mark.parametrize(
    ("header", "arrays", "words"),
    [
        ({"unit": "passes"}, {}, "'unit' must be tokens or batches, got 'passes'"),
        ({"unit": 3}, {}, "'unit' must be str"),
        ({"unit": "batches"}, {}, "no array 'batches'"),
        ({"unit": "batches"}, {"batches": np.array([2, 3])}, "batches of 2 windows"),
        ({"unit": "batches"}, {"batches": np.array([2, 3, 4, 5])}, "batches of 4 windows"),
        ({"unit": "batches"}, {"batches": np.array([2, 2, 4])}, r"counts\[1, 0, 0\] is 3"),
        ({"unit": "batches"}, {"batches": np.array([2, -3, 4])}, "numbers from 1 to"),
        ({"unit": "batches"}, {"batches": np.array([2.0, 3, 4])}, "integers"),
    ],
)
def test_files_that_contradict_themselves(
    tmp_path: Path, header: dict[str, Any], arrays: dict[str, Any], words: str
) -> None:
    path = tmp_path / "load.safetensors"
    steps = np.array([[0, 1], [1, 2], [2, 3]])
    path.write_bytes(native.encode_own("load", {"counts": COUNTS, "steps": steps, **arrays}, header))
    with pytest.raises(FormatError, match=words):
        load_trace(path)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=9), st.integers(1, 4), st.sets(st.integers(0, 8)))
def test_a_recording_keeps_the_unit(
    tmp_path_factory: pytest.TempPathFactory, batches: list[int], size: int, restarts: set[int]
) -> None:
    """Segments of any size, and a writer that is started anew: batches are those that were said, or steps."""
    folder = tmp_path_factory.mktemp("recording")
    options: dict[str, Any] = {"unit": "batches", "segment_windows": size}
    writer = TraceWriter(folder, 1, 2, **options)
    for number, each in enumerate(batches):
        if number in restarts:
            writer.close()
            writer = TraceWriter(folder, 1, 2, **options)
        said = {"batches": each} if number % 2 else {"steps": each}
        writer.add([[each, 1]], **said)
    writer.close()
    found = load_trace(folder)
    assert found.unit == "batches"
    assert found.batches.tolist() == batches  # type: ignore[union-attr]
    assert found.counts[:, 0, 0].tolist() == batches


def test_a_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with TraceWriter(tmp_path, 1, 2, unit="batches") as writer:
        with pytest.raises(ArgumentError, match=r"has 3 batches"):
            writer.add([[4, 0]], steps=3)
        with pytest.raises(ArgumentError, match="numbers from 1 to"):
            writer.add([[0, 0]], batches=0)
        writer.add([[4, 0]], steps=3, batches=6)
    with pytest.raises(FormatError, match="experts in batches, not of 1 x 2 in tokens"):
        TraceWriter(tmp_path, 1, 2)
    with pytest.raises(ArgumentError, match="unit must be"):
        TraceWriter(tmp_path / "other", 1, 2, unit="hits")
    with (
        TraceWriter(tmp_path / "tokens", 1, 2) as writer,
        pytest.raises(ArgumentError, match="not of tokens"),
    ):
        writer.add([[4, 0]], batches=6)


def test_segments_of_different_units_are_refused(tmp_path: Path) -> None:
    for number, options in ((0, {}), (1, {"unit": "batches", "batches": [1]})):
        part = LoadTrace(np.ones((1, 1, 2), np.int64), **options)
        (tmp_path / f"windows-{number:012}.safetensors").write_bytes(native.encode_segment(part, number, 0))
    with pytest.raises(FormatError, match=r"counts of tokens, .* counts of batches"):
        load_trace(tmp_path)


def test_traces_of_different_units_are_not_joined() -> None:
    both = joined([trace(), trace()[:1]])
    assert (both.unit, both.batches.tolist()) == ("batches", [2, 3, 4, 2])  # type: ignore[union-attr]
    with pytest.raises(ArgumentError, match="counts tokens, and the first batches"):
        joined([trace(), LoadTrace(COUNTS)])
    tagged = dataclasses.replace(trace(), phases=("decode", "prefill", "decode"))
    parts = parted(tagged, tagged)
    assert [part.seen.batches.tolist() for part in parts] == [[3], [2, 4]]  # type: ignore[union-attr]


def test_what_is_odd_about_tokens_is_not_about_batches() -> None:
    """Layers hit as many experts as they like, in sums that top-k does not divide, and windows repeat."""
    counts = np.array([[[1, 1, 1], [2, 2, 1]], [[1, 1, 1], [2, 2, 1]]])
    found = LoadTrace(counts, unit="batches", batches=[3, 3], top_k=2)  # type: ignore[arg-type]
    assert diagnose(found) == []
    full = LoadTrace(counts, unit="batches", batches=[2, 2])  # type: ignore[arg-type]
    assert [finding.kind for finding in diagnose(full)] == ["always_hit"]
    assert "2 experts of 6" in diagnose(full)[0].message


def test_inspect_shows_activated_experts(run: Run, tmp_path: Path) -> None:
    save_trace(trace(), tmp_path / "load.safetensors")
    _, shown, _ = run("inspect", tmp_path / "load.safetensors", "--ranks", "3")
    assert "batches in which an expert was hit" in shown
    assert "1.7 of 3 a batch and layer" in shown, "15 hits in 9 batches"
    assert "of the hits" in shown
    assert "tokens" not in shown
    content = json.loads(run("inspect", tmp_path / "load.safetensors", "--ranks", "3", "--json")[1])
    assert (content["unit"], content["tokens"]) == ("batches", None)
    assert content["activated"] == pytest.approx(15 / 9)


def test_noise_of_counts_of_batches() -> None:
    """Experts that are hit in a batch or not: two samples differ by the noise that is said, on average."""
    rng = np.random.default_rng(3)
    rates = rng.uniform(0.05, 1.0, (4, 64))
    pairs = [similarity(rng.binomial(80, rates), rng.binomial(50, rates), (80, 50)) for _ in range(60)]
    distance = np.mean([pair.distance for pair in pairs if pair])
    noise = np.mean([pair.noise for pair in pairs if pair])
    assert distance == pytest.approx(noise, rel=0.05)
