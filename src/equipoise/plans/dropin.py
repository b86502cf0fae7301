"""`rebalance_experts`: a drop-in for DeepSeek EPLB."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..placement import IntArray, Placement
from ..planning.maps import inverse_maps
from ..planning.tensors import device_backend, is_tensor
from ..policy.protocol import Ability, Policy, can
from ..policy.registry import DEFAULT, blamed, find_policy
from ..problem import Held, Problem
from ..topology import Topology
from ..trace import check_loads
from .plan import ask, check_budget, check_spending, checked_placement


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
    max_moves: int | float | None = None,
) -> tuple[Any, Any, Any]:
    """Plan replicas and their ranks; the signature and results of DeepSeek EPLB's function of this name.

    Parameters
    ----------
    weight : ``[L, E]``, or ``[W, L, E]`` for several windows
        load of each logical expert: a NumPy array (or nested lists) or a torch tensor on any device
    num_replicas : physical experts ``R`` of a layer, divisible by ``num_gpus``
    num_groups : expert groups; kept on nodes where ``num_nodes`` divides them. ``None`` means 1
    num_nodes : nodes, dividing ``num_gpus``
    num_gpus : ranks ``P``
    policy : a name in `equipoise.policies`, or a policy
    seed : same input and seed, same plan
    current : ``phy2log [L, R]`` that the ranks hold now, an array, a tensor or a `Placement`; -1 for empty slots
    max_moves : budget of fetches over all layers together: a float is a share of all slots, an integer a number.
        Needs ``current`` and a policy that honours it

    Returns
    -------
    phy2log : ``[L, R]``, logical expert of each slot
    log2phy : ``[L, E, X]``, slots of each expert, padded with -1; ``X`` is the largest replica count
    logcnt : ``[L, E]``, replica counts

    All int64: NumPy arrays for NumPy input, torch tensors on the input's device for a tensor. The results are
    the caller's own and may be written to.

    A tensor on another device than the processor is planned there by `ensemble`, with kernels for Triton where that
    is installed. All other policies, `robust` first of all, search step by step, which a GPU is slow at: the loads
    are copied to the processor, once, planned by the compiled kernels, and the maps are copied back, once.

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
    shape = _Shape(num_replicas, num_groups, num_nodes, num_gpus)
    name, chosen = find_policy(policy)
    check_budget(name, chosen, max_moves)
    if can(chosen, Ability.BATCH):
        raise ArgumentError(
            f"policy {name!r} plans for batches that are split by their load, and whoever calls rebalance_experts "
            "splits evenly: take another policy, or equipoise.plan"
        )
    request = _Request(name, chosen, shape, current, max_moves, seed)
    if is_tensor(weight):
        return _rebalance_tensor(weight, request)
    return _rebalance(weight, request)


@dataclass(frozen=True)
class _Request:
    """What was asked, but for the loads."""

    name: str
    policy: Any
    shape: _Shape
    current: Any
    max_moves: int | float | None
    seed: int

    def problem(self, loads: Any) -> Problem:
        """The problem for loads ``[W, L, E]``, an array or a tensor; errors speak of the caller's arguments."""
        topology = self.shape.topology(loads.shape[2])
        current = _held(self.current, topology, loads.shape[2])
        return Problem.trusting(loads, topology, current=current, max_moves=self.max_moves, seed=self.seed)


