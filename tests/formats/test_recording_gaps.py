"""Recordings that are not whole: the whole windows are used, the rest is said, and nothing lacks a rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import samples
from equipoise import FormatError, load_trace
from equipoise.formats import read_trace


def line(step: int, seed: int, experts: int = 4) -> str:
    loads = np.random.default_rng(seed).integers(1, 50, (2, experts)).tolist()
    record = {"record_type": "eplb_load_stats", "version": 1, "step": step, "num_ranks": 2}
    return json.dumps({**record, "expert_load": loads, "p2l_map": [list(range(experts))] * 2})


def expected(*seeds: int, experts: int = 4) -> np.ndarray:
    return np.stack([np.random.default_rng(seed).integers(1, 50, (2, experts)) for seed in seeds])


def read(path: Path, text: str) -> tuple[Any, list[str]]:
    path.write_text(text)
    trace, findings = read_trace(path)
    return trace, [finding.message for finding in findings]


def test_a_last_line_cut_anywhere(tmp_path: Path) -> None:
    """Whatever is left of the line: the lines before are all there, and the cut is said."""
    path, whole, last = tmp_path / "s.jsonl", line(0, 0) + "\n" + line(10, 1) + "\n", line(20, 2)
    for end in range(1, len(last)):
        trace, said = read(path, whole + last[:end])
        np.testing.assert_array_equal(trace.counts, expected(0, 1))
        assert said == ["line 3 left out: without an end, as when a server is stopped while it writes"], end
    trace, said = read(path, whole + last)
    np.testing.assert_array_equal(trace.counts, expected(0, 1, 2))
    assert said == []
    trace, said = read(path, whole + "\0" * 30)
    assert (len(trace), len(said)) == (2, 1)


def test_runs_appended_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    first, second = [line(step, step) for step in (0, 10, 20)], [line(step, 100 + step) for step in (0, 10)]
    trace, said = read(path, "\n".join([*first, *second]))
    np.testing.assert_array_equal(trace.counts, expected(0, 10, 20, 100, 110))
    assert trace.steps[:, 0].tolist() == [0, 10, 20, 21, 31]
    assert said == ["2 runs appended to one file, the steps of later ones counted on"]
    # The first server was killed in a line, with and without a line break before the next one.
    for between in ("\n", ""):
        trace, said = read(path, "\n".join(first) + "\n" + first[0][:50] + between + "\n".join(second))
        np.testing.assert_array_equal(trace.counts, expected(0, 10, 20, 100, 110))
        assert len(said) == 2
    # Another model: the counts of the last run are used.
    trace, said = read(path, "\n".join([*first, line(0, 5, experts=6)]))
    np.testing.assert_array_equal(trace.counts, expected(5, experts=6))
    assert said[0].endswith("3 windows of other layers x experts than [2, 6] left out")


def test_a_broken_line_inside_of_a_run_is_no_cut(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    for broken in (line(10, 1)[:60], line(10, 1).replace("[[", "[", 1)):
        path.write_text("\n".join([line(0, 0), broken, line(20, 2)]))
        with pytest.raises(FormatError, match="line 2 is not valid JSON"):
            load_trace(path)
    path.write_text(line(0, 0)[:60])
    with pytest.raises(FormatError, match="has no whole line with record_type"):
        load_trace(path)


def test_slots_without_an_expert(tmp_path: Path) -> None:
    """After a scale-up: -1 in the map, no load. With load in such a slot something is wrong."""
    record = {"record_type": "eplb_load_stats", "version": 1, "step": 1, "num_ranks": 3}
    content = {**record, "expert_load": [[5, 1, 2, 0, 3, 0]], "p2l_map": [[0, 1, 2, -1, 0, -1]]}
    trace, _ = read(tmp_path / "s.jsonl", json.dumps(content))
    assert trace.counts.tolist() == [[[8, 1, 2]]]
    content["expert_load"] = [[5, 1, 2, 7, 3, 0]]
    with pytest.raises(FormatError, match=r"has load in slots that its map calls empty \(-1\)"):
        read(tmp_path / "s.jsonl", json.dumps(content))


def test_experts_that_were_lost_for_a_while(tmp_path: Path) -> None:
    record = {"record_type": "eplb_load_stats", "version": 1, "num_ranks": 2}
    maps = {1: [0, 1, 2, 3], 2: [0, 1, -1, -1], 3: [3, 2, 1, 0]}
    loads = {1: [1, 2, 3, 4], 2: [7, 8, 0, 0], 3: [1, 2, 3, 4]}
    lines = [{**record, "step": step, "expert_load": [loads[step]], "p2l_map": [maps[step]]} for step in maps]
    trace, _ = read(tmp_path / "s.jsonl", "\n".join(map(json.dumps, lines)))
    assert trace.counts[:, 0].tolist() == [[1, 2, 3, 4], [7, 8, 0, 0], [4, 3, 2, 1]]


def statistics(folder: Path, has: dict[int, list[tuple[int, int]]]) -> Path:
    """TensorRT-LLM's folder: the (iteration, layer) pairs that each rank has."""
    from safetensors.numpy import save_file

    folder.mkdir()
    (folder / "meta_info.json").write_text('{"num_experts": 4, "num_experts_per_token": 2}')
    for rank, keys in has.items():
        rows = {f"{i}_{layer}": np.full(4, 1000 * rank + 10 * i + layer) for i, layer in keys}
        save_file(rows, folder / f"rank{rank}.safetensors")
    return folder


