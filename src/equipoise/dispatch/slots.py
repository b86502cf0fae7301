"""The slot of every routed token: by shares, or by its number."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..metrics import slot_shares
from ..placement import Placement
from ..planning.kernel import for_layers, kernel
from ..planning.tensors import like, to_array
from .maps import DeviceMaps, check_shape, on_device, to_experts

IntArray = npt.NDArray[np.int64]
KNUTH = np.uint64(2654435769)  # 2**32 over the golden ratio


def assign(topk: Any, shares: Any, placement: Placement | DeviceMaps) -> Any:
    """The slot that serves each routed token, by shares.

    The tokens of an expert are numbered in the order in which they stand. The first go to its first slot, the next
    ones to the next: the boundaries are the running sums of shares, rounded. So every slot gets its share to within
    one token, a slot with share 0 gets none, and tokens that share a slot keep their order.

    Parameters
    ----------
    topk : ``[T, K]`` with a placement of one layer, else ``[L, T, K]``: experts of tokens, -1 for none (padding). An
        array, or a torch tensor
    shares : ``[L, R]``: of the batch (`split_batch`) or fixed (`equipoise.split_shares`); evenly where None
    placement : of the same layers. `DeviceMaps` for tensors in a captured graph: then nothing is read back, and
        shapes alone are checked

    Returns
    -------
    int64 in the shape of ``topk``: slots, -1 for none. An array, or a tensor where ``topk`` lives

    Raises
    ------
    ArgumentError
        if arguments do not fit each other, or a share is negative or not a number

    Examples
    --------
    >>> placement = Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3)
    >>> assign([[0, 1], [0, 2], [0, 1]], [[1 / 3, 1, 2 / 3, 1]], placement).tolist()
    [[0, 1], [2, 3], [2, 1]]
    """
    found = on_device(topk, placement)
    if found is not None:
        backend, maps = found
        rows = _layers(topk, maps.logcnt.shape[0], not topk.is_floating_point()).flatten(1)
        if shares is not None:
            check_shape("shares", shares, "[layers, slots]", (len(rows), maps.num_slots))
        return backend.assign(rows, shares, maps).view(topk.shape)
    assert isinstance(placement, Placement)
    part = slot_shares(placement, to_array(shares))
    if not (np.isfinite(part).all() and (part >= 0).all()):
        raise ArgumentError("shares must be numbers that are not negative")
    array = to_experts(topk)
    rows = _checked(array, placement).reshape(placement.num_layers, -1)
    slots = np.empty_like(rows)
    for_layers(_assign_layers, len(rows), rows, placement.log2phy, placement.logcnt, part, slots)
    return like(topk, slots.reshape(array.shape))


def tokens_of_slots(counts: IntArray, shares: Any, placement: Placement) -> IntArray:
    """How many tokens `assign` gives every slot.

    Parameters
    ----------
    counts : ``[L, E]``, tokens of a batch for each expert
    shares : ``[L, R]``, see `assign`; evenly where None

    Returns
    -------
    ``[L, R]``

    Examples
    --------
    >>> placement = Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3)
    >>> tokens_of_slots(np.array([[3, 2, 1]]), None, placement).tolist()
    [[2, 2, 1, 1]]
    """
    part = slot_shares(placement, shares)
    tokens = np.empty(placement.phy2log.shape, np.int64)
    rows = np.ascontiguousarray(counts, np.int64)
    for_layers(_count_layers, len(rows), rows, placement.log2phy, placement.logcnt, part, tokens)
    return tokens


def assign_by_number(topk: Any, placement: Placement | DeviceMaps) -> Any:
    """The slot that serves each routed token, as vLLM (0.32) chooses it: by a hash of the token's number.

    Token ``t`` goes to replica ``hash(t)`` modulo their number, for each of its experts. That is even on average; of
    one batch a replica may get many more than another. The hash is Knuth's multiplicative one (The Art of Computer
    Programming, volume 3, section 6.4).

    Parameters
    ----------
    topk, placement : see `assign`

    Returns
    -------
    see `assign`

    Examples
    --------
    >>> placement = Placement([[0, 1, 0, 2]], num_ranks=2, num_experts=3)
    >>> assign_by_number([[0, 1], [0, 2], [1, 0]], placement).tolist()
    [[0, 1], [2, 3], [1, 0]]
    """
    found = on_device(topk, placement)
    if found is not None:
        backend, maps = found
        layers = _layers(topk, maps.logcnt.shape[0], not topk.is_floating_point())
        return backend.by_number(layers, maps.log2phy, maps.logcnt).view(topk.shape)
    assert isinstance(placement, Placement)
    array = to_experts(topk)
    experts = _checked(array, placement)
    number = np.arange(experts.shape[1], dtype=np.uint64)[:, None]
    hashed = ((number * KNUTH) & np.uint64(0xFFFFFFFF)).astype(np.int64)
    owner = np.maximum(experts, 0)
    layer = np.arange(len(experts))[:, None, None]
    slots = placement.log2phy[layer, owner, hashed % placement.logcnt[layer, owner]]
    return like(topk, np.where(experts < 0, -1, slots).astype(np.int64).reshape(array.shape))


def _layers(topk: Any, num_layers: int, integers: bool) -> Any:
    """``topk`` as ``[L, T, K]``, an array or a tensor."""
    layers = topk[None] if topk.ndim == 2 else topk
    if not integers or layers.ndim != 3 or len(layers) != num_layers:
        raise ArgumentError(
            f"topk must be integers [layers, tokens, k] of {num_layers} layers, got {topk.dtype} {list(topk.shape)}"
        )
    return layers


def _checked(topk: npt.NDArray[Any], placement: Placement) -> IntArray:
    """``topk`` as ``[L, T, K]`` int64, of experts that there are."""
    experts = _layers(topk, placement.num_layers, topk.dtype.kind in "iu")
    if experts.size and not (experts.min() >= -1 and experts.max() < placement.num_experts):
        raise ArgumentError(
            f"topk must name experts 0 to {placement.num_experts - 1}, or -1 for none, "
            f"got {experts.min()} to {experts.max()}"
        )
    return np.ascontiguousarray(experts, np.int64)


@kernel
def _assign_layers(first, last, topk, log2phy, logcnt, shares, slots):
    """Layers ``first`` to ``last`` by shares.

    ``topk [L, N]``: experts, -1 for none. ``log2phy [L, E, X]``, ``logcnt [L, E]``: slots of experts, their number.
    ``shares [L, R]``. ``slots [L, N]`` is written.
    """
    num_experts = logcnt.shape[1]
    tokens = np.empty(num_experts, np.int64)
    seen = np.empty(num_experts, np.int64)
    replica = np.empty(num_experts, np.int64)
    ends = np.empty(log2phy.shape[1:], np.int64)
    for layer in range(first, last):
        tokens[:] = 0
        for e in topk[layer]:
            if e >= 0:
                tokens[e] += 1
        for e in range(num_experts):
            _cut(tokens[e], log2phy[layer, e], logcnt[layer, e], shares[layer], ends[e])
        seen[:] = 0
        replica[:] = 0
        for i in range(topk.shape[1]):
            e = topk[layer, i]
            if e < 0:
                slots[layer, i] = -1
                continue
            while seen[e] >= ends[e, replica[e]]:
                replica[e] += 1
            seen[e] += 1
            slots[layer, i] = log2phy[layer, e, replica[e]]


@kernel
def _count_layers(first, last, counts, log2phy, logcnt, shares, tokens):
    """Tokens of slots in layers ``first`` to ``last``.

    ``counts [L, E]``. ``log2phy [L, E, X]``, ``logcnt [L, E]``: slots of experts, their number. ``shares [L, R]``.
    ``tokens [L, R]`` is written.
    """
    ends = np.empty(log2phy.shape[2], np.int64)
    for layer in range(first, last):
        for e in range(logcnt.shape[1]):
            _cut(counts[layer, e], log2phy[layer, e], logcnt[layer, e], shares[layer], ends)
            before = 0
            for k in range(logcnt[layer, e]):
                tokens[layer, log2phy[layer, e, k]] = ends[k] - before
                before = ends[k]


@kernel
def _cut(tokens, slots_of, count, shares, ends):
    """Where the tokens of each replica of an expert end, among ``tokens`` of the expert.

    ``slots_of [X]``: its ``count`` slots. ``shares [R]``. ``ends [X]`` is written, up to ``count``.
    """
    total = 0.0
    for k in range(count):
        total += shares[slots_of[k]]
    running = 0.0
    for k in range(count):
        running += shares[slots_of[k]]
        # Behind the last slot that has a share the quotient is 1 exactly.
        part = running / total if total > 0.0 else (k + 1.0) / count
        ends[k] = np.int64(np.floor(part * tokens + 0.5))
