"""``make docs``: guides and reference as pages, under one search."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import equipoise

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.xdist_group("pages")  # they are made once, which takes a while


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for needed in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "pages.py", folder], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr  # a warning is an error: links to nothing, pages in no contents
    assert done.stdout == f"{folder / 'index.html'}\n"
    return folder


def test_every_guide_is_a_page_that_the_first_one_names(site):
    first = (site / "index.html").read_text(encoding="utf-8")
    for guide in (ROOT / "docs").glob("*.md"):
        assert (site / f"{guide.stem}.html").exists()
        assert f'href="{guide.stem}.html"' in first


def test_every_public_name_is_described(site):
    page = (site / "api" / "equipoise.html").read_text(encoding="utf-8")
    for name in equipoise.__all__:
        assert f'id="equipoise.{name}"' in page, name


def test_one_search_finds_guides_and_reference(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    names = re.search(r'"docnames":\s*\[(.*?)\]', index)
    assert names is not None
    assert {"replay", "sweep", "api/equipoise.control"} <= set(re.findall(r'"([^"]+)"', names[1]))


def test_parameters_and_fields_keep_their_words(site):
    page = (site / "api" / "equipoise.html").read_text(encoding="utf-8")
    assert "balancedness as SGLang prints it: " in page
    assert re.search(r"<strong>num_ranks</strong> \(<em>int</em>\) – EP ranks \(GPUs\)", page)


def test_pages_ask_nobody_for_anything(site):
    """No fonts, scripts or pictures from elsewhere."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="https?:', text), page.name
