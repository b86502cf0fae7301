"""Real recordings open, and the figures of ``inspect`` on them are those computed here another way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from equipoise import load_trace
from equipoise.formats import read_trace
from equipoise.formats.hygiene import diagnose
from equipoise.report.loads import summarise


def test_all_of_them_open(traces: Path) -> None:
    files = [path for path in sorted(traces.glob("*/*")) if path.is_file()]
    assert files
    for path in files:
        trace = load_trace(path)
        found = summarise(trace)
        assert found.experts in (32, 64, 128, 256), path
        # The hottest rank of more ranks is never cooler, and no rank carries more than all ranks' sum.
        ratios = [ratio for ratio in found.total_imbalance if not np.isnan(ratio)]
        assert ratios == sorted(ratios), path
        assert ratios[0] >= 1
        assert ratios[-1] <= found.ranks[len(ratios) - 1]


def test_deepseek(traces: Path) -> None:
    hottest, tenth, at32 = [], [], []
    for path in sorted((traces / "deepseek-r1-sglang").glob("*.json")):
        trace, findings = read_trace(path)
        assert trace.layers == tuple(range(3, 61))
        assert trace.num_model_layers == 61
        assert trace.counts.dtype == np.int64
        assert [finding.kind for finding in findings] == ["dense_layers"]
        assert diagnose(trace, 8) == []
        raw = np.array(json.loads(path.read_text())["logical_count"])[3:]
        found = summarise(trace)
        ranks = raw.reshape(58, 32, 8).sum(axis=2)
        assert found.total_imbalance[2] == pytest.approx((ranks.max(axis=1) / ranks.mean(axis=1)).mean())
        top = np.sort(raw, axis=1)[:, ::-1][:, :26].sum(axis=1) / raw.sum(axis=1)
        np.testing.assert_allclose([layer.hottest_tenth for layer in found.per_layer], top)
        hottest.append(np.mean([layer.hottest_ratio for layer in found.per_layer]))
        tenth.append(top.mean())
        at32.append(found.total_imbalance[2])
    # What the notes beside the recordings say of these files.
    assert 5.5 < min(hottest) < max(hottest) < 7.4
    assert 0.265 < min(tenth) < max(tenth) < 0.335
    assert 2.05 < min(at32) < max(at32) < 2.95


def test_gpt_oss(traces: Path) -> None:
    trace = load_trace(traces / "gpt-oss-20b" / "windows_shuffled.npz")
    assert trace.counts.shape == (418, 24, 32)
    assert diagnose(trace, 4) == []
    found = summarise(trace)
    assert found.consecutive is not None
    # The schedule was shuffled: neighbours differ by no more than samples of one distribution do.
    assert found.consecutive.distance == pytest.approx(found.consecutive.noise, rel=0.1)


@pytest.mark.parametrize(("name", "tokens"), [("intent", 8222), ("law", 8327)])
def test_deepseek_v2_lite_routes(name: str, tokens: int, traces: Path) -> None:
    path = traces / "deepseek-v2-lite" / f"{name}_routes.npz"
    whole = load_trace(path)
    assert whole.counts.shape == (1, 26, 64)
    assert whole.top_k == 6
    assert (whole.counts.sum(axis=2) == 6 * tokens).all()
    cut, findings = read_trace(path, window_tokens=512)
    assert (cut.counts.sum(axis=2) == 6 * 512).all()
    assert len(cut) == tokens // 512
    assert f"{tokens % 512} tokens" in findings[0].message


def test_qwen(traces: Path) -> None:
    trace = load_trace(traces / "qwen3-30b-a3b" / "decode_counts.npz")
    assert (trace.counts.sum(axis=2) == 8 * 75773).all()
    assert {finding.kind for finding in diagnose(trace, 8)} == {"never_hit"}
