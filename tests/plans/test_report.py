"""The report of a plan: right at any magnitude, and a bound that no plan can be below."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise.metrics import scaled
from problems import KINDS, loads_of

POLICIES = ("greedy", "chunked", "ensemble", "robust")
TOPOLOGIES = (eq.Topology(4, 5), eq.Topology(8, 3), eq.Topology(4, 5, 2, 4), eq.Topology(8, 3, 4, 8))
FORMS = ("auto", "global", "anchored")


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `plan`, with any policy, any current placement and any budget that fits."""
    topology = draw(st.sampled_from(TOPOLOGIES))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), 16)
    seed = draw(st.integers(0, 1 << 20))
    rng = np.random.default_rng(seed)
    policy: Any = draw(st.sampled_from(POLICIES))
    request: dict[str, Any] = {
        "trace": loads_of(draw(st.sampled_from(KINDS)), shape, seed),
        "topology": topology,
    }
    if policy == "robust" and topology.hierarchical:
        policy = eq.Robust(groups=draw(st.sampled_from(FORMS)))
    if policy not in POLICIES[:3] and draw(st.booleans()):
        rows = [
            rng.permutation(np.r_[np.arange(16), rng.integers(0, 16, topology.num_slots - 16)])
            for _ in range(shape[1])
        ]
        request["current"] = eq.Placement(np.stack(rows), topology.num_ranks, 16)
        request["max_moves"] = draw(st.sampled_from([None, 0, 3, 0.2, 1.0]))
    return request | {"policy": policy}


@given(requests())
@settings(max_examples=300)
def test_no_plan_is_below_its_bound(request: dict[str, Any]) -> None:
    report = eq.plan(**request).report
    assert (report.bound >= 1.0).all()
    assert (report.imbalance_after >= report.bound).all()
    assert (report.gap >= 0).all()


def test_the_bound_is_that_of_what_the_policy_was_allowed_to_do() -> None:
    # Experts of one group carry all: on two nodes one has twice its part, without groups all ranks can share.
    loads = np.array([[9.0] * 8 + [0.0] * 8])
    topology = eq.Topology(4, 8, 2, 2)
    assert eq.plan(loads, topology, "greedy").report.bound[0] == pytest.approx(2.0)
    assert eq.plan(loads, topology, eq.Robust(groups="global")).report.bound[0] < 1.2
    assert eq.plan(loads, topology, eq.Robust(groups="anchored")).report.bound[0] < 1.2
    scattered = eq.Placement(np.arange(32)[None] % 16, 4, 16)
    kept = eq.plan(loads, topology, "robust", current=scattered, max_moves=0).report
    assert kept.bound[0] < 1.2, "groups that a budget leaves where they are do not bind"
    assert eq.plan(loads, topology, "robust", current=scattered).report.bound[0] == pytest.approx(2.0)


