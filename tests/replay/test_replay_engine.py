"""The replay: its numbers against a slow reference, its honesty about time, its stops and its refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_reference import WARM_UP, Plain, Stay, slow_replay

from equipoise import ArgumentError, EquipoiseError, LoadTrace, PolicyError, Topology
from equipoise.control import CostModel
from equipoise.policy.registry import DEFAULT
from equipoise.replay import Replay, replay
from equipoise.replay.result import CEILING, FLOOR, GATED, ONCE, PAST, POLICY

COST = CostModel(token_s=1e-6, expert_bytes=1000, intra_bytes_per_s=1e9, inter_bytes_per_s=1e8)


def drifting(num_windows=24, num_layers=2, num_experts=8, seed=0, phases=None, drift=0.3, tokens=2000):
    """A trace whose popular experts change."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, drift, (num_windows, num_layers, num_experts)).cumsum(axis=0)
    popularity = np.exp(rng.normal(0, 1, (num_layers, num_experts)) + steps)
    shares = popularity / popularity.sum(axis=-1, keepdims=True)
    return LoadTrace(rng.poisson(tokens * shares), phases=phases)


def run(trace, topology=None, policy=None, **options):
    policy = policy or Plain()
    options = {"interval": 4, "history": 4, "reference": Plain(), **options}
    return replay(trace, topology or Topology(4, 3), [policy], **options)


