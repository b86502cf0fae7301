"""Advice on recorded loads, made once for its tests."""

from __future__ import annotations

import pytest

import equipoise as eq
from equipoise.advice import Question, joined, parted, recommend
from equipoise.advice.curve import Limits
from equipoise.control import cost_model
from real_loads import SEEN, UNSEEN


@pytest.fixture(scope="session")
def deepseek_advice(traces):
    def read(names):
        return joined([eq.load_trace(traces / "deepseek-r1-sglang" / f"{name}.json") for name in names])

    (part,) = parted(read(SEEN), read(UNSEEN))
    return recommend(part, Question((32,), Limits(80e9)), cost_model("deepseek-r1"))
