"""Activated experts as a measure: against plain loops over tokens, in reports, replay and commands."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
import samples
from equipoise.cli import main
from equipoise.plans.activated import (
    Activated,
    batches_of_windows,
    count_activated,
    expected_activated,
    later_batches,
    mean_activated,
)
from equipoise.plans.compare import compare
from equipoise.plans.report import PlanReport
from equipoise.replay import ReplayResult, replay
from equipoise.report.tables import activated_table

BATCHES, TOKENS, EXPERTS, TOP_K = 24, 6, 16, 2


def routed(seed: int = 0, layers: int = 2, batches: int = BATCHES) -> np.ndarray:
    """Experts of tokens ``[batches, L, TOKENS, TOP_K]``, some of them much hotter than others."""
    rng = np.random.default_rng(seed)
    hot = rng.dirichlet(np.full(EXPERTS, 0.4), layers)
    draw = [
        [[rng.choice(EXPERTS, TOP_K, False, p) for _ in range(TOKENS)] for p in hot] for _ in range(batches)
    ]
    return np.array(draw)


def counted(topk: np.ndarray) -> np.ndarray:
    """Tokens ``[batches, L, E]``."""
    return np.array([[np.bincount(row.ravel(), minlength=EXPERTS) for row in batch] for batch in topk])


def placement_of(seed: int, layers: int = 2) -> eq.Placement:
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.r_[np.arange(EXPERTS), rng.integers(0, EXPERTS, 8)]) for _ in range(layers)]
    return eq.Placement(np.stack(rows), 4, EXPERTS)


def busiest(slots: np.ndarray) -> int:
    """Different slots of the rank that has most of them, of six each."""
    return int(np.bincount(np.unique(slots) // 6, minlength=4).max())


@given(st.integers(0, 2**20))
@settings(max_examples=40)
def test_the_measure_is_that_of_a_loop_over_tokens(seed: int) -> None:
    topk, placement = routed(seed, batches=3), placement_of(seed)
    found = count_activated(counted(topk), placement)
    ways: dict[str, list[int]] = {"even": [], "batch": [], "activated": []}
    hit, least = [], []
    for batch, counts in zip(topk, counted(topk), strict=True):
        shares = {
            "even": None,
            "batch": eq.split_batch(counts, placement),
            "activated": eq.split_activated(counts, placement),
        }
        for name, part in shares.items():
            ways[name] += [busiest(row) for row in eq.assign(batch, part, placement)]
        hit += [len(np.unique(row)) for row in batch]
        least += [-(-len(np.unique(row)) // 4) for row in batch]
    for name, each in ways.items():
        assert getattr(found, name) == pytest.approx(np.mean(each))
    assert found.hit == pytest.approx(np.mean(hit))
    assert found.least == pytest.approx(np.mean(least))
    assert found.least <= found.optimum <= found.activated <= found.even
    assert found.batches == 3


def test_without_replicas_there_is_nothing_to_choose() -> None:
    found = count_activated(counted(routed()), eq.contiguous_placement(2, EXPERTS, 4))
    assert found.even == found.batch == found.activated == found.optimum


@given(st.integers(0, 2**20), st.integers(1, 8))
@settings(max_examples=30)
def test_counts_of_batches_say_what_is_expected(seed: int, size: int) -> None:
    """Exact of a rank where each expert is at one replica; of the busiest rank a bound, with replicas too."""
    trace = eq.LoadTrace(counted(routed(seed)))
    hits = trace.hits().regroup(size)
    used = trace.counts[: len(hits) * size]
    single, spare = eq.contiguous_placement(2, EXPERTS, 4), placement_of(seed)
    exact = (used > 0).reshape(len(used), 2, 4, 4).sum(axis=3).mean(axis=0).max(axis=1).mean()
    found = expected_activated(hits, single)
    assert found is not None
    assert found.even == pytest.approx(exact)
    assert found.least == pytest.approx(exact)
    assert found.batches == len(used)
    for placement in (single, spare):
        bound, measured = expected_activated(hits, placement), count_activated(used, placement)
        assert bound is not None
        assert bound.hit == pytest.approx(measured.hit)
        assert bound.least <= bound.even + 1e-6
        for way in (measured.even, measured.batch, measured.activated, measured.optimum):
            assert bound.least <= way + 1e-6
    assert expected_activated(trace, single) is None


def test_hits_are_of_single_batches() -> None:
    trace = eq.LoadTrace(counted(routed()))
    hits = trace.hits()
    assert (hits.unit, hits.batches.max()) == ("batches", 1)  # type: ignore[union-attr]
    np.testing.assert_array_equal(hits.counts, trace.counts > 0)
    with pytest.raises(eq.ArgumentError, match="window 0 spans 2 steps"):
        trace.regroup(2).hits()
    with pytest.raises(eq.ArgumentError, match="count batches already"):
        hits.hits()


def test_windows_and_their_batches() -> None:
    batches = eq.LoadTrace(counted(routed()))
    parts = batches_of_windows(batches, batches.regroup(5))
    assert parts.shape == (4, 5, 2, EXPERTS)
    np.testing.assert_array_equal(parts.sum(axis=1), batches.regroup(5).counts)
    np.testing.assert_array_equal(batches_of_windows(batches, batches.hits().regroup(5)), parts)
    others = eq.LoadTrace(counted(routed(1)))
    for trace in (
        others.regroup(5),
        batches[1:].regroup(5),
        others.hits().regroup(5),
        eq.LoadTrace(np.ones((30, 2, 16))),
    ):
        with pytest.raises(eq.ArgumentError, match="do not add up"):
            batches_of_windows(batches, trace)


@given(st.integers(1, BATCHES), st.integers(1, 5), st.integers(1, 9))
def test_later_batches_hold_no_token_of_windows_seen(windows: int, size: int, batch: int) -> None:
    """Windows and batches of any sizes, cut from the same tokens."""
    tokens = np.eye(EXPERTS, dtype=np.int64)[np.arange(BATCHES * 5) % EXPERTS][:, None]

    def of(length: int) -> eq.LoadTrace:
        return eq.LoadTrace(tokens).regroup(length)

    trace, singles = of(size), eq.LoadTrace(of(batch).counts)
    windows = min(windows, len(trace))
    found = later_batches(singles, trace, windows)
    begins = len(singles) - (0 if found is None else len(found))
    assert begins * batch >= windows * size
    assert (begins - 1) * batch < windows * size or begins == 0


def test_what_does_not_fit_is_refused() -> None:
    counts, placement = counted(routed()), placement_of(0)
    for wrong in (counts[0], counts[:, :1], counts[..., 1:], counts[:0]):
        with pytest.raises(eq.ArgumentError, match="batches must be"):
            count_activated(wrong, placement)
    trace = eq.LoadTrace(counts)
    for batches in (trace.regroup(2), trace.hits()):
        with pytest.raises(eq.ArgumentError, match="batches"):
            eq.plan(trace, eq.Topology(4, 6), "greedy", batches=batches).report.as_dict()


def test_means_count_batches_alike() -> None:
    counts, placement = counted(routed()), placement_of(0)
    whole = count_activated(counts, placement)
    parts = mean_activated([count_activated(counts[:7], placement), count_activated(counts[7:], placement)])
    assert parts.as_dict() == pytest.approx(whole.as_dict())


def test_reports_have_it_before_and_after() -> None:
    batches = eq.LoadTrace(counted(routed()))
    report = eq.plan(batches.regroup(4), eq.Topology(4, 6), batches=batches).report
    assert isinstance(report, PlanReport)
    assert report.activated == count_activated(batches.counts, report.placement)
    assert report.as_dict()["activated_before"]["batches"] == BATCHES
    later = eq.plan(batches.regroup(4), eq.Topology(4, 6), batches=batches, held_out=True).report.held_out
    assert later is not None
    seen = eq.plan(batches[:20].regroup(4), eq.Topology(4, 6)).placement
    assert later.activated == count_activated(batches.counts[20:], seen)
    assert later.as_dict()["activated_before"]["batches"] == 4
    hits = eq.plan(batches.hits().regroup(4), eq.Topology(4, 6)).report
    assert hits.activated == expected_activated(batches.hits().regroup(4), hits.placement)
    assert eq.plan(batches.regroup(4), eq.Topology(4, 6)).report.as_dict()["activated"] is None
    both = compare({"one": report.placement, "other": placement_of(0)}, batches.regroup(4), batches=batches)
    assert both.scored[0].activated == report.activated
    assert both.as_dict()["placements"][1]["activated"]["batches"] == BATCHES


@pytest.mark.parametrize("unit", ["tokens", "batches"])
def test_a_replay_scores_later_batches(unit: str) -> None:
    batches = eq.LoadTrace(counted(routed()))
    trace = (batches if unit == "tokens" else batches.hits()).regroup(3)
    topology = eq.Topology(4, 6)
    result = replay(trace, topology, ["greedy"], interval=3, history=2, batches=batches)
    assert result.settings.unit == unit
    floor = eq.contiguous_placement(2, EXPERTS, 4, 24)
    found = result.floor(topology).activated
    assert found is not None
    wanted = count_activated(batches.counts[6:], floor)
    assert found.as_dict() == pytest.approx(wanted.as_dict())
    assert len(activated_table(result, topology).sections[0]) == len(result.series)
    again = ReplayResult.from_dict(json.loads(json.dumps(result.as_dict())))
    assert again.floor(topology).activated == found
    assert (result.settings.tokens_per_window is None) or unit == "tokens"
    assert (result.forecasts[0].mean_floor is None) == (unit == "batches")


def test_times_and_splits_are_of_tokens() -> None:
    from equipoise.control.cost import cost_for, cost_model

    trace = eq.LoadTrace(counted(routed())).hits().regroup(3)
    with pytest.raises(eq.ArgumentError, match="leave cost out"):
        replay(trace, eq.Topology(4, 6), ["greedy"], history=2, cost=cost_model("olmoe"))
    with pytest.raises(eq.ArgumentError, match="leave split out"):
        replay(trace, eq.Topology(4, 6), ["greedy"], history=2, split="batch")
    shaped = eq.LoadTrace(np.ones((2, 16, 64), np.int64), unit="batches")
    assert cost_for(eq.LoadTrace(shaped.counts)) is not None
    assert cost_for(shaped) is None
    with pytest.raises(eq.ArgumentError, match="leave the model out"):
        cost_for(shaped, "olmoe")


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Token routes of all batches in a row, as an npz file."""
    topk = np.concatenate(list(routed()), axis=1)
    np.savez(tmp_path / "routes.npz", topk=topk, num_experts=EXPERTS)
    return tmp_path / "routes.npz"


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["equipoise", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "160")
    with contextlib.suppress(SystemExit):
        main()
    shown, error = capsys.readouterr()
    assert shown, error
    return shown


