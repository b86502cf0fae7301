"""Who holds best: one answer for table, figure, page and sentence, whatever was measured."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from pages import Reader

from equipoise.replay.result import COMPETITORS, POLICY
from equipoise.report import words
from equipoise.report.html import replay_page
from equipoise.report.standing import best_forecast, standing
from equipoise.report.table import BEST
from equipoise.report.tables import balance_table
from equipoise.report.units import topology_name


def measured(result, rng):
    """The result with other means and net times, some of them equal."""
    changed = []
    for one in result.series:
        mean, net = 1 + rng.integers(0, 12) / 10, float(rng.integers(-5, 2))
        even = float(rng.integers(1, 100)) if rng.random() < 0.7 else None
        summary = replace(one.summary, mean_imbalance=mean, net_s=net, break_even_windows=even)
        changed.append(replace(one, summary=summary))
    return replace(result, series=tuple(changed))


def test_every_part_of_a_report_names_the_same_best(result):
    rng = np.random.default_rng(0)
    for _ in range(1000):
        found = measured(result, rng)
        said = list(words.findings(found))
        for topology in found.settings.topologies:
            stand = standing(found, topology)
            policies = [one for one in found.on(topology) if one.role in COMPETITORS]
            means = [one.summary.mean_imbalance for one in policies]
            assert stand.best is policies[means.index(min(means))]
            label = stand.best.label
            marked = [one.cells for one in balance_table(found, topology).rows if one.role == BEST]
            assert [cells[0].text for cells in marked] == [label]
            assert f"On later traffic {label} held best" in words.held_best(found, topology)
            assert any(f": {label} holds best on later windows" in sentence for sentence in said)
            verdict, reason = words.is_it_worth_it(found, topology)
            assert verdict != "no"
            if stand.favourite is None:
                assert all(one.summary.net_s <= 0 for one in policies)
                assert all(one.summary.break_even_windows is None for one in policies)
                assert verdict == "nothing gained"
                continue
            assert f"In time, {stand.favourite.label} gains" in reason
            if stand.favourite.summary.net_s > 0:
                assert any(f"{stand.favourite.label} brings most" in sentence for sentence in said)
                assert verdict.startswith("yes")
            else:
                soonest = min(one.summary.break_even_windows or math.inf for one in policies)
                assert stand.favourite.summary.break_even_windows == soonest
                assert f"A re-plan by {stand.favourite.label} pays after" in reason
                assert verdict.startswith("after ")


def test_a_reference_that_can_be_had_is_said_to_lead_where_it_does(result):
    rng = np.random.default_rng(4)
    led = 0
    for _ in range(500):
        found = measured(result, rng)
        for topology in found.settings.topologies:
            stand = standing(found, topology)
            leads = stand.past.summary.mean_imbalance < stand.best.summary.mean_imbalance
            led += leads
            said = [line for line in words.findings(found) if line.startswith(topology_name(topology))]
            assert any("all-past" in line and "can be had" in line for line in said) == leads
            assert ("can be had" in words.held_best(found, topology)) == leads
    assert 50 < led < 950


def test_nobody_gets_more_than_could_be_had(result):
    rng = np.random.default_rng(1)
    parts = 0
    for _ in range(1000):
        found = measured(result, rng)
        for topology in found.settings.topologies:
            stand = standing(found, topology)
            said = re.search(r"that is (-?\d+)% of what could be had", words.held_best(found, topology))
            floor, best, oracle = (
                one.summary.mean_imbalance for one in (stand.floor, stand.best, stand.oracle)
            )
            if oracle <= best <= floor and oracle < floor:
                parts += 1
                assert stand.attained == pytest.approx((floor - best) / (floor - oracle))
                assert 0 <= int(said[1]) <= 100
            else:
                assert stand.attained is None
                assert said is None
    assert 100 < parts < 1900


def test_the_page_and_the_figure_show_the_rank_loads_of_the_best(result):
    pytest.importorskip("matplotlib")
    from equipoise.report.figures import replay_figure

    rng = np.random.default_rng(2)
    for _ in range(3):
        found = measured(result, rng)
        text = Reader(replay_page(found)).text
        for part, topology in zip(replay_figure(found).subfigs, found.settings.topologies, strict=True):
            title = f"Rank loads after: {standing(found, topology).best.label}"
            assert title in text
            assert title in [axes.get_title() for axes in part.subfigs[1].axes]


def test_rivals_are_those_that_hardly_differ(result):
    rng = np.random.default_rng(3)
    for _ in range(200):
        found = measured(result, rng)
        for topology in found.settings.topologies:
            stand = standing(found, topology)
            for one in found.on(topology):
                excess = one.summary.mean_imbalance - stand.best.summary.mean_imbalance
                near = excess < 0.01 * (stand.floor.summary.mean_imbalance - 1)
                assert (one in stand.rivals) == (near and one.role == POLICY and one is not stand.best)


def test_the_best_forecast_errs_least(result):
    least = min(found.mean_error for found in result.forecasts)
    assert best_forecast(result).mean_error == least
    assert best_forecast(result).forecast in " ".join(words.forecast_finding(result))
