"""Honest programs get the numbers of the protocols."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import HONEST, TORCH, cheat

from equipoise.errors import ArgumentError, FileAccessError
from equipoise.placement import Placement
from equipoise.scoring import PROTOCOLS, Limits, drifting_trace, score_program
from equipoise.scoring.checks import check_maps
from equipoise.scoring.process import Refused
from equipoise.scoring.protocols import Measurement, simulate, simulate_plainly
from equipoise.scoring.score import scoring_windows, warm_up_window
from equipoise.synthetic import synthetic_trace
from equipoise.topology import Topology
from reference import greedy

TOPOLOGY = Topology(num_ranks=4, slots_per_rank=5, num_nodes=2, num_groups=4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), ranks=st.sampled_from([2, 4]), slots=st.sampled_from([16, 20, 24]))
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_the_vectorised_simulation_is_the_published_loop(
    library: str, seed: int, ranks: int, slots: int
) -> None:
    planned, served = synthetic_trace(2, 16, 2, seed=seed, drift=0.5, spread=1.5).counts.copy()
    served[0, :3] = 0
    maps = greedy(planned, slots, 4, 2, ranks)
    arrays = [served, maps[1], maps[2]]
    if library == "torch":
        torch = pytest.importorskip("torch")
        arrays = [torch.from_numpy(np.asarray(array)) for array in arrays]
    plain = simulate_plainly(*arrays, slots, ranks)
    vectorised = simulate(served, Placement(maps[0], ranks, 16))
    assert vectorised == pytest.approx(plain, abs=1e-6)


def test_an_empty_window_has_no_balance() -> None:
    maps = greedy(np.ones((1, 4)), 4, 1, 1, 2)
    empty = np.zeros((1, 4), dtype=np.int64)
    assert simulate(empty, Placement(maps[0], 2, 4)) == (0.0, 0.0)
    assert simulate_plainly(empty, maps[1], maps[2], 4, 2) == (0.0, 0.0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_legal_maps_pass_whatever_the_order_of_replicas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    phy2log, log2phy, logcnt = greedy(rng.integers(1, 100, (2, 8)), 12, 1, 1, 4)
    for layer in range(2):
        for expert in range(8):
            rng.shuffle(log2phy[layer, expert, : logcnt[layer, expert]])
    wider = np.concatenate([log2phy, np.full((2, 8, 2), -1)], axis=2)
    check_maps([phy2log, log2phy, logcnt], 2, 8, 12)
    check_maps([phy2log, wider, logcnt], 2, 8, 12)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), which=st.integers(0, 2), value=st.integers(-2, 14))
def test_any_single_wrong_entry_is_refused(seed: int, which: int, value: int) -> None:
    rng = np.random.default_rng(seed)
    maps = list(greedy(rng.integers(1, 100, (2, 8)), 12, 1, 1, 4))
    place = tuple(int(rng.integers(n)) for n in maps[which].shape)
    if maps[which][place] == value:
        return
    maps[which][place] = value
    with pytest.raises(Refused):
        check_maps(maps, 2, 8, 12)


def test_the_formulas() -> None:
    measured = Measurement(0.8, 0.3, 0.02, 0.1, 0.5)
    assert PROTOCOLS["skydiscover"].score(measured)["combined_score"] == pytest.approx((0.3 + 0.02) / 2)
    assert PROTOCOLS["openevolve"].score(measured)["combined_score"] == pytest.approx((0.3 + 0.2) / 2)
    slow = PROTOCOLS["leaderboard"].score(measured)
    assert slow["combined_score"] == pytest.approx(72 + 0.5 - 0.4)
    at_once = PROTOCOLS["leaderboard"].score(replace(measured, algorithm_seconds=0.001))
    assert at_once["combined_score"] == pytest.approx(72 + 10)
    for_ever = PROTOCOLS["leaderboard"].score(replace(measured, algorithm_seconds=50.0))
    assert for_ever["slow_penalty"] == 20
    ours = PROTOCOLS["equipoise"].score
    assert ours(replace(measured, moves=0.0, algorithm_seconds=0.0))["combined_score"] == pytest.approx(0.8)
    assert ours(measured)["combined_score"] < 0.8
    assert ours(replace(measured, moves=1.0))["combined_score"] < ours(measured)["combined_score"]


def test_a_scored_program_gets_what_a_loop_over_the_windows_gives(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(HONEST)
    trace = synthetic_trace(2, 16, 5, seed=3, drift=0.3)
    space: dict[str, object] = {}
    exec(HONEST, space)
    expected = []
    for window in range(4):
        _, log2phy, logcnt = space["rebalance_experts"](trace.counts[window], 20, 4, 2, 4)  # type: ignore[operator]
        expected.append(simulate_plainly(trace.counts[window + 1], log2phy, logcnt, 20, 4))
    for protocol in PROTOCOLS:
        outcome = score_program(program, trace, protocol, topology=TOPOLOGY, window=1)
        assert outcome.error is None
        found = (
            outcome.metrics["balancedness_score_gpu"],
            outcome.metrics["balancedness_score_expert"],
        )
        assert found == pytest.approx(np.mean(expected, axis=0), abs=1e-6)
        assert outcome.windows == 4
        assert outcome.metrics["times_algorithm"] > 0
        assert ("times_inference" in outcome.metrics) == (protocol in ("skydiscover", "openevolve"))


def test_a_program_that_imports_torch_gets_tensors(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    program = tmp_path / "program.py"
    program.write_text(TORCH)
    outcome = score_program(program, synthetic_trace(2, 16, 3), topology=TOPOLOGY, window=1)
    assert outcome.error is None
    assert outcome.arrays == "torch"


def test_a_program_may_use_numba_and_this_package(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import numba\nfrom equipoise import imbalance\n\n@numba.njit(cache=True)\ndef double(x):\n"
        "    return 2 * x\n" + cheat(inside="assert double(2) == 4 and imbalance([1, 3]) == 1.5")
    )
    assert score_program(program, synthetic_trace(2, 16, 3), topology=TOPOLOGY, window=1).error is None


def test_current_is_passed_under_our_protocol_alone(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        HONEST.replace("def rebalance_experts", "def honest")
        + "last = None\n"
        + "def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus, current=None):\n"
        + "    global last\n"
        + "    if current is not None:\n"
        + "        assert np.array_equal(current, last[0])\n"
        + "        return last\n"
        + "    last = honest(weight, num_replicas, num_groups, num_nodes, num_gpus)\n"
        + "    return last\n"
    )
    trace = synthetic_trace(2, 16, 5, drift=1.0)
    ours = score_program(program, trace, "equipoise", topology=TOPOLOGY, window=1)
    assert ours.error is None
    assert ours.metrics["moves"] == 0
    published = score_program(program, trace, "leaderboard", topology=TOPOLOGY, window=1)
    assert published.error is None
    assert published.metrics["moves"] > 0


def test_built_in_policies_are_scored_by_name() -> None:
    trace = synthetic_trace(2, 16, 3, num_groups=4, group_share=0.5)
    kept = score_program("greedy", trace, "leaderboard", topology=TOPOLOGY, window=1)
    ignored = score_program("greedy", trace, "leaderboard", topology=TOPOLOGY, window=1, ignore_groups=True)
    assert kept.error is None
    assert kept.metrics["balancedness_score_gpu"] != ignored.metrics["balancedness_score_gpu"]
    expected = greedy(trace.counts[0], 20, 4, 2, 4)
    first = simulate(trace.counts[1], Placement(expected[0], 4, 16))
    short = score_program("greedy", trace[:2], "leaderboard", topology=TOPOLOGY, window=1)
    assert short.metrics["balancedness_score_gpu"] == pytest.approx(first[0])


def test_floats_reach_the_program_as_floats(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(cheat(inside="assert weight.dtype == np.float64"))
    trace = synthetic_trace(2, 16, 3)
    halves = replace(trace, counts=trace.counts * 0.5)
    assert score_program(program, halves, topology=TOPOLOGY, window=1).error is None


def test_windows_are_summed_to_the_steps_asked_for() -> None:
    trace = synthetic_trace(1, 16, 10)
    assert np.array_equal(scoring_windows(trace, 5).counts[1], trace.counts[5:].sum(axis=0))
    assert scoring_windows(drifting_trace(num_windows=3), 100).num_windows == 3
    with pytest.raises(ArgumentError, match="fewer than two windows of 100 steps"):
        scoring_windows(trace, 100)
    with pytest.raises(ArgumentError, match="multiple of 100"):
        scoring_windows(drifting_trace(num_windows=3), 150)


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), whole=st.booleans(), idle=st.integers(0, 14))
def test_the_warm_up_window_has_the_form_of_a_window(seed: int, whole: bool, idle: int) -> None:
    window = synthetic_trace(3, 16, seed=seed).counts[0].copy()
    window[:, :idle] = 0
    window[2] = 0
    loads = window if whole else window * 0.37
    other = warm_up_window(loads, "salt")
    assert (other.shape, other.dtype) == (loads.shape, loads.dtype)
    assert np.all(other >= 0)
    assert other.sum(axis=1) == pytest.approx(loads.sum(axis=1))
    assert np.array_equal(other, warm_up_window(loads, "salt"))
    assert not np.array_equal(other, warm_up_window(loads, "other"))


def test_the_warm_up_window_says_nothing_about_the_first_one() -> None:
    window = synthetic_trace(4, 64, seed=5).counts[0]
    by_place, by_rank = [], []
    for salt in range(200):
        other = warm_up_window(window, str(salt))
        by_place.append(np.corrcoef(window.ravel(), other.ravel())[0, 1])
        by_rank.append(np.sort(other[0]) == np.sort(window[0]))
    # 200 correlations of 256 independent pairs: their mean is 0 +- 0.0044.
    assert abs(np.mean(by_place)) < 0.02
    assert np.mean(by_rank) < 0.01


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    trace = synthetic_trace(2, 16, 3)
    with pytest.raises(ArgumentError, match="unknown protocol 'x'; known are skydiscover"):
        score_program("greedy", trace, "x")
    with pytest.raises(
        FileAccessError, match="no such file, and no policy of that name; policies are greedy"
    ):
        score_program("nonesuch", trace, topology=TOPOLOGY, window=1)
    with pytest.raises(ArgumentError, match="arrays must be"):
        score_program("greedy", trace, arrays="jax", topology=TOPOLOGY, window=1)
    with pytest.raises(ArgumentError, match="call_seconds must be positive, got 0"):
        Limits(call_seconds=0)
    (tmp_path / "program.py").write_bytes(b"\xff\xfe")
    with pytest.raises(FileAccessError, match="not UTF-8"):
        score_program(tmp_path / "program.py", trace, topology=TOPOLOGY, window=1)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "program.py").write_text("while True: pass\n")
    before = len(os.listdir("/proc/self/fd"))
    score_program(
        tmp_path / "program.py",
        synthetic_trace(2, 16, 3),
        topology=TOPOLOGY,
        window=1,
        limits=Limits(start_seconds=0.5),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]
    assert len(os.listdir("/proc/self/fd")) == before