def test_commands_show_it(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    windows = ("--window-tokens", TOKENS * 4, "--batches", TOKENS)
    place = tmp_path / "placement.safetensors"
    topology = ("--ranks", 4, "--redundant", 8)
    made = command(
        capsys,
        monkeypatch,
        "plan",
        recorded,
        *topology,
        *windows,
        "-o",
        place,
        "--format",
        "equipoise",
        "--json",
    )
    placement = eq.load_placement(place)
    whole = count_activated(counted(routed()), placement).as_dict()
    assert json.loads(made)["report"]["activated"] == pytest.approx(whole)
    for unit in ("tokens", "batches"):
        shown = command(capsys, monkeypatch, "plan", recorded, *topology, *windows, "--unit", unit)
        assert "each hit expert at one replica" in shown
        assert f"{BATCHES} batches in which experts were hit" in shown or unit == "tokens"
    shown = command(capsys, monkeypatch, "inspect", recorded, *windows, "--ranks", "4")
    assert "Activated experts on the busiest rank" in shown
    other = tmp_path / "other.safetensors"
    eq.save_placement(placement_of(1), other)
    found = command(capsys, monkeypatch, "compare", place, other, "--load", recorded, *windows)
    assert f"{whole['activated']:.3f}" in found
    page = tmp_path / "replay.html"
    for unit in ("tokens", "batches"):
        shown = command(
            capsys, monkeypatch, "replay", recorded, *topology, *windows, "--history", 2, "--interval", 2,
            "--policies", "greedy", "--unit", unit, "--html", page,
        )  # fmt: skip
        assert "16 batches, each hits" in " ".join(shown.split())
        assert ("These loads count batches" in shown) == (unit == "batches")
        assert "Held-out activated experts" in page.read_text()


def test_steps_are_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "recording"
    with eq.TraceWriter(folder, 2, EXPERTS) as writer:
        for counts in counted(routed()):
            writer.add(counts)
    found = command(
        capsys, monkeypatch, "plan", folder, "--ranks", 4, "--window-steps", 4, "--batches", "steps", "--json"
    )
    assert json.loads(found)["report"]["activated"]["batches"] == BATCHES
    hits = tmp_path / "hits.safetensors"
    eq.save_trace(eq.LoadTrace(counted(routed())).hits().regroup(4), hits)
    shown = command(capsys, monkeypatch, "inspect", hits, "--ranks", "4")
    assert "expected, each hit expert at one replica" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batches", "six"), "a number of tokens or 'steps'"),
        (("--batches", "0"), "a number of tokens or 'steps'"),
        (("--unit", "batches"), "--batches"),
        (("--unit", "hits"), "tokens or batches"),
        (("--unit", "batches", "--batches", "5"), "do not add up"),
    ],
)
def test_wrong_options_are_one_line(
    recorded: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    words: str,
) -> None:
    arguments = ["plan", recorded, "--ranks", "4", "--window-tokens", "24", *options]
    monkeypatch.setattr(sys, "argv", ["equipoise", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_standard_input_is_read_once() -> None:
    from equipoise.cli.loading import batches_of

    trace = eq.LoadTrace(counted(routed()))
    assert batches_of(Path("-"), None, trace, None, None) is None
    with pytest.raises(eq.ArgumentError, match="standard input"):
        batches_of(Path("-"), "6", trace, None, None)


def test_fields_are_those_of_the_table() -> None:
    from equipoise.report.activated import HEADS, NAMES

    assert len(HEADS) == len(NAMES)
    assert set(NAMES) < set(Activated.__dataclass_fields__)


@pytest.mark.parametrize("batch", [32, 128])
def test_plans_from_hits_read_fewer_weights_later(traces: Path, batch: int) -> None:
    """Recorded routes, the first half planned and the second half scored."""
    with np.load(traces / "deepseek-v2-lite" / "law_routes.npz") as file:
        topk = file["topk"].astype(np.int64)
    number = topk.shape[1] // batch
    parts = [topk[:, i * batch : (i + 1) * batch] for i in range(number)]
    counts = np.array([[np.bincount(row.ravel(), minlength=64) for row in part] for part in parts])
    seen, later = eq.LoadTrace(counts[: number // 2]), counts[number // 2 :]
    size, topology = max(1, len(seen) // 8), eq.Topology(16, 5)
    tokens = count_activated(later, eq.plan(seen.regroup(size), topology).placement)
    hits = count_activated(later, eq.plan(seen.hits().regroup(size), topology).placement)
    assert hits.activated < 0.95 * tokens.activated
    assert tokens.activated < 0.97 * tokens.even
    assert hits.activated <= 1.01 * hits.optimum


@pytest.mark.parametrize("kind", ["records", "trtllm", "segments"])
def test_recorded_passes_are_batches(kind: str, tmp_path: Path) -> None:
    from equipoise.cli.loading import batches_of

    path = samples.LOADS[kind](tmp_path)
    trace = eq.load_trace(path)
    found = batches_of(path, "steps", trace, None, None)
    assert found is not None
    np.testing.assert_array_equal(found.counts, trace.counts)
    with pytest.raises(eq.ArgumentError, match="--batches 8: window_tokens is for token routes"):
        batches_of(path, "8", trace, None, None)
