"""Results as JSON, as tables and as pictures."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from replay_reference import Plain

from equipoise import (
    ArgumentError,
    Balance,
    FileAccessError,
    FormatError,
    LoadTrace,
    MissingDependencyError,
    Topology,
)
from equipoise.control import CostModel
from equipoise.replay import ReplayResult, replay
from equipoise.replay.summary import series_of
from equipoise.report.figures import save_figure
from equipoise.report.tables import replay_tables
from equipoise.report.terminal import rich_table
from equipoise.report.units import seconds, size, topology_name
from equipoise.report.words import findings

COST = CostModel(token_s=1e-6, expert_bytes=1000, intra_bytes_per_s=1e9, inter_bytes_per_s=1e8, name="a test")


@pytest.fixture(scope="module")
def result():
    counts = np.random.default_rng(0).poisson(np.exp(np.random.default_rng(1).normal(3, 1, (14, 2, 8))))
    return replay(
        LoadTrace(counts, phases=("prefill", "decode") * 7, layers=(3, 5), source="a test"),
        [Topology(4, 3), Topology(2, 4, num_nodes=2, num_groups=4)],
        [Plain()],
        interval=4,
        history=4,
        forecasts=["windows", "phase-mix"],
        reference=Plain(),
        gate=True,
        cost=COST,
    )


@pytest.fixture(scope="module")
def bare():
    """Without a cost model, on loads that are not whole numbers."""
    counts = np.random.default_rng(0).uniform(0, 1, (6, 1, 4))
    return replay(LoadTrace(counts), Topology(2, 2), [Plain()], interval=2, history=2, reference=Plain())


def test_json_and_back(result, bare, tmp_path):
    for found in (result, bare):
        found.save(tmp_path / "replay.json")
        text = (tmp_path / "replay.json").read_text()
        json.loads(text, parse_constant=pytest.fail)
        back = ReplayResult.load(tmp_path / "replay.json")
        assert back.as_dict() == found.as_dict()
        assert back.settings == found.settings
        assert [type(series.windows) for series in back.series] == [np.ndarray] * len(found.series)
        assert back.series[1].replans == found.series[1].replans


def test_without_costs_and_whole_counts_there_are_no_times_and_no_floor(bare):
    assert bare.series[1].summary.gained_s is None
    assert bare.series[1].replans[0].bytes is None
    assert bare.forecasts[0].mean_floor is None


def test_every_measure_of_balance_keeps_its_name():
    balances = [Balance(1.5, 2.5, 0.6, 0.4), Balance(1.25, 2.0, 0.8, 0.5)]
    found = series_of(
        role="policy",
        policy="plain",
        forecast="",
        topology=Topology(4, 3),
        windows=np.arange(2),
        imbalances=np.array([[1.0, 2.0], [1.0, 1.5]]),
        balances=balances,
        layer_time_s=None,
        floor_time_s=None,
        replans=(),
        last_rank_loads=np.ones((2, 4)),
        where={},
    )
    for name, value in balances[1].as_dict().items():
        assert getattr(found, name).tolist() == [getattr(each, name) for each in balances]
        assert getattr(found.summary, name) == (getattr(balances[0], name) + value) / 2


def test_results_cannot_be_changed(result):
    with pytest.raises(ValueError, match="read-only"):
        result.series[0].mean_imbalance[0] = 0
    with pytest.raises(AttributeError):
        result.series[0].role = "x"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "equipoise.replay", "version": 99}', "[1"])
def test_other_files_are_refused(text, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"other\.json"):
        ReplayResult.load(path)


def test_truncated_and_missing_files_are_refused(result, tmp_path):
    path = tmp_path / "replay.json"
    result.save(path)
    data = result.as_dict()
    path.write_text(path.read_text()[:-200])
    with pytest.raises(FormatError):
        ReplayResult.load(path)
    del data["series"][0]["windows"]
    path.write_text(json.dumps(data))
    with pytest.raises(FormatError, match="windows"):
        ReplayResult.load(path)
    with pytest.raises(FileAccessError):
        ReplayResult.load(tmp_path / "missing.json")


def rendered(found, width):
    from rich.console import Console

    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in replay_tables(found):
        console.print(rich_table(table, compact=True))
    return console.export_text()


def test_tables_fit_a_terminal(result, bare):
    text = rendered(result, 80)
    assert "…" not in rendered(bare, 80)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for series in result.series:
        assert f"{series.summary.mean_imbalance:.3f}" in text
    assert "4 ranks x 3 slots" in text
    assert "2 ranks x 4 slots, 2 nodes, 4 groups" in text


def test_sentences(result, bare):
    text = " ".join(findings(result))
    assert text.count("holds best on later windows") == 2
    assert "plain (gated) re-planned" in text
    for topology in result.settings.topologies:
        planned = [series for series in result.on(topology) if series.replans][:-2]
        most = max(planned, key=lambda series: series.summary.net_s)
        words = f"{most.label} brings most" if most.summary.net_s > 0 else "pays after"
        assert words in next(line for line in findings(result) if line.startswith(topology_name(topology)))
    assert len(list(findings(bare))) == 1


def test_units():
    times = {
        None: "-",
        0: "0 s",
        2e-6: "2 µs",
        0.0015: "1.50 ms",
        0.9939: "994 ms",
        -1.5: "-1.50 s",
        250: "250 s",
    }
    assert {value: seconds(value) for value in times} == times
    sizes = {None: "-", 0: "0 B", 999: "999 B", 44.05e6: "44.0 MB", 705.1e9: "705 GB", 1.5e15: "1500 TB"}
    assert {value: size(value) for value in sizes} == sizes


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_figures_are_drawn(bare, tmp_path, kind):
    pytest.importorskip("matplotlib")
    save_figure(bare, tmp_path / f"figure.{kind}")
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind]
    assert (tmp_path / f"figure.{kind}").read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_figure_is_the_same_each_time(bare, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("one.svg", "other.svg"):
        save_figure(bare, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()


def test_a_figure_holds_the_series(result, tmp_path):
    pytest.importorskip("matplotlib")
    from equipoise.report.figures import replay_figure

    figure = replay_figure(result)
    assert len(figure.subfigs) == 2
    for part, topology in zip(figure.subfigs, result.settings.topologies, strict=True):
        top, bottom = part.subfigs
        over_time = next(axes for axes in top.axes if "over time" in axes.get_title())
        drawn = {line.get_label(): np.asarray(line.get_ydata()) for line in over_time.lines}
        for series in result.on(topology):
            assert np.array_equal(drawn[series.label], series.mean_imbalance)
        maps = [axes.images[0].get_array() for axes in bottom.axes if axes.get_title().startswith("Rank")]
        assert [image.shape for image in maps] == [(2, topology.num_ranks)] * 2
        floor = result.floor(topology).last_rank_loads
        assert np.allclose(maps[0], floor / floor.mean(axis=1, keepdims=True))


def test_figures_without_matplotlib_or_with_another_suffix(result, tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match=r"\.png, \.svg, \.pdf"):
        save_figure(result, tmp_path / "figure.bmp")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"equipoise\[plot\]"):
        save_figure(result, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_nothing_heavy_is_imported_until_it_is_needed():
    code = (
        "import sys, equipoise.replay, equipoise.report.figures, equipoise.cli.replay;"
        "sys.exit(int(any(name in sys.modules for name in ('matplotlib', 'torch', 'scipy.special'))))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
