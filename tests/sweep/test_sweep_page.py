"""Tables, sentences and page of a sweep."""

from __future__ import annotations

import re

import pytest

from equipoise.report.sweep import best_table, settings_table, standing_of, sweep_page, trouble_table
from equipoise.sweep import Point
from equipoise.sweep.point import MEASURES


def row(status="done", reason="", **settings):
    found = {**Point("chat", 4).as_dict(), "max_moves": "none", "slots_per_rank": 4}
    found |= {"status": status, "reason": reason, "key": str(settings)}
    found |= settings
    if status == "done":
        found |= {name: found.get(name, 1.5) for name in MEASURES}
    return found


def texts(table):
    return [[cell.text for cell in each.cells] for each in table.rows]


def test_the_best_point_of_each_topology():
    rows = [
        row(policy=policy, ranks=ranks, mean_imbalance=mean)
        for ranks, policy, mean in (
            (4, "greedy", 1.3),
            (4, "robust", 1.1),
            (8, "greedy", 1.2),
            (8, "robust", 1.4),
        )
    ]
    found = texts(best_table(rows))
    assert [(each[0], each[1], each[-1]) for each in found] == [
        ("chat, 4 x 4", "1.100", "policy robust"),
        ("chat, 8 x 4", "1.200", "policy greedy"),
    ]


def test_settings_are_compared_all_else_equal():
    rows = [row(interval=i, ranks=p, mean_imbalance=1 + 0.01 * i + 0.1 * p) for i in (2, 8) for p in (1, 2)]
    rows.append(row(interval=2, ranks=50, mean_imbalance=9.0))  # without its partner it does not count
    rows.append(row("refused", "it cannot be", interval=8, ranks=50))
    assert texts(settings_table(rows)) == [
        ["interval 2", "2", "1.170", "150.0%", "1.50 s"],
        ["interval 8", "2", "1.230", "150.0%", "1.50 s"],
    ]


def test_what_has_no_score_is_counted_by_its_reason():
    rows = [
        row(),
        row("refused", "too small"),
        row("refused", "too small", seed=1),
        row("failed", "lost", seed=2),
    ]
    assert texts(trouble_table(rows)) == [["refused: too small", "2"], ["failed: lost", "1"]]
    assert standing_of(rows, 9) == "9 points: 1 scored, 2 refused, 1 failed, 5 still to run."


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("refused", "<script>")],
        [row(net_s=None, bytes=None, lost_s=None)],
        [row(seed=seed, mean_imbalance=1 + seed / 1000) for seed in range(300)],
        [row(load="</title><b>&", gate=True, horizon=3)],
    ],
)
def test_the_page_is_whole_whatever_the_points(rows):
    page = sweep_page(rows, len(rows) + 1)
    assert page.count("<section") == page.count("</section>")
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    assert "<script>" not in page
    assert "The sweep is not finished" in page
    assert sweep_page(rows, len(rows) + 1) == page