@dataclass(frozen=True)
class _Shape:
    """The four numbers of the call; errors call them by the names that the caller used."""

    num_replicas: int
    num_groups: int | None
    num_nodes: int
    num_gpus: int

    def __post_init__(self) -> None:
        for argument in ("num_replicas", "num_nodes", "num_gpus", "num_groups"):
            value = getattr(self, argument)
            if argument == "num_groups" and value is None:  # SGLang's word for a model without groups
                object.__setattr__(self, "num_groups", 1)
            elif isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ArgumentError(f"{argument} must be a positive integer, got {value!r}")

    def topology(self, num_experts: int) -> Topology:
        """The topology that they mean for a model with so many experts."""
        slots, ranks = self.num_replicas, self.num_gpus
        least = -(-num_experts // ranks) * ranks
        if slots % ranks:
            above = max(slots + -slots % ranks, least)
            below = slots - slots % ranks
            ways = f"use {above} or {below}" if below >= least else f"use {above}"
            raise ArgumentError(f"num_replicas={slots} is not divisible by num_gpus={ranks}; {ways}")
        if slots < num_experts:
            raise ArgumentError(
                f"num_replicas={slots} is less than the {num_experts} experts of weight; every expert "
                f"needs one: use at least {least}"
            )
        if ranks % self.num_nodes:
            raise ArgumentError(
                f"num_gpus={ranks} is not divisible by num_nodes={self.num_nodes}; "
                "use num_nodes=1 to plan without nodes"
            )
        return Topology.from_slots(slots, ranks, self.num_nodes, self.num_groups or 1)


def _held(current: Any, topology: Topology, num_experts: int) -> Placement | Held | None:
    if current is None or isinstance(current, (Placement, Held)):
        return current
    try:
        phy2log = np.asarray(current.detach().cpu() if hasattr(current, "detach") else current)
        held = Held(phy2log, topology.num_ranks, num_experts)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, experts out of range, no data
        raise ArgumentError(f"current is not a placement of these experts: {error}") from error
    if held.num_slots != topology.num_slots:
        raise ArgumentError(
            f"current has {held.num_slots} slots, but num_replicas={topology.num_slots}: pass a Placement or a Held, "
            "which know their own number of ranks"
        )
    return held


def _rebalance(weight: Any, request: _Request) -> tuple[IntArray, IntArray, IntArray]:
    loads = check_loads(weight, "weight", (2, 3))
    windows = np.array(loads if loads.ndim == 3 else loads[None], dtype=np.float64, order="C")
    problem = request.problem(windows)
    phy2log = ask(request.name, request.policy, problem)
    wanted = (problem.num_layers, problem.topology.num_slots)
    if isinstance(phy2log, np.ndarray) and phy2log.dtype.kind == "i" and phy2log.shape == wanted:
        phy2log = np.array(phy2log, dtype=np.int64, order="C")  # the caller's own
        maps = inverse_maps(phy2log, problem.num_experts)
        if maps is not None and problem.max_moves is None:
            return phy2log, *maps
    # Not a legal placement, for which the whole check has the words; or a budget, which is checked.
    placement = checked_placement(request.name, request.policy, phy2log, problem)
    check_spending(request.name, placement, problem)
    return placement.phy2log.copy(), placement.log2phy.copy(), placement.logcnt.copy()


def _rebalance_tensor(weight: Any, request: _Request) -> tuple[Any, Any, Any]:
    from ..planning.torch_backend import check_tensor

    # On the processor the compiled kernels make the same plan several times as fast as torch.
    if weight.device.type != "cpu" and can(request.policy, Ability.DEVICE):
        return _rebalance_on_device(check_tensor(weight, "weight"), request)
    here = weight if weight.is_meta else weight.detach().cpu()
    return _together(weight.device, _rebalance(check_tensor(here, "weight").numpy(), request))


def _together(device: Any, arrays: tuple[IntArray, ...]) -> tuple[Any, Any, Any]:
    """Arrays as tensors on a device, where a launch takes longer than the bytes: in one copy."""
    import torch

    if device.type == "cpu":
        first, second, third = map(torch.from_numpy, arrays)
    else:
        packed = torch.from_numpy(np.concatenate([array.ravel() for array in arrays])).to(device)
        parts = packed.split([array.size for array in arrays])
        first, second, third = (part.view(array.shape) for part, array in zip(parts, arrays, strict=True))
    return first, second, third


def _rebalance_on_device(loads: Any, request: _Request) -> tuple[Any, Any, Any]:
    """The maps for a checked tensor ``[W, L, E]``; what ranks hold is checked too, though not planned from."""
    problem = request.problem(loads)
    with blamed(request.name):
        phy2log = request.policy.place_tensor(loads, problem.topology, seed=problem.seed)
    return (phy2log, *device_backend(phy2log).invert(phy2log, problem.num_experts))
