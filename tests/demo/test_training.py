"""The script that trains the model of the demo and records its routing, in short."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys

import numpy as np
import pytest

pytest.importorskip("torch")


import equipoise as eq
import train_moe
from equipoise.demo.model import WEIGHTS, load_model
from equipoise.demo.recorded import DATA, recorded_trace
from equipoise.demo.texts import texts


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train_moe.py", *map(str, arguments)])
    train_moe.main()


def test_a_short_trial_trains_records_and_writes_what_the_demo_reads(monkeypatch, tmp_path):
    run(monkeypatch, "--minutes", 0.02, "--windows", 1, "--into", tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(file.name for file in DATA.iterdir())
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["training"]["steps"] > 0
    assert max(card["nats_a_byte_on_text_not_trained_on"].values()) < np.log(256) + 0.5
    model = load_model(tmp_path / WEIGHTS.name)
    kinds = texts()
    stream = sum(kind in (*kinds, "mix") for kind in train_moe.STREAM)
    for part, windows in (("domains", 3 * len(kinds)), ("stream", stream)):
        trace = eq.load_trace(tmp_path / f"byte_moe_{part}.safetensors")
        assert trace.counts.shape == (windows, model.shape.layers, model.shape.experts)
        assert (trace.counts.sum(axis=2) == card["tokens_a_window"] * model.shape.top_k).all()


class Enough(Exception):
    """Nothing of the rest of a run is wanted."""


def test_what_is_recorded_was_not_trained_on(monkeypatch, tmp_path):
    read = []

    def record(model, unseen, *rest):
        read.append(unseen["letters, then digits"].unique().tolist())
        raise Enough

    monkeypatch.setattr(train_moe, "texts", lambda: {"letters, then digits": ([], b"a" * 9000 + b"1" * 1000)})
    monkeypatch.setattr(
        train_moe, "train", lambda seen, *rest: read.extend(x.unique().tolist() for x in seen.values())
    )
    monkeypatch.setattr(train_moe, "load_model", lambda weights: None)
    monkeypatch.setattr(train_moe, "record", record)
    with pytest.raises(Enough):
        run(monkeypatch, "--into", tmp_path)
    assert read == [[ord("a")], [ord("1")]]


def test_the_shipped_recording_is_of_the_shipped_weights(monkeypatch, tmp_path):
    card = json.loads((DATA / "card.json").read_text())
    if any(
        hashlib.sha256(text).hexdigest() != card["texts"][kind]["sha256"]
        for kind, (_, text) in texts().items()
    ):
        pytest.skip("another Python has other text")
    for name in (WEIGHTS.name, "card.json"):
        shutil.copy(DATA / name, tmp_path)
    run(monkeypatch, "--record-only", "--windows", 1, "--into", tmp_path)
    again = eq.load_trace(tmp_path / "byte_moe_domains.safetensors")
    shipped = recorded_trace("domains")
    assert again.phases[:3] == shipped.phases[:3]
    differing = np.abs(again.counts[:3] - shipped.counts[:3]).sum() / shipped.counts[:3].sum()
    assert differing < 0.01  # another processor rounds otherwise, and a token then goes to another expert
    assert json.loads((tmp_path / "card.json").read_text())["training"] == card["training"]
