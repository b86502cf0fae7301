"""The HTML page of a replay."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import Browser, find_chromium
from typer.testing import CliRunner

from equipoise import FileAccessError, LoadTrace, Topology
from equipoise.cli import replay as _command  # noqa: F401, adds the command
from equipoise.cli.app import app
from equipoise.replay import CostModel, replay
from equipoise.report import axes, charts, heat, looks, words
from equipoise.report.html import replay_page, save_html
from equipoise.report.markup import Markup, element
from equipoise.report.standing import standing

EVIL = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\udc80"
VOID = {"meta", "link", "input"}


class Rotating:
    """Experts in a new order at every call: moves much, balances by chance."""

    honours_max_moves = False

    def __init__(self, name):
        self.name, self.calls = name, 0

    def place(self, loads, topology, *, current=None, max_moves=None, seed=0):
        self.calls += 1
        row = (np.arange(topology.num_slots) * 3 + self.calls) % loads.shape[-1]
        return np.tile(np.roll(row, self.calls), (loads.shape[1], 1))


def run(policies, topologies, *, layers=5, cost=True, name="a test", **options):
    counts = np.random.default_rng(0).poisson(np.exp(np.random.default_rng(1).normal(3, 1, (14, layers, 16))))
    return replay(
        LoadTrace(counts, layers=tuple(range(3, 3 + layers)), source=name),
        topologies,
        [Rotating(policy) for policy in policies],
        interval=4,
        history=4,
        reference=Rotating("reference"),
        gate=cost,
        cost=CostModel(1e-6, 1000, 1e9, 1e8, name=name, sources=(name,)) if cost else None,
        **options,
    )


@pytest.fixture(scope="module")
def result():
    return run(
        ["one", "two"], [Topology(8, 3, 2, 4), Topology(4, 5)], forecasts=["windows", "last"], layers=6
    )


class Reader(HTMLParser):
    """Checks that tags nest and close, and keeps what a test may want to know."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.ids, self.headings, self.text = [], [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), (tag, names)
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def test_the_page_is_well_formed(result):
    page = replay_page(result)
    reader = Reader(page)
    assert page.startswith("<!doctype html>")
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.headings[0] == 1
    assert all(
        after <= before + 1 for before, after in zip(reader.headings, reader.headings[1:], strict=False)
    )
    for _, attributes in reader.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name, reader.ids[0]) in reader.ids
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in reader.ids
    assert "$" not in page


def test_the_page_needs_nothing_else(result):
    page = replay_page(result)
    reader = Reader(page)
    tags = [tag for tag, _ in reader.tags]
    assert not {"script", "iframe", "object", "embed", "base", "form", "img"} & set(tags)
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") or name in ("src", "srcset", "action") for name in attributes)
        if "href" in attributes:
            assert attributes["href"].startswith("#" if tag == "a" else "data:")
    assert "url(" not in page
    assert "@import" not in page
    assert ("http-equiv", "Content-Security-Policy") in reader.tags[4][1].items()


def test_the_page_says_what_the_tables_say(result):
    text = " ".join(Reader(replay_page(result)).text)
    for topology in result.settings.topologies:
        for series in result.on(topology):
            assert series.label in text
            assert f"{series.summary.mean_imbalance:.3f}" in text
            assert f"{series.summary.p95_imbalance:.3f}" in text
        assert words.held_best(result, topology) in text
    for forecast in result.forecasts:
        assert f"{forecast.mean_error:.2%}" in text


def test_strings_from_files_are_escaped():
    found = run([EVIL], [Topology(8, 2)], name=EVIL)
    page = replay_page(found)
    reader = Reader(page)
    assert {"script", "img"}.isdisjoint(tag for tag, _ in reader.tags)
    assert page.count("</style>") == 1
    assert "\x00" not in page
    assert "alert(1)" in " ".join(reader.text)
    page.encode("utf-8")


def test_elements_escape_whatever_is_not_markup():
    assert element("b", "<i>", ["&", None, Markup("<u></u>")], title='"', hidden=True, id=None) == (
        '<b title="&quot;" hidden>&lt;i&gt;&amp;<u></u></b>'
    )


def test_without_costs_with_a_stop_and_in_one_layer():
    found = replace(run(["one"], [Topology(4, 4)], layers=1, cost=False), complete=False)
    page = replay_page(found)
    Reader(page)
    assert "interrupted" in page
    assert "Not known" in page
    assert "--model" in page
    assert "Time gained and lost" not in page


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


def test_heat_map_paths_cover_each_cell_once():
    loads = np.random.default_rng(3).uniform(0, 3.5, (7, 12))
    drawn = heat.heat_map("x", "t", "d", loads, range(7), 4)
    seen = np.full(loads.shape, 4)
    for d, level in re.findall(r'<path d="([^"]*)" class="heat h(\d+)"', drawn):
        for column, row, width in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", d):
            cells = seen[int(row), int(column) : int(column) + int(width)]
            assert (cells == 4).all()
            cells[:] = int(level)
    assert (seen == np.digitize(loads, looks.HEAT_BREAKS)).all()


