"""`rebalance_experts` in the place of DeepSeek EPLB's function."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from equipoise import ArgumentError, Ensemble, Placement, Topology, plan, rebalance_experts
from equipoise.plans import dropin
from problems import loads_of

LOADS = loads_of("log-normal", (3, 16), 0)
REQUEST = (20, 4, 2, 4)


def test_the_signature_of_the_original() -> None:
    names = list(inspect.signature(rebalance_experts).parameters)
    assert names[:5] == ["weight", "num_replicas", "num_groups", "num_nodes", "num_gpus"]


@pytest.mark.parametrize("policy", ["greedy", "chunked", "ensemble"])
def test_results(policy: str) -> None:
    phy2log, log2phy, logcnt = rebalance_experts(LOADS, *REQUEST, policy=policy)
    placement = Placement(phy2log, 4, 16)
    assert phy2log.dtype == log2phy.dtype == logcnt.dtype == np.int64
    assert np.array_equal(logcnt, placement.logcnt)
    assert np.array_equal(log2phy, placement.log2phy)
    assert log2phy.shape == (3, 16, logcnt.max())
    for result in (phy2log, log2phy, logcnt):
        result[:] = 0  # the caller's own
    assert np.array_equal(plan(LOADS, Topology(4, 5, 2, 4), policy).placement.phy2log, placement.phy2log)


@pytest.mark.parametrize("policy", ["greedy", "chunked", "ensemble", Ensemble(noisy=1)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bfloat16"])
def test_torch_in_torch_out(policy: Any, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    weight = (
        torch.from_numpy((LOADS * 100).round()).to(getattr(torch, dtype)).requires_grad_(dtype == "float32")
    )
    results = rebalance_experts(weight, *REQUEST, policy=policy, seed=3)
    expected = rebalance_experts(weight.detach().to(torch.float64).numpy(), *REQUEST, policy=policy, seed=3)
    for found, array in zip(results, expected, strict=True):
        assert isinstance(found, torch.Tensor)
        assert found.device == weight.device
        assert found.dtype == torch.int64
        assert np.array_equal(found.numpy(), array)


@pytest.mark.parametrize("windows", [1, 5])
def test_the_form_for_devices_gives_the_same(windows: int) -> None:
    torch = pytest.importorskip("torch")
    loads = loads_of("log-normal", (windows, 3, 16), 1)
    request = dropin._Request("ensemble", Ensemble(), dropin._Shape(*REQUEST), None, None, 7)
    on_device = dropin._rebalance_on_device(torch.from_numpy(loads), request)
    for found, expected in zip(
        on_device, rebalance_experts(loads, *REQUEST, policy="ensemble", seed=7), strict=True
    ):
        assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("policy", ["ensemble", "robust"])
def test_nested_lists_windows_and_integers(policy: str) -> None:
    def rebalance(weight: Any) -> tuple[Any, Any, Any]:
        return rebalance_experts(weight, *REQUEST, policy=policy)

    expected = rebalance(LOADS)
    forms = [LOADS.tolist(), LOADS[None], np.asfortranarray(LOADS)]
    if policy == "ensemble":  # which sums the windows
        forms.append(np.stack([LOADS * 0.25, LOADS * 0.75]))
    for weight in forms:
        for found, array in zip(rebalance(weight), expected, strict=True):
            assert np.array_equal(found, array)
    integers = np.arange(48, dtype=np.uint16).reshape(3, 16)
    for found, array in zip(rebalance(integers), rebalance(integers * 1.0), strict=True):
        assert np.array_equal(found, array)


def test_current_in_all_its_forms() -> None:
    torch = pytest.importorskip("torch")
    current = np.tile(np.arange(20) % 16, (3, 1))
    expected = rebalance_experts(LOADS, *REQUEST, policy="ensemble")[0]
    for form in (current, current.tolist(), torch.from_numpy(current), Placement(current, 4, 16)):
        assert np.array_equal(
            rebalance_experts(LOADS, *REQUEST, current=form, policy="ensemble")[0], expected
        )
        found = rebalance_experts(torch.from_numpy(LOADS), *REQUEST, current=form, policy="ensemble")[0]
        assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("policy", ["robust", "greedy"])
@pytest.mark.parametrize("windows", [1, 3])
def test_one_copy_to_the_processor_and_one_back(policy: str, windows: int) -> None:
    """No GPU is at hand: tensors of a stand-in for one, which live in main memory, and whose copies are counted."""
    torch = pytest.importorskip("torch")
    from elsewhere import Elsewhere, Machine

    loads = loads_of("log-normal", (windows, 3, 16), 1)
    weight = Elsewhere(torch.from_numpy(loads).float())
    with Machine() as machine:
        found = rebalance_experts(weight, *REQUEST, policy=policy)
        assert all(tensor.device == weight.device for tensor in found)
        assert machine.copies == [("elsewhere", "cpu"), ("cpu", "elsewhere")]
    expected = rebalance_experts(loads.astype(np.float32), *REQUEST, policy=policy)
    for tensor, array in zip(found, expected, strict=True):
        assert tensor.held.is_contiguous()
        assert tensor.held.dtype == torch.int64
        assert np.array_equal(tensor.held, array)


def test_a_tensor_without_values_is_refused() -> None:
    torch = pytest.importorskip("torch")
    for policy in ("robust", "ensemble"):
        with pytest.raises(ArgumentError, match="weight is on the meta device"):
            rebalance_experts(torch.empty((3, 16), device="meta"), *REQUEST, policy=policy)
