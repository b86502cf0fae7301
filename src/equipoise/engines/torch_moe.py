"""Expert parallelism for plain torch models: the reference engine, whose output no placement changes.

A block is known by what it has, not by its class: a module with ``gate_up_proj [E, 2f, d]`` and ``down_proj
[E, d, f]`` that is called with hidden states, chosen experts and their weights. Those are the experts of
transformers' Qwen3-MoE, Mixtral, OLMoE and others, and of `equipoise.demo.model`. `torch_moe` puts `RankExperts` in
their place; router, attention and all else stay as they are, and each rank feeds its own tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..dispatch.activated import split_activated
from ..dispatch.maps import DeviceMaps
from ..dispatch.slots import assign
from ..dispatch.split import split_batch
from ..dispatch.torch_backend import by_number
from ..errors import ArgumentError, EquipoiseError
from ..placement import Placement

Group = Any
"""A `torch.distributed.ProcessGroup`, or ``None`` for the default one; torch may be built without that class"""
Dispatch = Callable[[Tensor, "RankExperts"], Tensor]
"""From chosen experts ``[T, k]`` to slots ``[T, k]``, by the maps of a layer"""

PARTS = ("gate_up_proj", "down_proj")
ROWS = 8
"""Rows of every product. Libraries choose a kernel by the number of rows, and each adds in an order of its own: with
MKL on an AMD EPYC one, three and four rows of float32 give three results. With one shape a row's bits hang on no
other row."""
COMPILED = ("cpu",)
"""Devices whose batches are split by compiled kernels, which read a placement; on others maps are copied there."""


def even(chosen: Tensor, layer: RankExperts) -> Tensor:
    """Split tokens by their number on each rank, as vLLM does; see `equipoise.assign_by_number`."""
    return by_number(chosen, layer.log2phy, layer.logcnt)


def batch(chosen: Tensor, layer: RankExperts) -> Tensor:
    """Split the tokens of all ranks together by their load; see `equipoise.split_batch`.

    This costs an all-reduce of ``[E]`` counts. All ranks come to the same shares, and each gives every replica its
    share of its own tokens to within one.
    """
    return _by_shares(chosen, layer, split_batch)


def activated(chosen: Tensor, layer: RankExperts) -> Tensor:
    """Serve each expert that a token of any rank hits at one replica; see `equipoise.split_activated`.

    This costs an all-reduce of ``[E]`` counts. For decode, where ranks wait for the weights that they read.
    """
    return _by_shares(chosen, layer, split_activated)


def _by_shares(chosen: Tensor, layer: RankExperts, split: Callable[..., Tensor]) -> Tensor:
    maps = layer.current()
    counts = layer.add_up(torch.bincount(chosen.reshape(-1), minlength=len(layer.logcnt)))
    slots: Tensor = assign(chosen[None], split(counts[None], maps), maps)
    return slots[0]


def swiglu(rows: Tensor, gate_up: Tensor, down: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """An expert ``gate_up [2f, d]``, ``down [d, f]`` on ``rows [n, d]``, in blocks of `ROWS` filled up with zeros.

    Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202.
    """
    blocks = F.pad(rows, (0, 0, 0, -len(rows) % ROWS)).view(-1, ROWS, rows.shape[1])
    gate, up = torch.bmm(blocks, gate_up.T.expand(len(blocks), -1, -1)).chunk(2, dim=-1)
    results = torch.bmm(activation(gate) * up, down.T.expand(len(blocks), -1, -1))
    return results.reshape(-1, rows.shape[1])[: len(rows)]


DISPATCHES: dict[str, Dispatch] = {"even": even, "batch": batch, "activated": activated}


class Maps(Protocol):
    """What `equipoise.runtime.maps.LiveMaps` has."""

    phy2log: Tensor
    """``[L, R]`` or wider, the expert of each slot"""
    log2phy: Tensor
    """``[L, E, X]``, slots of each expert, padded"""
    logcnt: Tensor
    """``[L, E]``, how many"""


class Counter(Protocol):
    """What `equipoise.runtime.counter.LoadCounter` has."""

    def add(self, layer: int, topk: Tensor) -> None:
        """Count the experts ``[T, k]`` that a layer's router chose, before they become slots."""
        ...


