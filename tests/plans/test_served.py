"""Placements made for batches: what they are scored by, where they may be written, and who refuses them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq
from equipoise.control import Balancer, CostModel
from equipoise.control.gate import splitting_pays
from equipoise.engines.planning import Planner
from equipoise.engines.settings import Settings
from equipoise.errors import FormatError
from equipoise.formats import PLACEMENT_FORMATS
from equipoise.formats.native import encode_own
from equipoise.plans.served import mean_of, served_loads, side_by_side
from equipoise.replay import replay
from equipoise.replay.result import REFERENCES, ReplayResult
from equipoise.report.tables import replay_tables
from equipoise.report.words import findings

BATCH = eq.Robust(split="batch")
TOPOLOGY = eq.Topology(4, 5)
COST = CostModel(1e-6, 1000, 1e9, 1e8)


def loads_of(windows: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.rint(500 * rng.lognormal(0, 1, (1, 2, 16)) * rng.lognormal(0, 0.5, (windows, 2, 16)))


@pytest.fixture(scope="module")
def made() -> eq.Placement:
    return eq.plan(loads_of(4), TOPOLOGY, BATCH).placement


def test_plans_say_which_split_they_are_for(made: eq.Placement) -> None:
    assert made.split == made.layer(1).split == "batch"
    assert eq.plan(loads_of(4), TOPOLOGY).placement.split == "even"
    assert made != replace(made, split="even")
    with pytest.raises(eq.PlacementError, match="even or batch"):
        replace(made, split="shares")


def test_scores_are_of_the_split_that_a_placement_is_for(made: eq.Placement) -> None:
    later = loads_of(3, seed=1)
    even = replace(made, split="even")
    np.testing.assert_array_equal(served_loads(later, even), eq.rank_loads(later, even))
    for window, loads in zip(later, served_loads(later, made), strict=True):
        np.testing.assert_array_equal(loads, eq.rank_loads(window, made, eq.split_batch(window, made)))
    found = side_by_side(later, made)
    assert found.optimum <= found.swept + 1e-6
    assert found.swept <= found.even
    assert found.swept == pytest.approx(eq.imbalance(served_loads(later, made)).mean())
    each = [side_by_side(window[None], made) for window in later]
    assert mean_of(each).as_dict() == pytest.approx(found.as_dict())


def test_files_of_engines_that_split_evenly_are_refused(made: eq.Placement, tmp_path: Path) -> None:
    for name, found in PLACEMENT_FORMATS.items():
        path = tmp_path / f"{name}{found.suffixes[0]}"
        if name == "equipoise":
            eq.save_placement(made, path, name)
            assert eq.load_placement(path) == made
            continue
        with pytest.raises(eq.PlacementError, match="split='even'"):
            eq.save_placement(made, path, name)
        assert not path.exists()
        eq.save_placement(replace(made, split="even"), path, name)


def test_a_file_with_a_split_that_nobody_knows_is_refused(made: eq.Placement, tmp_path: Path) -> None:
    path = tmp_path / "placement.safetensors"
    for split in ("other", 3, ["batch"]):
        header = {"num_ranks": 4, "num_experts": 16, "layers": [0, 1], "split": split}
        path.write_bytes(encode_own("placement", {"phy2log": made.phy2log}, header))
        with pytest.raises(FormatError, match="'split' must be"):
            eq.load_placement(path)


def test_engines_refuse_a_placement_for_batches(made: eq.Placement, tmp_path: Path) -> None:
    path = tmp_path / "placement.safetensors"
    eq.save_placement(made, path)
    for settings in (Settings(policy="static", placement=path), Settings(placement=path, mode="observe")):
        with pytest.raises(eq.ArgumentError, match="engines split evenly"):
            Planner(settings, logging.getLogger("test")).prepare(TOPOLOGY, 2, 16)


def test_reports_and_reasons_show_the_splits_side_by_side() -> None:
    plan = eq.plan(loads_of(8), TOPOLOGY, BATCH, held_out=True)
    assert plan.report.splits == side_by_side(loads_of(8), plan.placement)
    later = plan.report.held_out
    assert later is not None
    assert later.splits is not None
    assert later.splits.even == pytest.approx(later.after.mean_imbalance)
    json.dumps(plan.report.as_dict())
    assert "after 3 sweeps" in plan.explain()
    even = eq.plan(loads_of(8), TOPOLOGY, held_out=True)
    assert even.report.splits is None
    assert even.report.held_out is not None
    assert even.report.held_out.splits is None
    assert "after 3 sweeps" in even.explain()


def test_a_balancer_judges_by_the_split_that_it_plans_for(tmp_path: Path) -> None:
    balancer = Balancer(TOPOLOGY, 2, 16, policy=BATCH, cost=COST, history=4)
    for window in loads_of(4):
        balancer.observe(window)
    first = balancer.propose()
    assert first.placement is not None
    balancer.commit(first.placement)
    for window in loads_of(4, seed=2):
        balancer.observe(window)
    balancer.save(tmp_path / "balancer")
    again = Balancer.restore(tmp_path / "balancer", policy=BATCH)
    assert again.placement == balancer.placement
    found = balancer.propose()
    swept = eq.imbalance(served_loads(loads_of(4, seed=2), first.placement)).mean()
    assert found.imbalance_now == pytest.approx(swept)
    assert again.propose().imbalance_now == found.imbalance_now


def test_a_replay_shows_the_splits_and_whether_splitting_pays() -> None:
    trace = eq.LoadTrace(loads_of(10).astype(np.int64))
    for cost, split_s, words in (
        (None, None, "after 3 sweeps."),
        (COST, None, "worth it where"),
        (COST, 0.0, "it pays"),
        (COST, 1.0, "it does not pay"),
    ):
        found = replay(
            trace,
            TOPOLOGY,
            ["robust", BATCH],
            history=4,
            interval=3,
            cost=cost,
            split="batch",
            split_s=split_s,
        )
        assert found.settings.policies == ("robust", "robust-batch")
        again = ReplayResult.from_dict(json.loads(json.dumps(found.as_dict())))
        for one, other in zip(found.series, again.series, strict=True):
            assert one.splits is not None
            assert one.splits == other.splits
            served = one.splits.swept if one.policy == "robust-batch" else one.splits.even
            if one.role not in REFERENCES:
                assert one.summary.mean_imbalance == pytest.approx(served)
            assert (one.even_step_s is None) == (cost is None)
        assert any(words in sentence for sentence in findings(found))
        assert any("how each window" in table.title for table in replay_tables(found))


def test_a_replay_without_it_has_no_splits() -> None:
    found = replay(eq.LoadTrace(loads_of(6).astype(np.int64)), TOPOLOGY, ["robust"], history=4)
    assert not found.has_splits
    assert found.series[0].even_step_s is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "other"}, "even or batch"),
        ({"split_s": 1e-5, "cost": COST}, "split='batch'"),
        ({"split_s": 1e-5, "split": "batch"}, "cost model"),
        ({"split_s": -1.0, "split": "batch", "cost": COST}, "not negative"),
        ({"split_s": np.nan, "split": "batch", "cost": COST}, "not negative"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, object], words: str) -> None:
    trace = eq.LoadTrace(loads_of(6).astype(np.int64))
    with pytest.raises(eq.ArgumentError, match=words):
        replay(trace, TOPOLOGY, ["robust"], history=4, **options)  # type: ignore[arg-type]


def test_step_times_and_the_gate() -> None:
    loads = np.array([[[30.0, 10.0], [20.0, 20.0]]])
    np.testing.assert_allclose(COST.step_times(loads, np.array([2.0])), [[15e-6, 10e-6]])
    slow = replace(COST, rank_speed=(1.0, 0.5), fixed_s=1e-6)
    np.testing.assert_allclose(slow.step_times(loads, np.array([1.0])), [[31e-6, 41e-6]])
    assert splitting_pays(50e-6, 10e-6, 30e-6)
    assert not splitting_pays(50e-6, 10e-6, 40e-6)


def test_a_replay_of_splits_knows_no_speeds() -> None:
    topology = eq.Topology(4, 5, rank_speed=(1, 1, 1, 0.5))
    trace = eq.synthetic_trace(2, 16, num_windows=6)
    with pytest.raises(eq.ArgumentError, match="leave rank_speed out"):
        replay(trace, [topology], ["robust"], interval=1, history=2, split="batch")