def test_iterations_that_a_rank_lost(tmp_path: Path) -> None:
    every = [(i, layer) for i in range(5, 11) for layer in (3, 4)]
    has = {
        0: every,
        1: [key for key in every if key[0] != 7],
        2: [key for key in every if key[0] < 10 and key != (5, 4)],
    }
    trace, findings = read_trace(statistics(tmp_path / "t", has))
    assert trace.steps is not None
    assert trace.steps[:, 0].tolist() == [6, 8, 9]
    assert trace.counts[:, :, 0].tolist() == [[3000 + 30 * i + 9, 3000 + 30 * i + 12] for i in (6, 8, 9)]
    assert findings[0].message.startswith(
        "3 of 6 iterations left out (7, 5, 10), which not every rank recorded"
    )


def test_iterations_that_are_on_no_rank_and_none_that_is_whole(tmp_path: Path) -> None:
    trace, findings = read_trace(statistics(tmp_path / "t", {0: [(1, 3), (5, 3)], 1: [(1, 3), (5, 3)]}))
    assert len(trace) == 2
    assert findings[0].message == "3 iterations between 1 and 5 are on no rank"
    with pytest.raises(FormatError, match="has no iteration that all 2 ranks recorded whole: rank 1 lacks"):
        load_trace(statistics(tmp_path / "u", {0: [(1, 3)], 1: [(2, 3)]}))


def test_passes_that_a_rank_recorded_in_part(tmp_path: Path) -> None:
    """Two halves of a pass on one rank and one half on another: nothing of it is used."""
    table = samples.phy2log(layers=2)
    physical = np.ones((2, samples.SLOTS), dtype=np.int64)
    for rank in range(2):
        records = [samples.record(rank, 1, physical)]
        for part in ("child_a", "child_b"):
            if (rank, part) != (1, "child_b"):
                records.append({**samples.record(rank, 2, physical), "gatherer_key": part})
        samples.save_records(tmp_path, rank, records, table)
    trace, findings = read_trace(tmp_path)
    assert trace.steps is not None
    assert trace.steps.tolist() == [[1, 2]]
    assert findings[0].message == "1 of 2 passes left out, which not every rank recorded whole"


def test_plan_says_all_of_it_in_one_line(run: Any, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text("\n".join([line(0, 0), line(0, 1), line(1, 2)[:40]]))
    code, out, err = run("plan", tmp_path / "s.jsonl", "--ranks", 2, "--policy", "greedy")
    assert (code, err) == (0, "")
    notes = [text for text in out.splitlines() if text.startswith("note")]
    assert len(notes) == 1
    assert "without an end" in notes[0]
    assert "2 runs appended" in notes[0]
