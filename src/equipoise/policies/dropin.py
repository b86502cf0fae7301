"""`rebalance_experts`: a drop-in for DeepSeek EPLB."""

from __future__ import annotations

import sys
from numbers import Integral
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..placement import IntArray, Placement
from ..planning.maps import inverse_maps
from ..topology import Topology
from ..trace import LoadTrace, check_loads
from . import DEFAULT, find_policy
from .base import Policy
from .planner import check_request, checked_placement


def rebalance_experts(
    weight: Any,
    num_replicas: int,
    num_groups: int | None,
    num_nodes: int,
    num_gpus: int,
    *,
    policy: str | Policy = DEFAULT,
    seed: int = 0,
    current: Any = None,
) -> tuple[Any, Any, Any]:
    """Plan replicas and their ranks; the signature and results of DeepSeek EPLB's function of this name.

    Parameters
    ----------
    weight : ``[L, E]``, or ``[W, L, E]`` for several windows
        load of each logical expert: a NumPy array (or nested lists) or a torch tensor on any device
    num_replicas : physical experts ``R`` of a layer, divisible by ``num_gpus``
    num_groups : expert groups; kept on nodes where ``num_nodes`` divides them. None is 1, for models without groups
    num_nodes : nodes, dividing ``num_gpus``
    num_gpus : ranks ``P``
    policy : a name in `equipoise.policies`, or a policy
    seed : same input and seed, same plan
    current : ``phy2log [L, R]`` that the ranks hold now, an array, a tensor or a `Placement`

    Returns
    -------
    phy2log : ``[L, R]``, logical expert of each slot
    log2phy : ``[L, E, X]``, slots of each expert, padded with -1; ``X`` is the largest replica count
    logcnt : ``[L, E]``, replica counts

    All int64: NumPy arrays for NumPy input, torch tensors on the input's device for a tensor. The results are
    the caller's own and may be written to.

    Raises
    ------
    ArgumentError
        naming the argument, what was found and what to do

    Examples
    --------
    >>> phy2log, log2phy, logcnt = rebalance_experts(np.array([[90, 132, 40, 61]]), 6, 1, 1, 2)
    >>> logcnt.tolist()
    [[2, 2, 1, 1]]
    """
    topology = _topology(num_replicas, num_groups, num_nodes, num_gpus)
    name, chosen = find_policy(policy)
    torch = sys.modules.get("torch")  # a tensor can only come from a torch that is already imported
    if torch is not None and isinstance(weight, torch.Tensor):
        return _rebalance_tensor(torch, weight, topology, name, chosen, current, seed)
    return _rebalance(weight, topology, name, chosen, current, seed)


def _topology(num_replicas: int, num_groups: int | None, num_nodes: int, num_gpus: int) -> Topology:
    """The topology that the arguments mean; errors call them by the names that the caller used."""
    num_groups = 1 if num_groups is None else num_groups  # as SGLang says for models without groups
    arguments = {"num_replicas": num_replicas, "num_groups": num_groups, "num_nodes": num_nodes}
    for argument, value in {**arguments, "num_gpus": num_gpus}.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ArgumentError(f"{argument} must be a positive integer, got {value!r}")
    if num_replicas % num_gpus:
        below = num_replicas - num_replicas % num_gpus
        raise ArgumentError(
            f"num_replicas={num_replicas} is not divisible by num_gpus={num_gpus}; use {below + num_gpus}"
            + (f" or {below}" if below else "")
        )
    if num_gpus % num_nodes:
        raise ArgumentError(
            f"num_gpus={num_gpus} is not divisible by num_nodes={num_nodes}; use num_nodes=1 to plan without nodes"
        )
    return Topology.from_slots(num_replicas, num_gpus, num_nodes, num_groups)


def _check_slots(num_experts: int, topology: Topology) -> None:
    if num_experts > topology.num_slots:
        raise ArgumentError(
            f"num_replicas={topology.num_slots} is less than the {num_experts} experts of weight; every expert "
            f"needs one: use at least {-(-num_experts // topology.num_ranks) * topology.num_ranks}"
        )


def _current(current: Any, topology: Topology, num_experts: int) -> Placement | None:
    if current is None or isinstance(current, Placement):
        return current
    try:
        phy2log = np.asarray(current.cpu() if hasattr(current, "cpu") else current)
        return Placement(phy2log, topology.num_ranks, num_experts)
    except (
        ValueError,
        TypeError,
        NotImplementedError,
    ) as error:  # ragged, without numbers (meta), or not legal
        raise ArgumentError(f"current is not a placement of these experts: {error}") from error


def _rebalance(
    weight: Any, topology: Topology, name: str, chosen: Policy, current: Any, seed: int
) -> tuple[IntArray, IntArray, IntArray]:
    loads = check_loads(weight, "weight", (2, 3))
    windows = np.array(loads if loads.ndim == 3 else loads[None], dtype=np.float64, order="C")
    num_layers, num_experts = windows.shape[1:]
    _check_slots(num_experts, topology)
    current = _current(current, topology, num_experts)
    check_request(num_layers, num_experts, topology, current, None, seed)
    phy2log = chosen.place(windows, topology, current=current, seed=int(seed))
    wanted = (num_layers, topology.num_slots)
    if isinstance(phy2log, np.ndarray) and phy2log.dtype.kind == "i" and phy2log.shape == wanted:
        phy2log = np.array(phy2log, dtype=np.int64, order="C")  # the caller's own
        maps = inverse_maps(phy2log, num_experts)
        if maps is not None:
            return phy2log, *maps
    # Not a legal placement: the whole check has the words for what is wrong.
    placement = checked_placement(name, phy2log, LoadTrace(windows), topology)
    return placement.phy2log.copy(), placement.log2phy.copy(), placement.logcnt.copy()


def _rebalance_tensor(
    torch: Any, weight: Any, topology: Topology, name: str, chosen: Policy, current: Any, seed: int
) -> tuple[Any, Any, Any]:
    # On the processor the compiled kernels make the same plan several times as fast as torch.
    if weight.device.type not in ("cpu", "meta") and hasattr(chosen, "place_tensor") and current is None:
        return _rebalance_on_device(weight, topology, chosen, seed)
    from ..planning.torch_backend import check_tensor

    if weight.device.type == "meta":
        raise ArgumentError("weight is on the meta device: it has a shape and no numbers to plan from")
    loads = check_tensor(weight.detach().cpu(), "weight").numpy()
    arrays = _rebalance(loads, topology, name, chosen, current, seed)
    phy2log, log2phy, logcnt = (torch.from_numpy(array).to(weight.device) for array in arrays)
    return phy2log, log2phy, logcnt


def _rebalance_on_device(weight: Any, topology: Topology, chosen: Any, seed: int) -> tuple[Any, Any, Any]:
    from ..planning.torch_backend import check_tensor, invert

    loads = check_tensor(weight, "weight")
    _check_slots(loads.shape[2], topology)
    check_request(loads.shape[1], loads.shape[2], topology, None, None, seed)
    phy2log = chosen.place_tensor(loads, topology, seed=int(seed))
    return (phy2log, *invert(phy2log, loads.shape[2]))