def test_lines_break_where_there_is_no_number_and_long_ones_are_thinned():
    hole = charts._path(np.array([0, 0.5, 1]), np.array([0.5, np.nan, 0.5]))
    assert hole == "M0.0 500.0M1000.0 500.0"
    x, y = charts._thin(np.arange(5000.0), np.full(5000, 1.5))
    assert len(x) == charts.MAX_POINTS
    assert (y == 1.5).all()
    assert (np.diff(x) > 0).all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 1.756), (-4.6, 1.9), (0, 261823), (3, 3), (8, 149)])
def test_ticks_are_round_and_inside(low, high):
    found = axes.ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert not any(text.startswith("-0") and not float(text) for text in axes.even(found))


@pytest.mark.xdist_group("chromium")
def test_long_labels_are_cut_inside_the_page(browser, tmp_path):
    found = run(["a policy with a name as long as a sentence, or longer"], [Topology(8, 2)])
    save_html(found, tmp_path / "page.html")
    browser.open(tmp_path / "page.html", width=390)
    left = (
        "Math.min(...[...document.querySelectorAll('.y-axis span')].map(e => e.getBoundingClientRect().left))"
    )
    assert browser.run(left) >= 0
    assert browser.run("document.documentElement.scrollWidth") <= 390


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


def test_the_page_is_written_whole_or_not_at_all(result, tmp_path):
    save_html(result, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == replay_page(result)
    with pytest.raises(FileAccessError, match="does not exist"):
        save_html(result, tmp_path / "nowhere" / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_command_refuses_a_page_that_cannot_be_written_before_it_works(tmp_path):
    loads = tmp_path / "missing.json"
    for place in (tmp_path, tmp_path / "nowhere" / "page.html"):
        call = CliRunner().invoke(app, ["replay", str(loads), "--ranks", "4", "--html", str(place)])
        assert isinstance(call.exception, FileAccessError)
        assert str(place) in str(call.exception)


DRAWN = """
(() => {
  const faults = [];
  const shown = document.querySelectorAll('figure');
  for (const figure of shown) {
    const svg = figure.querySelector('svg[role=img]');
    const box = svg.getBoundingClientRect();
    const name = figure.id;
    if (box.width < 100 || box.height < 20) faults.push(name + ' is ' + box.width + ' x ' + box.height);
    const marks = [...svg.querySelectorAll('.line, .heat, rect.bar, rect.gain, rect.loss'),
                   ...figure.querySelectorAll('.at path')];
    if (!marks.length) faults.push(name + ' is empty');
    for (const mark of marks) {
      if (mark.checkVisibility() === false) continue;
      const style = getComputedStyle(mark), area = mark.getBoundingClientRect();
      const paint = mark.classList.contains('line') ? style.stroke : style.fill;
      if (paint === 'none' || paint === 'rgba(0, 0, 0, 0)')
        faults.push(name + ' has no colour');
      if (area.right > box.right + 20 || area.left < box.left - 20 ||
          area.bottom > box.bottom + 20 || area.top < box.top - 20) faults.push(name + ' sticks out');
    }
    if (!svg.querySelector('title').textContent || !svg.querySelector('desc').textContent)
      faults.push(name + ' has no words');
  }
  return [shown.length, faults];
})()
"""


@pytest.fixture(scope="module")
def browser():
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine: the page is not opened")
    with Browser(program) as found:
        yield found


@pytest.fixture(scope="module")
def path(result, tmp_path_factory):
    found = tmp_path_factory.mktemp("page") / "page.html"
    save_html(result, found)
    return found


@pytest.mark.xdist_group("chromium")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_chromium_draws_every_figure_and_asks_for_nothing(browser, path, result, width, dark):
    browser.open(path, width=width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]
    figures, faults = browser.run(DRAWN)
    assert figures == 5 * len(result.settings.topologies) + 1
    assert faults == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(18, 21, 27)" if dark else "rgb(255, 255, 255)")


@pytest.mark.xdist_group("chromium")
def test_the_keyboard_reaches_the_skip_link_figures_tables_and_switches(browser, path):
    browser.open(path)
    focused = "document.activeElement.tagName + '.' + document.activeElement.className"
    found = []
    for _ in range(60):
        browser.press("Tab")
        found.append(browser.run(focused))
    assert found[0] == "A.skip"
    assert {"INPUT.", "FIGURE.", "SUMMARY.", "DIV.scroll"} <= set(found)


@pytest.mark.xdist_group("chromium")
def test_a_switch_hides_its_line_and_its_mark_without_a_script(browser, path):
    browser.open(path)
    visible = (
        "[...document.querySelectorAll('#lines-0 .s0')].map(e => getComputedStyle(e).display !== 'none')"
    )
    assert browser.run(visible) == [True, True]
    browser.run("document.getElementById('show-0-0').focus()")
    browser.press("Space")
    assert browser.run(visible) == [False, False]


@pytest.mark.xdist_group("chromium")
def test_on_paper_it_is_light_and_complete(browser, path):
    browser.open(path, dark=True)
    browser.send("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.run(DRAWN)[1] == []
    pages = browser.pdf()
    assert pages.startswith(b"%PDF")
    browser.send("Emulation.setEmulatedMedia", media="")
