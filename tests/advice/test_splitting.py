"""What `recommend` says of splitting every batch by its load: measured as it says, and weighed by what it takes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise.advice import Question, parted, recommend
from equipoise.advice.curve import Limits, Scoring, curve
from equipoise.advice.splitting import NOTHING
from equipoise.control import CostModel
from equipoise.control.gate import splitting_pays
from equipoise.metrics import imbalance, rank_loads
from equipoise.report.advice import reasons, verdict
from equipoise.report.advice_splitting import about_splitting, splitting_table

FREE = Limits(80e9, worth=0.0)
TINY = CostModel(1e-6, 10_000_000, 300e9, 30e9, top_k=2, name="tiny")


def noisy(windows=8, seed=0, experts=16, tokens=150, spread=0.8):
    """Windows of so few tokens that most of what they lack in balance is noise, which no plan foresees."""
    return eq.synthetic_trace(
        2, experts, windows, seed=seed, spread=spread, tokens_per_window=tokens, top_k=2
    )


def advice(trace=None, gpus=(4,), limits=FREE, cost=TINY, **question):
    (part,) = parted(noisy() if trace is None else trace)
    return recommend(part, Question(gpus, limits, **question), cost)


def test_deepseek_r1_split_by_load(deepseek_advice):
    """Nine slots, split either way; half of what an even split lacks goes, as on docs/dispatch.md."""
    found = deepseek_advice.splitting
    assert (found.named.slots_per_rank, found.best.slots_per_rank) == (9, 9)
    assert round(found.evenly.imbalance, 3) == 1.100
    assert (found.here.imbalance - 1) < 0.5 * (found.evenly.imbalance - 1)
    assert found.here.imbalance <= found.curve.swept[1].imbalance < 1.05
    assert [each.slots_per_rank for each in found.made] == [9, 10]
    text = about_splitting(deepseek_advice)
    assert "split evenly 1.100" in text
    assert "It is worth more than 3 spare slots a rank: 12 split evenly do not hold as well." in text
    assert replace(found, split_s=found.break_even_s / 2).pays
    assert not replace(found, split_s=found.break_even_s * 2).pays


def test_scores_are_those_of_split_batch_on_later_windows():
    found = advice()
    later = found.part.later.counts
    assert {each.policy for each in found.splitting.made} == {"robust-batch"}
    every = [each for each in (*found.splitting.curve.swept, *found.splitting.made) if each.split == "batch"]
    for choice in every:
        placement = found.splitting.placement_of(choice)
        loads = np.stack([rank_loads(each, placement, eq.split_batch(each, placement)) for each in later])
        assert choice.imbalance == pytest.approx(imbalance(loads).mean())
        assert choice.step_s == pytest.approx(1e-6 * loads.max(axis=2).mean())
        assert choice.token_s == pytest.approx(1e-6 * loads.max(axis=2).sum() / (later.sum() / 2 / 2))


def test_plans_for_batches_are_those_of_robust():
    found = advice()
    for choice, placement in zip(found.splitting.made, found.splitting.placements, strict=True):
        topology = eq.Topology(4, choice.slots_per_rank)
        made = eq.plan(found.part.seen, topology, eq.Robust(split="batch")).placement
        assert np.array_equal(made.phy2log, placement.phy2log)


def test_what_splitting_takes_is_in_the_time():
    trace = noisy().regroup(2)  # two steps a window
    free, dear = (advice(trace, split_s=split_s) for split_s in (0.0, 1e-5))
    assert dear.part.later.steps is not None
    steps = np.diff(dear.part.later.steps, axis=1)[:, 0]
    assert set(steps) == {2}
    balanced = 1e-6 * dear.part.later.counts.sum(axis=(1, 2)) / 4
    for before, after in zip(free.splitting.curve.swept, dear.splitting.curve.swept, strict=True):
        if after.split == "even":
            assert after == before
            continue
        assert after.stretch - before.stretch == pytest.approx((1e-5 * 2 * steps / balanced).mean())
        tokens = dear.part.later.counts.sum() / 2 / 2
        assert after.token_s - before.token_s == pytest.approx(1e-5 * 2 * steps.sum() / tokens)
        assert (after.step_s, after.imbalance) == (before.step_s, before.imbalance)
    assert dear.splitting.curve.choices == free.splitting.curve.choices


def test_what_is_recommended_says_how_tokens_are_split():
    found = advice(split_s=0.0)
    assert found.split == "batch"
    assert found.policy in ("robust", "robust-batch")
    assert f"planned with {found.policy} from" in verdict(found)
    assert verdict(found).endswith(", tokens split by the load of every batch.")
    assert verdict(advice()).endswith(", tokens split evenly.")


def test_it_pays_up_to_the_break_even_that_is_said():
    """With memory for nothing and the best at the slots named, the step alone decides."""
    unknown = advice(limits=Limits(1e9, worth=1.0))
    found = unknown.splitting
    assert (found.pays, unknown.split) == (None, "even")
    assert 0 < found.break_even_s <= found.evenly.step_s - found.here.step_s
    for part, pays in ((0.5, True), (2.0, False)):
        split_s = part * found.break_even_s
        asked = advice(limits=Limits(1e9, worth=1.0), split_s=split_s)
        assert asked.splitting.pays is pays
        assert asked.split == ("batch" if pays else "even")
        assert splitting_pays(found.evenly.step_s, found.here.step_s, split_s) is pays
        assert asked.splitting.break_even_s == pytest.approx(found.break_even_s)
        assert about_splitting(asked).endswith("it pays." if pays else "it does not pay.")
    assert "It pays where the exchange of counts and the split take less than" in about_splitting(unknown)
    assert "for every thousand); --split-us says what they take" in about_splitting(unknown)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 9), worth=st.sampled_from([0.0, 2.0, 4.0, 10.0]), tokens=st.sampled_from([60, 400])
)
def test_the_break_even_is_where_it_stops_to_pay(seed, worth, tokens):
    """With the slots of `here`, spare ones included that an even split has none of."""
    limits = Limits(1e9, worth=worth)
    found = advice(noisy(seed=seed, tokens=tokens), limits=limits).splitting
    for part, pays in ((0.98, True), (1.02, False)):
        split_s = part * found.break_even_s
        if split_s <= 0:
            continue
        asked = advice(noisy(seed=seed, tokens=tokens), limits=limits, split_s=split_s).splitting
        if asked.best == asked.here:
            assert asked.pays is pays


def test_spare_slots_saved():
    """Plainly: the fewest slots whose batches, split by load, hold what those named hold split evenly."""
    saved = set()
    for seed in range(4):
        found = advice(noisy(seed=seed), split_s=0.0).splitting
        plain = found.named.spare
        while plain and found.at(plain - 1).stretch <= found.named.stretch:
            plain -= 1
        if found.saved_slots:
            fewest = found.at(found.named.spare - found.saved_slots)
            assert fewest.stretch <= found.named.stretch
            assert all(found.at(each).stretch > found.named.stretch for each in range(fewest.spare))
        assert found.saved_slots >= found.named.spare - plain
        saved.add(found.saved_slots)
    assert max(saved) > 0


def test_slots_saved_are_said():
    found = next(each for seed in range(8) if (each := advice(noisy(seed=seed))).splitting.saved_slots)
    saved, named = found.splitting.saved_slots, found.splitting.named
    text = about_splitting(found)
    assert f"It saves {saved} of {named.spare} spare slot" in text
    assert f"{saved * 20} MB of each GPU" in text  # two layers of ten
    assert f"{named.slots_per_rank - saved} hold so as well as {named.slots_per_rank} split evenly." in text


def test_without_replicas_there_is_nothing_to_split():
    found = advice(limits=Limits(1e9, worth=100.0), split_s=0.0)
    assert found.splitting.named.redundant == 0
    assert found.splitting.curve.swept[0] == found.splitting.curve.choices[0]
    assert found.splitting.curve.swept[0].split == "even"
    assert found.splitting.here.spare == 1
    assert found.split == "even"  # a slot is worth more than what splitting saves
    text = about_splitting(found)
    assert text.startswith(
        "Without redundant experts there is nothing to split; with one more slot a rank there is."
    )
    assert text.endswith("it does not pay.")


def test_a_spare_slot_may_be_worth_it_only_where_batches_are_split():
    """Memory so dear that an even split takes no spare slot, and one by load does; dearer, none does."""
    split = {}
    for worth in (4.0, 40.0):
        found = advice(noisy(seed=1), limits=Limits(1e9, worth=worth), split_s=0.0)
        assert found.splitting.named.redundant == 0
        split[worth] = (found.split, found.best.choice.spare)
    assert split == {4.0: ("batch", 1), 40.0: ("even", 0)}


def test_slots_that_do_not_divide_hold_replicas_without_a_spare_slot():
    """Ten experts on four ranks have three slots each: two of the twelve are replicas."""
    found = advice(noisy(experts=10), limits=Limits(1e9, worth=100.0))
    assert (found.splitting.named.spare, found.splitting.named.redundant) == (0, 2)
    assert found.splitting.here.spare == 0
    assert [each.spare for each in found.splitting.made] == [0, 1]


def test_flat_loads_have_nothing_to_gain_from_any_split():
    for split_s in (None, 0.0):
        found = advice(eq.LoadTrace(np.full((8, 2, 16), 500), top_k=2), split_s=split_s)
        assert found.nothing_to_gain
        assert (found.split, found.splitting.made) == ("even", ())
        assert len(list(reasons(found))) == 1


def test_noise_that_only_a_dispatcher_sees_is_said_where_nothing_else_is_to_gain():
    """Loads that are flat but for noise: no plan helps, splitting does."""
    trace = eq.LoadTrace(np.random.default_rng(0).poisson(50, (12, 2, 16)), top_k=2)
    unknown, dear, free = (advice(trace, split_s=split_s) for split_s in (None, 1.0, 0.0))
    assert (unknown.nothing_to_gain, dear.nothing_to_gain, free.nothing_to_gain) == (True, True, False)
    assert (unknown.split, dear.split, free.split) == ("even", "even", "batch")
    assert free.gain > NOTHING > unknown.gain
    assert any("Split by the load of every batch" in sentence for sentence in reasons(unknown))
    assert not any("Split by the load of every batch" in sentence for sentence in reasons(dear))


def test_groups_on_nodes_are_not_planned_for_batches():
    found = advice(gpus=(4,), gpus_per_node=2, num_groups=2)
    assert found.splitting.curve.topology.hierarchical
    assert found.splitting.made == ()
    assert found.splitting.here.policy == "robust"
    assert "plans for batches know no groups on nodes" in " ".join(reasons(found))


def test_what_does_not_fit_is_not_taken_for_splitting():
    tight = Limits(5 * 2 * 10e6 / 0.6 + 1, worth=0.0)  # five slots of two layers in six tenths of the memory
    found = advice(limits=tight, split_s=0.0)
    assert found.best.choice.fits
    assert all(each.fits for each in found.splitting.made)
    none = advice(limits=Limits(1e6), split_s=0.0)
    assert not none.best.choice.fits
    assert list(reasons(none))


@pytest.mark.parametrize("split_s", [-1.0, float("nan"), float("inf"), True, "3"])
def test_what_splitting_takes_is_checked(split_s):
    with pytest.raises(eq.EquipoiseError, match="split_s must be a number of seconds that is not negative"):
        Question((4,), FREE, split_s=split_s)


@pytest.mark.parametrize("more", [{"tile": 16}, {"rank_speed": (1.0,) * 4}])
def test_tiles_and_speeds_are_refused(more):
    with pytest.raises(eq.EquipoiseError, match="leave tile and rank_speed out"):
        advice(cost=replace(TINY, **more))


def test_loads_that_are_no_tokens_are_refused():
    trace = eq.LoadTrace(np.ones((8, 2, 16), dtype=int), unit="batches")
    with pytest.raises(eq.EquipoiseError, match="advice weighs the time of tokens"):
        advice(trace)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 5),
    windows=st.integers(2, 9),
    split_s=st.none() | st.floats(0, 1e-3),
    worth=st.floats(0, 50),
    memory=st.sampled_from([1e6, 2e8, 1e9, 80e9]),
    tokens=st.sampled_from([1, 20, 400]),
)
def test_whatever_is_asked_the_answers_agree(seed, windows, split_s, worth, memory, tokens):
    """The split named was scored and is no dearer than the even one; figures, table and sentences can be made."""
    limits = Limits(memory, worth=worth)
    found = advice(noisy(windows, seed, tokens=tokens), gpus=(2, 4), limits=limits, split_s=split_s)
    splitting, best = found.splitting, found.best.choice
    assert found.best in found.deployments
    assert (found.split == "batch") == (bool(splitting.pays) and found.gain >= NOTHING)
    if found.split == "batch":
        assert best.price(worth) < splitting.named.price(worth)
        assert best.fits >= splitting.named.fits
        even = splitting.curve.choices[best.spare]
        assert splitting_pays(even.step_s, best.step_s, split_s)
        assert found.policy == best.policy in ("robust", "robust-batch")
    else:
        assert best == splitting.named
    if split_s is None:
        assert splitting.pays is None
    for even, swept in zip(splitting.curve.choices, splitting.curve.swept, strict=True):
        assert swept.imbalance <= even.imbalance + 1e-9  # sweeps make no rank busier than an even split does
    assert splitting.break_even_s <= splitting.evenly.step_s - splitting.here.step_s
    json.dumps(found.as_dict(), allow_nan=False)
    assert verdict(found)
    assert all(reasons(found))
    assert len(splitting_table(found).sections[0]) == len(splitting.curve.choices)
    assert found.move_s >= 0


def test_curves_are_scored_once_for_each_split():
    (part,) = parted(noisy())
    found = curve(Scoring(part, TINY, FREE), 4, 1, 1, seed=0)
    assert [each.split for each in found.choices] == ["even"] * 5
    assert [each.split for each in found.swept] == ["even"] + ["batch"] * 4
    assert {each.policy for each in (*found.choices, *found.swept)} == {"robust"}
    assert found.nothing.policy is None
