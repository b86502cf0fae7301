"""Replays to report on, and a reader of pages."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np

from equipoise import LoadTrace
from equipoise.control import CostModel
from equipoise.replay import replay

EVIL = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00\udc80"

VOID = {"meta", "link", "input"}


class Rotating:
    """Experts in a new order at every call: moves much, balances by chance."""

    def __init__(self, name):
        self.name, self.calls = name, 0

    def place(self, problem):
        loads, topology = problem.loads, problem.topology
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
