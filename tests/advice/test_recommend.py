"""`recommend`: what it names on recorded loads, on flat ones, and that it says what it measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise.advice import Question, joined, parted, recommend
from equipoise.advice.curve import Limits, Scoring, best_of, curve
from equipoise.advice.timing import BUDGET, KEPT, LEAST_SCORED, first_of_best, try_replanning
from equipoise.control import CostModel
from equipoise.metrics import imbalance, rank_loads
from equipoise.report.advice import reasons, verdict

LIMITS = Limits(80e9)
TINY = CostModel(1e-6, 10_000_000, 300e9, 30e9, top_k=2, name="tiny")


def skewed(windows=8, seed=0, experts=16, layers=2, spread=0.8, **more):
    return eq.synthetic_trace(
        layers, experts, windows, seed=seed, spread=spread, tokens_per_window=2000, top_k=2, **more
    )


def flat(windows=8, experts=16):
    return eq.LoadTrace(np.full((windows, 2, experts), 500), top_k=2)


def test_nine_slots_for_32_ranks_and_what_the_first_spare_slot_brings(deepseek_advice):
    (found,) = deepseek_advice.deployments
    assert (found.choice.ranks, found.choice.slots_per_rank, found.choice.redundant) == (32, 9, 32)
    curve = {choice.slots_per_rank: round(choice.imbalance, 3) for choice in deepseek_advice.chosen.choices}
    assert {slots: curve[slots] for slots in (8, 9, 10, 12)} == {8: 1.207, 9: 1.100, 10: 1.089, 12: 1.079}
    text = " ".join(reasons(deepseek_advice))
    assert "The first spare slot a rank brings 84% of what 4 bring" in text
    assert "32 ranks: 9 slots a rank (32 redundant experts)" in text
    assert "one takes 2.55 GB of each GPU" in text
    said = verdict(deepseek_advice)
    assert "32 ranks with 9 slots a rank (32 redundant experts), planned with robust from 3 windows" in said
    assert said.endswith(", tokens split evenly.")


@pytest.mark.parametrize("gpus", [(4,), (2, 4, 8)])
def test_flat_loads_have_nothing_to_gain(gpus):
    (part,) = parted(flat())
    found = recommend(part, Question(gpus, LIMITS), TINY)
    assert found.nothing_to_gain
    assert verdict(found).startswith("Nothing to gain")
    assert found.best.choice.spare == 0
    assert len(list(reasons(found))) == 1


def test_flat_loads_with_noise_and_loads_that_are_all_zero():
    rng = np.random.default_rng(0)
    noisy = eq.LoadTrace(rng.poisson(20_000, (8, 2, 16)), top_k=2)
    for trace in (noisy, eq.LoadTrace(np.zeros((8, 2, 16)), top_k=2)):
        (part,) = parted(trace)
        assert recommend(part, Question((4,), LIMITS), TINY).nothing_to_gain


def test_skewed_loads_do_gain():
    """The check above can fail."""
    (part,) = parted(skewed())
    assert not recommend(part, Question((4,), LIMITS), TINY).nothing_to_gain


def test_choices_are_scored_on_the_later_windows_alone():
    (part,) = parted(skewed())
    found = curve(Scoring(part, TINY, LIMITS), 4, 1, 1, seed=0)
    for choice in found.choices:
        plan = eq.plan(part.seen, eq.Topology(4, choice.slots_per_rank)).placement
        loads = rank_loads(part.later.counts, plan)
        assert choice.imbalance == pytest.approx(imbalance(loads).mean())
        tokens = part.later.counts.sum() / 2 / 2
        assert choice.token_s == pytest.approx(1e-6 * loads.max(axis=2).sum() / tokens)
        assert choice.bytes == choice.slots_per_rank * 2 * 10_000_000
    changed = replace(part, later=part.later[:1])
    assert (
        curve(Scoring(changed, TINY, LIMITS), 4, 1, 1, seed=0).choices[0].imbalance
        != found.choices[0].imbalance
    )


def test_memory_decides_between_slots_and_time():
    (part,) = parted(skewed())
    free = recommend(part, Question((4,), Limits(80e9, worth=0.0)), TINY).best.choice
    dear = recommend(part, Question((4,), Limits(1e9, worth=10.0)), TINY).best.choice
    assert free.spare > dear.spare == 0
    assert free.stretch < dear.stretch


def test_what_does_not_fit_is_not_recommended_and_said():
    (part,) = parted(skewed())
    tight = Limits(5 * 2 * 10e6 / 0.6 + 1)  # five slots of two layers in six tenths of the memory
    found = recommend(part, Question((4,), tight), TINY)
    assert found.best.choice.fits
    assert found.best.choice.slots_per_rank <= 5
    none = recommend(part, Question((4,), Limits(1e6)), TINY)
    assert not none.best.choice.fits
    assert "do not fit" in verdict(none)
    assert "take more GPUs" in " ".join(reasons(none))


def test_a_number_of_gpus_may_be_several_groups():
    (part,) = parted(skewed())
    found = recommend(part, Question((2, 8), Limits(80e9, worth=0.0)), TINY)
    whole = found.deployments[-1]
    assert whole.gpus == 8
    assert (whole.groups, whole.choice.ranks) == (4, 2)  # fewer ranks balance better, and memory is free here
    assert "8 GPUs: 4 groups of 2 ranks" in str(
        __import__("equipoise.report.advice", fromlist=["x"]).deployment_table(found)
    )


def test_the_least_price_is_chosen():
    (part,) = parted(skewed())
    found = recommend(part, Question((2, 4), LIMITS), TINY)
    for each in found.curves:
        fitting = [choice for choice in each.choices if choice.fits]
        chosen = best_of(each.choices, 1.0)
        assert chosen.price(1.0) == min(choice.price(1.0) for choice in fitting)


@settings(max_examples=20)
@given(
    worth=st.floats(0, 100),
    memory=st.floats(1e6, 1e12),
    kept=st.floats(0, 0.99),
    seed=st.integers(0, 3),
)
def test_whatever_memory_is_worth_the_choice_is_one_of_those_tried(worth, memory, kept, seed):
    (part,) = parted(skewed(windows=3, seed=seed))
    found = curve(Scoring(part, TINY, Limits(memory, kept, worth)), 4, 1, 1, seed=0)
    chosen = best_of(found.choices, worth)
    assert chosen in found.choices
    assert chosen.fits or not any(choice.fits for choice in found.choices)


@pytest.mark.parametrize(
    ("limits", "said"),
    [((0, 0.4, 1.0), "memory_bytes"), ((float("nan"), 0.4, 1.0), "memory_bytes"), ((1e9, 1.0, 1.0), "kept"),
     ((1e9, 0.4, -1.0), "worth"), ((1e9, 0.4, float("inf")), "worth")],
)  # fmt: skip
def test_limits_are_checked(limits, said):
    with pytest.raises(eq.EquipoiseError, match=said):
        Limits(*limits)


@pytest.mark.parametrize("gpus", [(), (0,), (4, 4), (5000,), (True,)])
def test_gpus_are_checked(gpus):
    with pytest.raises(eq.EquipoiseError, match="gpus must be numbers"):
        Question(gpus, LIMITS)


class TestParts:
    def test_the_last_quarter_is_later(self):
        (part,) = parted(skewed(windows=9))
        assert (len(part.seen), len(part.later)) == (7, 2)
        assert np.array_equal(part.whole.counts, skewed(windows=9).counts)

    def test_one_window_is_too_few(self):
        with pytest.raises(eq.EquipoiseError, match="name later recordings with --later"):
            parted(flat(windows=1))
        assert len(parted(flat(windows=1), flat(windows=1))[0].later) == 1

    def test_prefill_and_decode_apart(self):
        one, two = skewed(seed=1), skewed(seed=2)
        counts = np.stack([one.counts, two.counts], axis=1).reshape(16, 2, 16)
        trace = eq.LoadTrace(counts, phases=("prefill", "decode") * 8, top_k=2)
        parts = parted(trace)
        assert [part.name for part in parts] == ["prefill", "decode"]
        assert np.array_equal(parts[1].whole.counts, two.counts)
        mixed = eq.LoadTrace(counts, phases=("prefill", "mixed") * 8, top_k=2)
        assert [part.name for part in parted(mixed)] == [""]

    def test_joined_recordings(self):
        one, two = skewed(seed=1).regroup(2), skewed(seed=2)
        both = joined([one, two])
        assert np.array_equal(both.counts, np.concatenate([one.counts, two.counts]))
        assert np.array_equal(np.diff(both.steps, axis=1)[:, 0], [2] * 4 + [1] * 8)
        assert both.steps[1:, 0].tolist() == both.steps[:-1, 1].tolist()
        assert both.top_k == 2
        assert joined([one]) is one
        with pytest.raises(eq.EquipoiseError, match="must be of one model"):
            joined([one, skewed(experts=8)])
        with pytest.raises(eq.EquipoiseError, match="must be of one model"):
            parted(one, skewed(layers=3))


class TestTiming:
    def test_short_recordings_say_nothing_about_replanning(self, deepseek_advice):
        assert deepseek_advice.replannings == ()
        assert "the recording does not say" in " ".join(reasons(deepseek_advice))

    def test_replannings_are_replays(self):
        from equipoise.replay import replay

        (part,) = parted(skewed(windows=16, drift=0.3))
        topology = eq.Topology(4, 5)
        found = try_replanning(part, topology, "greedy", 4, TINY, seed=0)
        assert {each.interval for each in found} == {1, 2, 4}
        assert {each.max_moves for each in found} == {None}  # greedy honours no budget
        plain = replay(part.whole, topology, ["greedy"], interval=2, history=4, cost=TINY, reference="greedy")
        mine = next(each for each in found if each.interval == 2 and each.mode == "every time")
        assert mine.net_s == plain.series[1].summary.net_s
        assert mine.imbalance == plain.series[1].summary.mean_imbalance

    def test_budgets_are_tried_at_the_best_interval(self):
        (part,) = parted(skewed(windows=16, drift=0.3))
        found = try_replanning(part, eq.Topology(4, 5), "robust", 4, TINY, seed=0)
        intervals = [each for each in found if each.max_moves == BUDGET]
        assert {each.interval for each in intervals} == {1, 2, 4}
        best = max(intervals, key=lambda each: each.net_s).interval
        assert {(each.interval, each.max_moves) for each in found[len(intervals) :]} == {
            (best, budget) for budget in (0.02, 0.1, None)
        }

    def test_too_few_windows_for_a_replay(self):
        (part,) = parted(skewed(windows=LEAST_SCORED + 2))
        assert try_replanning(part, eq.Topology(4, 5), "robust", 8, TINY, seed=0) == ()
        found = try_replanning(part, eq.Topology(4, 5), "robust", 2, TINY, seed=0)
        assert {(each.history, each.scored) for each in found} == {(2, LEAST_SCORED)}
        (longer,) = parted(skewed(windows=2 * LEAST_SCORED))
        found = try_replanning(longer, eq.Topology(4, 5), "robust", 8, TINY, seed=0)
        assert {(each.history, each.scored) for each in found} == {(LEAST_SCORED, LEAST_SCORED)}

    def test_dear_moves_are_planned_once_or_never(self):
        (part,) = parted(skewed(windows=16))
        dear = replace(TINY, expert_bytes=10**13)
        found = recommend(part, Question((4,), Limits(1e18)), dear)
        assert found.replanning is None
        assert "no way to plan anew gained more than its moves cost" in " ".join(reasons(found))
        cheap = recommend(part, Question((4,), Limits(1e18)), replace(TINY, expert_bytes=1))
        assert cheap.replanning is not None
        assert max(each.net_s for each in cheap.replannings) == cheap.replanning.net_s

    def test_of_settings_that_are_alike_the_first_is_taken(self):
        from equipoise.advice import Tried

        tried = (Tried(1, 1.2), Tried(2, 1.101), Tried(4, 1.1))
        assert first_of_best(tried).value == 2
        assert first_of_best(tried, 4).value == 4
        assert first_of_best(tried, 1).value == 2

    def test_break_even(self):
        (part,) = parted(skewed())
        found = recommend(part, Question((4,), LIMITS), TINY)
        saved = found.chosen.nothing.token_s - found.best.choice.token_s
        assert found.break_even_tokens * saved == pytest.approx(found.move_s)
        text = " ".join(reasons(found, traffic=found.break_even_tokens / 60))
        assert "has paid after 1 minute of such traffic" in text

    def test_kept_is_a_way(self):
        (part,) = parted(skewed(windows=16))
        found = recommend(part, Question((4,), LIMITS), TINY)
        assert KEPT in {each.mode for each in found.replannings}