def by_role(result, role, topology=None):
    topology = topology or result.settings.topologies[0]
    return next(series for series in result.on(topology) if series.role == role)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_scores_equal_the_slow_reference(data):
    nodes, per_node = data.draw(st.sampled_from([(1, 2), (2, 1), (2, 2), (1, 3)]))
    experts = data.draw(st.integers(2, 7))
    ranks = nodes * per_node
    slots = -(-experts // ranks) + data.draw(st.integers(0, 2))
    topology = Topology(ranks, slots, nodes)
    shape = (data.draw(st.integers(3, 9)), data.draw(st.integers(1, 3)), experts)
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    counts = rng.integers(0, data.draw(st.sampled_from([1, 2, 50, 2**27])), shape)
    lengths = rng.integers(1, 5, shape[0])
    ends = lengths.cumsum()
    trace = LoadTrace(counts, steps=np.stack([ends - lengths, ends], axis=1))
    history, interval = data.draw(st.integers(1, shape[0] - 1)), data.draw(st.integers(1, 4))
    speed = rng.uniform(0.5, 1.5, ranks).tolist()
    cost = {"token": 2e-6, "fixed": 3e-5, "tile": data.draw(st.sampled_from([1, 16])), "speed": speed}
    cost |= {"bytes": 10**6, "intra": 4e9, "inter": 1e9}
    model = CostModel(
        token_s=cost["token"],
        fixed_s=cost["fixed"],
        tile=cost["tile"],
        rank_speed=tuple(speed),
        expert_bytes=cost["bytes"],
        intra_bytes_per_s=cost["intra"],
        inter_bytes_per_s=cost["inter"],
    )
    result = run(trace, topology, interval=interval, history=history, cost=model)
    expected = slow_replay(counts.tolist(), lengths.tolist(), topology, history, interval, cost)
    for series in result.series:
        for name, value in expected[series.label].items():
            found = getattr(series.summary, name)
            if value is None:
                assert found is None
            else:
                assert found == pytest.approx(value, rel=1e-9, abs=1e-12), (series.label, name)


def known(replan):
    """What a replan knew when it was made."""
    return (
        replan.window,
        replan.taken,
        replan.in_sample,
        replan.moves,
        replan.predicted_gain_s,
        replan.trust,
    )


@pytest.mark.parametrize("forecast", ["last", "sum", "ewma", "windows", "phase-mix"])
@pytest.mark.parametrize("change", [8, 13, 20])
def test_shuffling_the_future_changes_no_plan_made_before_it(forecast, change):
    phases = tuple("prefill" if w % 3 else "decode" for w in range(24))
    trace = drifting(phases=phases)
    future = np.random.default_rng(1).permutation(np.arange(change, 24))
    order = [*range(change), *future]
    shuffled = LoadTrace(trace.counts[order] * 3, phases=tuple(phases[w] for w in order))
    shuffled = LoadTrace(
        np.concatenate([trace.counts[:change], shuffled.counts[change:]]), phases=shuffled.phases
    )
    options = {"forecasts": [forecast], "gate": True, "cost": COST, "horizon": 16}
    seen = []
    for loads in (trace, shuffled):
        policy = Plain()
        result = run(loads, policy=policy, **options)
        plans = [
            [known(replan) for replan in series.replans if replan.window <= change]
            for series in result.series
            if series.role != CEILING
        ]
        before = len([w for w in range(4, 24, 4) if w <= change])
        # After the warm-up policy, gated and (at first) once plan in every interval.
        handed = [call[0] for call in policy.calls[WARM_UP:][: 2 * before + 1]]
        scores = [series.mean_imbalance[series.windows < change].tolist() for series in result.series[:4]]
        seen.append((plans, handed, scores))
    assert seen[0][0] == seen[1][0]
    assert all(np.array_equal(a, b) for a, b in zip(seen[0][1], seen[1][1], strict=True))
    assert seen[0][2] == seen[1][2]


def test_a_policy_gets_copies_that_lead_nowhere():
    class Spoiler(Plain):
        def place(self, problem):
            assert problem.loads.base is None
            assert problem.loads.flags.writeable
            plan = super().place(problem)
            problem.loads[:] = 0
            return plan

    trace = drifting()
    before = trace.counts.copy()
    spoiled, honest = run(trace, policy=Spoiler()), run(trace)
    assert np.array_equal(trace.counts, before)
    for one, other in zip(spoiled.series, honest.series, strict=True):
        assert one.mean_imbalance.tolist() == other.mean_imbalance.tolist()


def test_the_comparison_is_in_order_and_the_oracle_is_the_ceiling():
    result = run(drifting(num_windows=44), gate=True, cost=COST)
    assert [series.role for series in result.series] == [FLOOR, POLICY, GATED, ONCE, PAST, CEILING]
    assert len({tuple(series.windows.tolist()) for series in result.series}) == 1
    means = {series.role: series.summary.mean_imbalance for series in result.series}
    assert means[CEILING] < means[POLICY] < means[FLOOR]
    assert by_role(result, FLOOR).summary.moves == 0
    assert len(by_role(result, ONCE).replans) == 1
    policy = by_role(result, POLICY)
    assert policy.summary.in_sample < policy.summary.mean_imbalance
    assert policy.replans[0].held_out == pytest.approx(policy.mean_imbalance[:4].mean(), rel=1e-12)


def test_several_topologies_stand_side_by_side():
    topologies = [Topology(2, 4), Topology(4, 3), Topology(4, 4, num_nodes=2)]
    trace = drifting()
    together = replay(trace, topologies, [Plain()], interval=4, history=4, reference=Plain())
    for topology in topologies:
        alone = run(trace, topology)
        for one, other in zip(together.on(topology), alone.series, strict=True):
            assert one.mean_imbalance.tolist() == other.mean_imbalance.tolist()
            assert one.summary.moves == other.summary.moves


def test_the_current_placement_and_the_budget_reach_the_policies_that_honour_them():
    plain, stay = Plain(), Stay()
    result = replay(
        drifting(), Topology(4, 3), [plain, stay], interval=4, history=4, max_moves=0.1, reference=Plain()
    )
    assert set(stay.budgets[WARM_UP:]) == {int(0.1 * 12 * drifting().num_layers)}
    assert {call[2] for call in plain.calls} == {None}
    currents = [call[1] for call in plain.calls[WARM_UP:]]
    assert currents[0].phy2log[0].tolist() == [*range(8), 0, 1, 2, 3]
    assert all(current is not None for current in currents)
    staying = next(series for series in result.series if series.policy == "stay")
    assert staying.summary.moves == 0
    assert staying.mean_imbalance.tolist() == by_role(result, FLOOR).mean_imbalance.tolist()


def test_layers_without_load_are_balanced():
    counts = drifting().counts.copy()
    counts[:, 1] = 0
    result = run(LoadTrace(counts))
    assert all(series.layer_imbalance[1] == 1.0 for series in result.series)
    assert all(np.isfinite(found.errors).all() for found in result.forecasts)


def test_scale_and_model_layer_numbers_do_not_matter():
    trace = drifting()
    scaled = LoadTrace(trace.counts * 2.0**40, layers=(3, 7), num_model_layers=9)
    one, other = run(trace), run(scaled)
    for a, b in zip(one.series, other.series, strict=True):
        assert a.mean_imbalance == pytest.approx(b.mean_imbalance, rel=1e-12)
    assert other.settings.layers == (3, 7)


class Stopper(Plain):
    """Presses Ctrl-C at its n-th call."""

    def __init__(self, calls):
        super().__init__()
        self.left = calls

    def place(self, problem):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().place(problem)


@pytest.mark.parametrize("calls", [3, 4, 5, 6])
def test_an_interrupted_replay_keeps_the_intervals_that_are_whole(calls):
    trace = drifting()
    options = {"interval": 4, "history": 4, "gate": True, "cost": COST, "reference": Plain()}
    stopped = Replay(trace, [Topology(4, 3)], [Stopper(WARM_UP + calls)], **options)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    result = stopped.result()
    whole = run(trace, gate=True, cost=COST)
    assert whole.complete
    assert not result.complete
    assert 0 < stopped.intervals_done < 5
    for one, other in zip(result.series, whole.series, strict=True):
        count = 4 * stopped.intervals_done
        assert one.windows.tolist() == other.windows[:count].tolist()
        assert one.mean_imbalance.tolist() == other.mean_imbalance[:count].tolist()
        assert len(one.replans) <= stopped.intervals_done
    assert len(result.forecasts[0].errors) == stopped.intervals_done


def test_a_replay_stopped_at_once_has_no_result():
    stopped = Replay(
        drifting(), [Topology(4, 3)], [Stopper(WARM_UP)], reference=Plain(), interval=4, history=4
    )
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    with pytest.raises(EquipoiseError, match="before its first interval"):
        stopped.result()


def test_progress_counts_to_the_end():
    calls = []
    run(drifting(), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(step + 1, 20) for step in range(20)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"interval": 0}, "interval"),
        ({"history": 1.5}, "history"),
        ({"history": 24}, "history=24"),
        ({"gate": True}, "cost model"),
        ({"forecasts": ["tarot"]}, "known are last"),
        ({"forecasts": "last"}, "forecasts"),
        ({"forecasts": ["last", "last"]}, "twice"),
        ({"forecasts": ["phase-mix"]}, "tagged with phases"),
        ({"max_moves": 0.1}, "honoured by none"),
        ({"max_moves": -1}, "max_moves"),
        ({"seed": -1}, "seed"),
        ({"reference": "nobody"}, "unknown policy"),
        ({"cost": CostModel(1e-6, 1, 1.0, 1.0, rank_speed=(1.0, 2.0))}, "rank_speed"),
    ],
)
def test_wrong_settings_are_named(options, words):
    with pytest.raises(ArgumentError, match=words):
        run(drifting(), **options)


