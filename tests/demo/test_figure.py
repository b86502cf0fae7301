"""The animated figure of the live demo: small, whole, and asking for nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("torch")


import draw_live_demo
from equipoise.demo import live

FIGURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "live_demo.svg"


def frames(path):
    content = path.read_text(encoding="utf-8")
    assert content.count("http") == 1  # the name of SVG's namespace
    assert len(content) < 200_000
    groups = ElementTree.fromstring(content).findall("{http://www.w3.org/2000/svg}g")
    assert [group.get("class") for group in groups] == ["f"] * (len(groups) - 1) + ["last"]
    return ["".join(group.itertext()) for group in groups]


def test_the_figure_in_the_docs():
    shown = frames(FIGURE)
    assert len(shown) > 20
    assert all("same bits as on one rank" in frame for frame in shown)
    assert all("its own load" in frame for frame in shown[:-1])
    assert "bit-identical" in shown[-1]


def test_it_is_drawn_from_a_run(monkeypatch, tmp_path):
    for name, value in (("PASSES", 3), ("PHASES", 2), ("SEQUENCES", 1)):
        monkeypatch.setattr(live, name, value)
    monkeypatch.setattr(draw_live_demo.live, "SECONDS", 60.0)
    monkeypatch.setattr(sys, "argv", ["draw_live_demo.py", "--output", str(tmp_path / "figure.svg")])
    draw_live_demo.main()
    shown = frames(tmp_path / "figure.svg")
    assert len(shown) == 3  # every third pass, and the end
    assert "pass1of6" in shown[0].replace(" ", "")
