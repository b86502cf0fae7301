"""Colours, dashes and marks."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from equipoise.replay.result import REFERENCES, ROLES
from equipoise.report import looks
from equipoise.report.html import replay_page


def lightness(colour):
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((lightness(one), lightness(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_can_be_told_apart(result, theme):
    """Heat goes one way in lightness, which no colour blindness takes away; text and lines stand out."""
    blocks = re.findall(r":root \{(.*?)\}", replay_page(result), flags=re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[theme]))
    heat = np.array([lightness(colours[f"h{level}"]) for level in range(len(looks.HEAT_BREAKS) + 1)])
    steps = np.diff(heat) * (-1 if theme == 0 else 1)
    assert (steps > 0).all()
    for name in ("ink", "soft", "accent", "good", "bad"):
        assert contrast(colours[name], colours["raised"]) >= 4.5, name
    for name in ("c0", "c1", "c2", "c3", "c4", "c5", "cx"):
        assert contrast(colours[name], colours["paper"]) >= 3, name


def test_every_role_has_a_look_of_its_own():
    assert set(looks.ROLE_LOOKS) == set(ROLES)
    assert len(set(looks.ROLE_LOOKS.values())) == len(ROLES)
    assert len({mark for _, mark in looks.ROLE_LOOKS.values()}) == len(ROLES)


def test_page_and_figure_draw_a_series_alike(result):
    pytest.importorskip("matplotlib")
    from equipoise.report.figures import replay_figure

    page = replay_page(result)
    light, _ = (
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", b)) for b in re.findall(r":root \{(.*?)\}", page, re.S)
    )
    dashes = {
        name: [float(length) for length in lengths.split()]
        for name, lengths in re.findall(r"\.(\w+) \{ stroke-dasharray: ([\d. ]+);", page)
    }
    drawn = dict(re.findall(r'<path d="[^"]*" class="line (s\d+ [^"]+)" fill="none"><title>([^<]*)', page))
    for part, topology in zip(replay_figure(result).subfigs, result.settings.topologies, strict=True):
        over_time = next(axes for axes in part.subfigs[0].axes if "over time" in axes.get_title())
        lines = {line.get_label(): line for line in over_time.lines}
        for number, series in enumerate(result.on(topology)):
            look = looks.look_of(series, result.settings)
            assert drawn[f"s{number} {look.classes}"] == series.label
            colour, *dash = look.classes.split()
            line = lines[series.label]
            assert line.get_color() == light[colour]
            pixels = [length * looks.LINE_WIDTH for length in look.plot["linestyle"][1]] if dash else []
            assert pixels == pytest.approx(dashes[dash[0]] if dash else [])
            assert line.get_linestyle() == ("--" if dash else "-")


def test_policies_differ_in_colour_as_long_as_colours_last_and_references_are_grey(result):
    names = [f"policy {number}" for number in range(5)]
    settings = replace(result.settings, policies=tuple(names), forecasts=("windows", "last"))
    found = {}
    for role, name, forecast in product(ROLES, names, settings.forecasts):
        series = replace(result.series[0], role=role, policy=name, forecast=forecast)
        look = looks.look_of(series, settings)
        if role in REFERENCES:
            assert look.colour is None
        else:
            assert found.setdefault((name, forecast), look.colour) == look.colour
    assert list(found.values()) == [number % len(looks.COLOURS) for number in range(10)]