class RankExperts(nn.Module):
    """The slots of one rank in one layer, called like the experts that it replaces.

    Tokens travel to the ranks of their experts and results travel back; weights are applied and summed where the
    token came from, in the order of its experts. So a token's result hangs on its own row alone.

    Parameters
    ----------
    experts : of the whole layer; its activation ``act_fn`` is kept (SiLU where it has none)
    placement : of all layers
    layer : which of them this is
    group : of `torch.distributed`; every rank calls every layer, with any number of tokens, also none
    dispatch : one of `DISPATCHES`

    Attributes
    ----------
    gate_up_proj, down_proj : ``[S, 2f, d]`` and ``[S, d, f]``, for the ``S`` slots of this rank
    phy2log, log2phy, logcnt : ``[R]`` or wider, ``[E, X]`` and ``[E]``, by which tokens are sent
    """

    gate_up_proj: Tensor
    down_proj: Tensor
    phy2log: Tensor
    log2phy: Tensor
    logcnt: Tensor

    def __init__(
        self, experts: nn.Module, placement: Placement, layer: int, group: Group, dispatch: Dispatch
    ) -> None:
        super().__init__()
        self.layer, self.dispatch, self.activation = layer, dispatch, _activation(experts)
        self.counter: Counter | None = None
        self._placement: Placement | None = None
        self._on_device: Placement | DeviceMaps | None = None
        self.join(group)
        full = {name: getattr(experts, name).detach() for name in PARTS}
        device = full[PARTS[0]].device
        rows = placement.phy2log[layer].reshape(self.num_ranks, -1)
        mine = torch.tensor(rows[self.rank], device=device)
        for name, tensor in full.items():
            self.register_buffer(name, tensor[mine].contiguous())
        self.phy2log = torch.tensor(placement.phy2log[layer], device=device)
        self.log2phy = torch.tensor(placement.log2phy[layer], device=device)
        self.logcnt = torch.tensor(placement.logcnt[layer], device=device)

    def join(self, group: Group) -> None:
        """Serve with the ranks of another group from now on; the maps must be made for them."""
        # A group is asked itself: those of ranks that met again are not among the groups that torch keeps.
        self.group: Group = dist.group.WORLD if group is None and dist.is_initialized() else group
        self.rank = 0 if self.group is None else self.group.rank()
        self.num_ranks = 1 if self.group is None else self.group.size()

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """``[T, d]`` for tokens ``[T, d]``, their experts ``[T, k]`` and the weights of these ``[T, k]``."""
        if torch.is_grad_enabled() and hidden.requires_grad:
            raise ArgumentError("torch_moe serves and does not train: call the model under torch.no_grad()")
        self._refuse_lost()
        if self.counter is not None:
            self.counter.add(self.layer, chosen)
        slots = self.dispatch(chosen, self).reshape(-1)
        order = slots.argsort(stable=True)
        out = torch.bincount(slots, minlength=self.num_ranks * len(self.gate_up_proj))
        out = out.view(self.num_ranks, -1)
        back = self._at_experts(hidden[order // chosen.shape[1]], out)
        picks = torch.empty_like(back).index_copy_(0, order, back)
        results = picks.view(*chosen.shape, hidden.shape[1]) * weights[..., None]
        return results.sum(dim=1).to(hidden.dtype)

    def current(self) -> Placement | DeviceMaps:
        """The layer as it is placed now, for `split_batch` and `assign`; made anew where maps have changed."""
        row = self.phy2log[: self.num_ranks * len(self.gate_up_proj)].cpu().numpy()
        known = self._placement
        if known is None or known.num_ranks != self.num_ranks or (known.phy2log[0] != row).any():
            known = self._placement = Placement(row[None], self.num_ranks, len(self.logcnt))
            here = self.phy2log.device
            self._on_device = known if here.type in COMPILED else DeviceMaps.of(known, here)
        assert self._on_device is not None
        return self._on_device

    def add_up(self, counts: Tensor) -> Tensor:
        """Sums of ``counts`` over all ranks."""
        if self.num_ranks > 1:
            self.group.allreduce([counts]).wait()
        return counts

    def _refuse_lost(self) -> None:
        """Raise on all ranks, for their maps are equal, and before any of them waits for another."""
        lost = (self.logcnt < 1).nonzero().flatten().tolist()
        if lost:
            raise EquipoiseError(
                f"MoE layer {self.layer}: no rank holds {'expert' if len(lost) == 1 else 'experts'} "
                f"{', '.join(map(str, lost[:8]))}{' ...' if lost[8:] else ''}: "
                "load what is lost (LiveBalancer.recover with reload=) before serving goes on"
            )

    def _at_experts(self, rows: Tensor, out: Tensor) -> Tensor:
        """What the experts make of ``rows [T * k, d]`` in the order of slots, ``out [P, S]`` of them for each."""
        if self.num_ranks == 1:
            return self._local(rows, out)
        into = torch.empty_like(out)  # rows from each rank for each slot here
        self._all_to_all(into, out, [], [])
        sent, received = out.sum(dim=1).tolist(), into.sum(dim=1).tolist()
        arrived = rows.new_empty(sum(received), rows.shape[1])
        self._all_to_all(arrived, rows, received, sent)
        back = torch.empty_like(rows)
        self._all_to_all(back, self._local(arrived, into), sent, received)
        return back

    def _all_to_all(self, into: Tensor, out: Tensor, received: list[int], sent: list[int]) -> None:
        """Rows to and from each rank; alike for all where nothing is said."""
        self.group.alltoall_base(into, out, received, sent).wait()

    def _local(self, rows: Tensor, counts: Tensor) -> Tensor:
        """What the slots here make of rows from all ranks, ``counts [P, S]`` of them from each for each slot."""
        slots = torch.arange(counts.shape[1], device=rows.device).repeat(len(counts))
        order = slots.repeat_interleave(counts.reshape(-1)).argsort(stable=True)
        parts = rows[order].split(counts.sum(dim=0).tolist())
        experts = zip(parts, self.gate_up_proj, self.down_proj, strict=True)
        results = torch.cat([swiglu(*one, self.activation) if len(one[0]) else one[0] for one in experts])
        return torch.empty_like(rows).index_copy_(0, order, results)


class MoeLayers:
    """The expert layers of a model that is served, from the first to the last: what a runtime moves and commits."""

    def __init__(self, layers: list[RankExperts]) -> None:
        self._layers = layers

    def tensors(self) -> list[dict[str, Tensor]]:
        """The expert tensors ``[S, ...]`` of each layer by name; they stay at their addresses."""
        return [{name: getattr(layer, name) for name in PARTS} for layer in self._layers]

    def follow(self, maps: Maps, counter: Counter) -> None:
        """Send tokens by the maps of a runtime from now on, and let it count what routers choose."""
        for number, layer in enumerate(self._layers):
            layer.phy2log = maps.phy2log[number]
            layer.log2phy, layer.logcnt = maps.log2phy[number], maps.logcnt[number]
            layer.counter = counter

    def dispatch_by(self, dispatch: str) -> None:
        """Split tokens among replicas in another way from now on; all ranks change it before the same pass."""
        for layer in self._layers:
            layer.dispatch = _dispatch(dispatch)

    def join(self, group: Group) -> None:
        """Serve with the ranks of another group from now on; the maps must be made for them."""
        for layer in self._layers:
            layer.join(group)


def torch_moe(
    model: nn.Module, placement: Placement, group: Group = None, *, dispatch: str = "even"
) -> MoeLayers:
    """Make a model expert parallel, in place: each layer keeps the experts of this rank's slots alone.

    Parameters
    ----------
    model : with all experts, alike on all ranks
    placement : as many layers as the model has MoE layers, ranks as the group has
    group : of `torch.distributed`; the default group where none is given, one rank where there is none
    dispatch : how tokens are split among replicas: ``even``, by token number; ``batch``, by the load of the batch
        over all ranks; ``activated``, each hit expert at one replica, for decode. The latter two cost an all-reduce a
        layer

    Raises
    ------
    ArgumentError
        before anything is changed: no such block in the model, one of another shape or with more tensors, one that
        computes something else than SwiGLU, a placement that does not fit, an unknown ``dispatch``

    Notes
    -----
    Batches have shapes that hang on the routing, so this runs eagerly and not in captured graphs. A token's result is
    the same bits for any placement on any number of ranks, one included; tested in float32 and bfloat16 on CPUs, for
    widths that are multiples of 4. The block that was replaced gives other last bits, for its products have other
    shapes. While an expert of a layer has no slot, the layer raises `EquipoiseError` on all ranks, whatever their
    tokens choose.
    """
    split = _dispatch(dispatch)
    blocks = list(_blocks(model))
    _check(blocks, placement, group)
    layers = []
    for number, (parent, name, experts) in enumerate(blocks):
        layers.append(RankExperts(experts, placement, number, group, split))
        setattr(parent, name, layers[-1])  # one by one: what is replaced is freed
    return MoeLayers(layers)


def _dispatch(name: str) -> Dispatch:
    if name not in DISPATCHES:
        raise ArgumentError(f"dispatch must be one of {', '.join(DISPATCHES)}, got {name!r}")
    return DISPATCHES[name]


def _blocks(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Parent, name and experts of every MoE layer."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if all(getattr(getattr(child, part, None), "ndim", 0) == 3 for part in PARTS):
                yield parent, name, child


def _check(blocks: list[tuple[nn.Module, str, nn.Module]], placement: Placement, group: Group) -> None:
    if not blocks:
        raise ArgumentError("the model has no experts with 3-D gate_up_proj and down_proj")
    ranks = group.size() if group is not None else dist.get_world_size() if dist.is_initialized() else 1
    if (placement.num_layers, placement.num_ranks) != (len(blocks), ranks):
        raise ArgumentError(
            f"the model has {len(blocks)} MoE layers and the group {ranks} ranks, the placement "
            f"{placement.num_layers} and {placement.num_ranks}"
        )
    for number, (_, name, experts) in enumerate(blocks):
        _check_block(f"MoE layer {number} ({name!r}, {type(experts).__name__})", experts, placement)


def _check_block(where: str, experts: nn.Module, placement: Placement) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in experts.state_dict().items()}
    if set(found) != set(PARTS):
        raise ArgumentError(f"{where} has tensors {sorted(found)}: only {' and '.join(PARTS)} are understood")
    number, twice, width = found["gate_up_proj"]
    if found["down_proj"] != (number, width, twice // 2) or twice % 2:
        raise ArgumentError(f"{where} must have [E, 2f, d] and [E, d, f], got {found}")
    if number != placement.num_experts:
        raise ArgumentError(f"{where} has {number} experts, the placement {placement.num_experts}")
    with torch.no_grad():
        _check_arithmetic(where, experts)


def _check_arithmetic(where: str, experts: nn.Module) -> None:
    """Gates are clamped or scaled in some models: compare a few tokens with what the block itself gives."""
    gate_up, down = (getattr(experts, part) for part in PARTS)
    width = gate_up.shape[2]
    hidden = torch.linspace(-2, 2, ROWS * width).view(ROWS, width).to(gate_up)
    chosen = torch.zeros(ROWS, 1, dtype=torch.int64, device=gate_up.device)
    weights = torch.full(chosen.shape, 0.5).to(gate_up)
    ours = 0.5 * swiglu(hidden, gate_up[0], down[0], _activation(experts))
    theirs = experts(hidden, chosen, weights)
    if not torch.allclose(ours, theirs, rtol=0.02, atol=1e-5 + 1e-3 * float(theirs.abs().max())):
        raise ArgumentError(f"{where} computes something else than SwiGLU")


def _activation(experts: nn.Module) -> Callable[[Tensor], Tensor]:
    return getattr(experts, "act_fn", F.silu)
