"""The HTML page of a replay: well formed, on its own, escaped, written whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pages import EVIL, Reader, run
from typer.testing import CliRunner

from equipoise import FileAccessError, Topology
from equipoise.cli import replay as _command  # noqa: F401, adds the command
from equipoise.cli.app import app
from equipoise.report import words
from equipoise.report.html import replay_page, save_html
from equipoise.report.markup import Markup, element


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
