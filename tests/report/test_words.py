"""A replay in sentences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pages import run

from equipoise import ArgumentError, LoadTrace, Topology
from equipoise.control import CostModel
from equipoise.replay import ReplayResult, replay
from equipoise.report import words
from equipoise.report.standing import standing
from equipoise.report.tables import moves_table
from equipoise.report.units import amount, counted, duration, percent

TOPOLOGY = Topology(4, 3)


def replayed(move_s=1.0, times=1, **options):
    """A skewed, steady load: any plan gains; ``times`` longer with the same traffic in every window."""
    counts = np.tile([[[800, 400, 100, 100, 100, 100, 100, 100]]], (12 * times, 1, 1))
    cost = CostModel(1e-6, int(1e6 * move_s), 1e9, 1e9, top_k=2)
    return replay(
        LoadTrace(counts),
        TOPOLOGY,
        ["greedy"],
        interval=4 * times,
        history=4,
        cost=cost,
        gate=True,
        **options,
    )


def series(result, label):
    return next(one for one in result.series if one.label == label)


def test_words_say_whether_it_is_worth_it(result):
    topology = result.settings.topologies[0]

    def verdict(net, even):
        changed = [
            replace(s, summary=replace(s.summary, net_s=net, break_even_windows=even))
            for s in result.on(topology)
        ]
        return words.is_it_worth_it(replace(result, series=tuple(changed)), topology)[0]

    assert verdict(-1.0, None) == "nothing gained"
    assert verdict(1.0, 3.0) == "yes"
    assert verdict(-1.0, 3.0).startswith("after ")
    assert verdict(-1.0, 3.0).endswith(" of such traffic")
    assert verdict(None, None) == "not known"


def test_break_even_is_where_gains_have_paid_for_the_moves():
    """Serving the first plan for that many windows brings what its moves cost, whatever was recorded."""
    found = replayed()
    once = series(found, "greedy (once)")
    floor = series(found, "do-nothing")
    gain = float((floor.layer_time_s - once.layer_time_s).mean())
    (taken,) = once.replans
    assert once.summary.break_even_windows == pytest.approx(taken.move_s / gain)
    longer = series(replayed(times=3), "greedy (once)").summary
    assert longer.break_even_windows == pytest.approx(once.summary.break_even_windows)
    cheap = series(replayed(move_s=0.001), "greedy (once)").summary
    assert cheap.break_even_windows == pytest.approx(once.summary.break_even_windows / 1000)
    assert cheap.net_s > 0 > once.summary.net_s


def test_traffic_turns_tokens_into_time():
    found = replayed(traffic=450.0)
    assert found.settings.tokens_per_window == 900
    assert found.settings.window_s == 2
    even = series(found, "greedy (once)").summary.break_even_windows
    text = duration(2 * even)
    assert words.is_it_worth_it(found, TOPOLOGY)[0] == f"after {text} of such traffic"
    tokens = replayed()
    assert words.is_it_worth_it(tokens, TOPOLOGY)[0] == f"after {amount(900 * even)} tokens of such traffic"
    cells = {one.cells[0].text: one.cells[-1].text for one in moves_table(found, TOPOLOGY).rows}
    assert cells["greedy (once)"] == duration(2 * even, brief=True)
    again = ReplayResult.from_dict(found.as_dict())
    assert again.settings == found.settings


def test_results_of_older_versions_are_read():
    data = replayed().as_dict()
    for name in ("picks_per_window", "top_k", "traffic"):
        del data["settings"][name]
    for one in data["series"]:
        del one["summary"]["break_even_windows"]
    old = ReplayResult.from_dict(data)
    assert "12 windows from" in words.what_was_replayed(old.settings)
    assert words.is_it_worth_it(old, TOPOLOGY)[0] in ("yes", "nothing gained")


@pytest.mark.parametrize("traffic", [0, -1.0, float("nan"), float("inf"), True, "many"])
def test_wrong_traffic(traffic):
    with pytest.raises(ArgumentError, match="traffic must be a positive number"):
        replayed(traffic=traffic)


def test_traffic_without_a_model():
    with pytest.raises(ArgumentError, match="traffic needs a cost model"):
        run(["one"], [Topology(4, 5)], cost=False, traffic=10.0)


def test_a_window_of_routed_tokens_is_no_step():
    text = words.what_was_replayed(replayed().settings)
    assert "12 windows of about 900 tokens from" in text
    assert "step" not in text


def test_one_of_a_thing_is_no_plural():
    assert [counted(n, "rank") for n in (0, 1, 2, 1200)] == ["0 ranks", "1 rank", "2 ranks", "1,200 ranks"]
    assert standing(replayed(), TOPOLOGY).floor.label == "do-nothing"


def test_no_minus_before_zero():
    rng = np.random.default_rng(0)
    for decimals in range(4):
        for part in (*rng.normal(0, 1e-4, 500), -0.0, -1e-17):
            text = percent(part, decimals)
            assert not (text.startswith("-") and float(text[:-1]) == 0)
            assert abs(float(text[:-1]) / 100 - part) <= 0.51 * 10 ** -(decimals + 2)


def test_times_and_amounts_in_three_digits():
    assert [duration(s) for s in (0.002, 59.0, 60.0, 90.0, 3600.0, 1e5)] == [
        "2 ms",
        "59 s",
        "1 minute",
        "1.50 minutes",
        "1 hour",
        "1.16 days",
    ]
    assert [duration(s, brief=True) for s in (60.0, 7200.0)] == ["1 min", "2 h"]
    assert [amount(n) for n in (3, 512, 4096, 1.25e6, 2e9)] == [
        "3",
        "512",
        "4,100",
        "1.25 million",
        "2 billion",
    ]
    rng = np.random.default_rng(1)
    for value in np.exp(rng.uniform(0, 30, 2000)):
        number, unit = amount(value, brief=True).partition(" ")[::2]
        scale = {"": 1, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
        assert float(number.replace(",", "")) * scale == pytest.approx(value, rel=0.0051)