def test_policies_and_topologies_that_do_not_fit_are_named():
    with pytest.raises(ArgumentError, match="policies"):
        replay(drifting(), Topology(4, 3), [])
    with pytest.raises(ArgumentError, match="twice"):
        replay(drifting(), Topology(4, 3), [Plain(), Plain()], history=4)
    with pytest.raises(ArgumentError, match="do not fit"):
        run(drifting(), Topology(2, 3))


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda plan: plan[:, :-1], "expected .L, R."),
        (lambda plan: plan[:1], "expected .L, R."),
        (lambda plan: np.zeros_like(plan), "no slot"),
        (lambda plan: plan + 1, "but experts are"),
        (lambda plan: 1 // 0, "ZeroDivisionError"),
    ],
)
def test_a_policy_that_breaks_its_contract_is_named(returned, words):
    class Broken(Plain):
        name = "broken"

        def place(self, problem):
            return returned(super().place(problem))

    with pytest.raises(PolicyError, match=words) as caught:
        run(drifting(), policy=Broken())
    assert "broken" in str(caught.value)


def test_built_in_policies_go_by_name():
    trace, topology = drifting(), Topology(4, 3)
    result = replay(trace, topology, ["greedy"], interval=4, history=4, reference="greedy")
    assert [series.label for series in result.series] == ["do-nothing", "greedy", "all-past", "oracle"]
    assert Replay(trace, [topology], ["greedy"]).settings.reference == DEFAULT


def test_recorded_routing_is_balanced_better_than_by_doing_nothing(traces):
    counts = np.load(traces / "gpt-oss-20b" / "windows_shuffled.npz")["counts"][:64]
    result = replay(LoadTrace(counts), Topology(8, 5), ["greedy"], reference="greedy", interval=8, history=16)
    means = {series.role: series.summary.mean_imbalance for series in result.series}
    assert means[CEILING] < means[POLICY] < means[FLOOR]
    floor = result.forecasts[0].mean_floor
    assert all(found.mean_error > floor for found in result.forecasts)


@pytest.mark.parametrize("windows", range(1, 10))
def test_a_history_that_leaves_nothing_to_score_is_refused_with_one_that_works(windows):
    trace = drifting(windows)
    with pytest.raises(ArgumentError, match=f"has {windows} window") as error:
        run(trace, history=windows)
    named = re.search(r"use history=(\d+)", str(error.value))
    assert (named is None) == (windows == 1)
    if named is not None:
        assert run(trace, history=int(named[1])).series
