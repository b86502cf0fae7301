"""The page as a browser draws it: light, dark, phone, paper, keyboard."""

from __future__ import annotations

import pytest
from browser import Browser, find_chromium
from pages import run

from equipoise import Topology
from equipoise.report.html import save_html

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