def plain_measures(counts: np.ndarray, placement: eq.Placement) -> dict[str, Any]:
    """The aggregates in extended precision, slot by slot."""
    loads = np.zeros((placement.num_layers, placement.num_ranks), np.longdouble)
    total = np.asarray(counts, dtype=np.longdouble).sum(axis=0)
    for layer, row in enumerate(placement.phy2log):
        for slot, expert in enumerate(row):
            share = total[layer, expert] / np.longdouble(placement.logcnt[layer, expert])
            loads[layer, slot // placement.slots_per_rank] += share
    mean, largest = loads.mean(axis=1), loads.max(axis=1)
    ratio = np.where(mean > 0, largest / np.where(mean > 0, mean, 1), 1)
    return {
        "layers": ratio,
        "mean_imbalance": ratio.mean(),
        "worst_layer": ratio.max(),
        "mean_of_ratios": (1 / ratio).mean(),
        "ratio_of_sums": mean.sum() / largest.sum() if largest.sum() > 0 else 1.0,
    }


DTYPES = ("float16", "float32", "float64", "int8", "int32", "int64", "uint8", "uint64", "bool")


@given(
    st.sampled_from(DTYPES),
    st.sampled_from([5e-324, 1e-322, 1e-310, 1e-40, 1.0, 1e12, 1e300]),
    st.integers(1, 6),
    st.integers(0, 1 << 20),
)
@settings(max_examples=300)
def test_reports_equal_extended_precision(dtype: str, size: float, windows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        top = min(size * 30, 1e300 if dtype == "float64" else float(np.finfo(kind).max))
        counts = (rng.random((windows, 2, 8)) * top).astype(kind)
    elif kind.kind == "b":
        counts = rng.random((windows, 2, 8)) < 0.5
    else:
        info = np.iinfo(kind)
        counts = rng.integers(0, info.max, (windows, 2, 8), dtype=kind, endpoint=True)
    plan = eq.plan(counts, eq.Topology(4, 3), "robust", held_out=windows > 1)
    expected = plain_measures(counts, plan.placement)
    assert np.allclose(plan.report.imbalance_after, expected["layers"].astype(float), rtol=1e-12, atol=0)
    for name, value in plan.report.after.as_dict().items():
        assert value == pytest.approx(float(expected[name]), rel=1e-12), name
    if plan.report.held_out is not None:
        later = counts[plan.report.held_out.fitted :]
        planned = eq.plan(counts[: plan.report.held_out.fitted], eq.Topology(4, 3), "robust").placement
        each = [plain_measures(window[None], planned)["mean_imbalance"] for window in later]
        assert plan.report.held_out.after.mean_imbalance == pytest.approx(float(np.mean(each)), rel=1e-12)


def test_counts_near_the_limit_of_int64_do_not_wrap() -> None:
    most = np.iinfo(np.int64).max
    counts = np.full((4, 1, 8), most)
    counts[:, 0, 0] = most // 4
    trace = eq.LoadTrace(counts)
    expected = counts.astype(np.longdouble).sum(axis=0)
    assert np.allclose(trace.total(), expected.astype(float))
    assert np.allclose(trace.regroup(2).counts.sum(axis=0), expected.astype(float))
    assert (trace.total() >= 0).all()
    report = eq.plan(trace, eq.Topology(4, 2), "greedy").report
    assert report.imbalance_after[0] == pytest.approx(8 / 7.25)


def test_small_integers_stay_integers() -> None:
    trace = eq.LoadTrace(np.ones((3, 2, 4), np.int64))
    assert trace.total().dtype == trace.regroup(3).counts.dtype == np.int64


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=6), st.integers(-1000, 1000))
def test_scaling_is_exact(loads: list[float], power: int) -> None:
    row = np.array([loads])
    found, exponents = scaled(row)
    largest = found.max()
    assert largest == 0 or 0.5 <= largest < 1
    back = np.ldexp(found, exponents[:, None])
    digits = row >= row.max() * 2.0**-900  # what is smaller may fall below the smallest number
    assert (back[digits] == row[digits]).all()


@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 300), st.integers(1, 6), st.integers(1, 9))
@settings(max_examples=400)
def test_suggestions_of_errors_work_when_followed(
    replicas: int, gpus: int, experts: int, nodes: int, groups: int
) -> None:
    request = {"num_replicas": replicas, "num_groups": groups, "num_nodes": nodes, "num_gpus": gpus}
    check_suggestions(request, np.ones((1, experts)), depth=0)


def check_suggestions(request: dict[str, int], weight: np.ndarray, depth: int) -> None:
    """Follow every suggestion of an error, and those of the errors after it: each mends what it spoke of."""
    try:
        eq.rebalance_experts(weight, **request, policy="greedy")
    except eq.ArgumentError as error:
        text = str(error)
        assert depth < 4, text
        ways = []
        if found := re.search(r"use (?:at least )?(\d+)(?: or (\d+))?$", text):
            ways = [{"num_replicas": int(number)} for number in found.groups() if number]
        elif found := re.search(r"use (num_\w+)=(\d+)", text):
            ways = [{found[1]: int(found[2])}]
        assert ways, text
        for way in ways:
            changed = request | way
            assert changed != request, text
            check_suggestions(changed, weight, depth + 1)


def test_the_ways_out_by_hand() -> None:
    weight = np.ones((1, 256))
    with pytest.raises(eq.ArgumentError, match=r"use 256$"):
        eq.rebalance_experts(weight, 200, 1, 1, 32)
    with pytest.raises(eq.ArgumentError, match=r"use 320 or 288$"):
        eq.rebalance_experts(weight, 300, 1, 1, 32)
    with pytest.raises(eq.ArgumentError, match=r"use 258$"):
        eq.Topology.from_slots(256, 3)
    with pytest.raises(eq.ArgumentError, match=r"slots_per_rank=86"):
        eq.plan(weight, eq.Topology(3, 85))


def test_no_groups_may_be_none() -> None:
    weight = np.arange(8.0)[None]
    for found, expected in zip(
        eq.rebalance_experts(weight, 12, None, 1, 4), eq.rebalance_experts(weight, 12, 1, 1, 4), strict=True
    ):
        assert np.array_equal(found, expected)
