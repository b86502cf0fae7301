"""A replay in sentences."""

from __future__ import annotations

from dataclasses import replace

from equipoise.report import words
from equipoise.report.standing import standing


def test_words_say_whether_it_is_worth_it(result):
    topology = result.settings.topologies[0]
    favourite = standing(result, topology).favourite

    def with_net(net):
        changed = [replace(s, summary=replace(s.summary, net_s=net)) for s in result.on(topology)]
        return words.is_it_worth_it(replace(result, series=tuple(changed)), topology)[0]

    assert with_net(-1.0) == "no"
    assert with_net(1.0) == "yes"
    assert favourite.summary.net_s == max(
        s.summary.net_s for s in result.on(topology) if s.role in ("policy", "gated", "once")
    )
