"""The torch form stays on its device, and refuses what `check_loads` refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from equipoise import ArgumentError, Ensemble, Topology, rebalance_experts
from equipoise.trace import check_loads

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from equipoise.planning.torch_backend import check_tensor, invert  # noqa: E402

# What makes the host wait for the device: a value read back, or a result whose shape depends on values.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")


class CountReads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in func.__name__ for name in READS):
            self.reads.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("topology", "num_experts"),
    [
        (Topology(8, 4), 32),
        (Topology(8, 1), 5),
        (Topology(8, 4, 2, 4), 32),
        (Topology(16, 4, 4, 16), 64),
        (Topology(1, 6), 4),
    ],
)
def test_plans_on_a_device_without_values(topology: Topology, num_experts: int) -> None:
    # Tensors on the device "meta" have shapes but no values, so any look at a value raises. Without redundancy
    # (or with one slot a rank) no twins are looked for.
    loads = torch.empty((2, 3, num_experts), dtype=torch.float64, device="meta")
    phy2log = Ensemble().place_tensor(loads, topology)
    assert phy2log.device.type == "meta"
    assert phy2log.shape == (3, topology.num_slots)


def test_reads_back_one_flag_a_round_of_twins() -> None:
    loads = torch.tensor(
        [[[1.0, 2.0, 2.0, 0.0, 0.0, 1.0]]], dtype=torch.float64
    )  # LPT packs twins three times
    with CountReads() as counter:
        Ensemble(interleaved=0, random=0, noisy=0).place_tensor(loads, Topology(5, 3))
    assert counter.reads == ["_local_scalar_dense.default"] * 4
    with CountReads() as counter:
        invert(torch.arange(12).repeat(3, 1), 12)
    assert len(counter.reads) == 1, "the width of log2phy"


BAD = {
    "NaN": [[1.0, 2.0], [float("nan"), 1.0]],
    "infinite": [[1.0, float("inf")]],
    "negative": [[[1.0, 2.0]], [[3.0, -1.5]]],
    "one axis": [1.0, 2.0],
    "four axes": [[[[1.0]]]],
    "no layers": np.zeros((0, 4)),
    "no experts": np.zeros((2, 0)),
    "complex": np.ones((1, 2), np.complex64),
    "negative integers": np.array([[1, -2]]),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_the_same_as_for_arrays(case: str) -> None:
    array = np.asarray(BAD[case])
    with pytest.raises(ArgumentError) as expected:
        check_loads(array, "weight", (2, 3))
    with pytest.raises(ArgumentError) as found:
        check_tensor(torch.from_numpy(array), "weight")
    if case != "complex":  # each says the dtype in its library's words
        assert str(found.value) == str(expected.value)
    assert "weight" in str(found.value)


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]
)
def test_dtypes(dtype: str) -> None:
    tensor = torch.tensor([[1, 0, 1]]).to(getattr(torch, dtype))
    loads = check_tensor(tensor, "weight")
    assert loads.dtype == torch.float64
    assert loads.tolist() == [[[1.0, 0.0, 1.0]]]
    for policy in ("ensemble", "greedy"):
        assert rebalance_experts(tensor, 4, 1, 1, 2, policy=policy)[2].sum() == 4


def test_sparse_and_quantized_tensors() -> None:
    with pytest.raises(ArgumentError, match="dense"):
        check_tensor(torch.ones((2, 2)).to_sparse(), "weight")


def test_a_device_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    monkeypatch.setattr(torch.Tensor, "to", refuse)
    with pytest.raises(ArgumentError, match=r"no float64: pass weight\.cpu\(\)"):
        check_tensor(torch.ones((2, 2)), "weight")
