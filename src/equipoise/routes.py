"""Where tokens went: the experts of each token, or how often two experts were hit by the same one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ArgumentError
from .placement import check_layers, read_only

MAX_EXPERTS = 1 << 15


@dataclass(frozen=True, eq=False)
class Routes:
    """The experts that each token was sent to, layer by layer. Immutable.

    Parameters
    ----------
    topk : integers ``[L, tokens, k]``
        logical experts, -1 for none; an expert named twice by a token counts once
    num_experts : logical experts ``E`` per layer
    rank_of_token : ``[tokens]``, the rank that a token came from, where known
    layers : the model's own numbers of the ``L`` layers; 0, 1, ... unless given

    Raises
    ------
    ArgumentError
        naming the layer and token whose expert is out of range, or what has another shape

    Examples
    --------
    >>> Routes([[[0, 2], [2, 1], [0, -1]]], num_experts=3).num_tokens
    3
    """

    topk: npt.NDArray[Any]
    num_experts: int
    rank_of_token: npt.NDArray[np.int64] | None = None
    layers: tuple[int, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        given = np.asarray(self.topk)
        if given.ndim != 3 or given.dtype.kind not in "iu" or 0 in given.shape:
            raise ArgumentError(
                f"topk must be integers [layers, tokens, k], got {given.dtype} {list(given.shape)}"
            )
        if not 0 < self.num_experts <= MAX_EXPERTS:
            raise ArgumentError(f"num_experts must be 1 to {MAX_EXPERTS}, got {self.num_experts}")
        low, high = int(given.min()), int(given.max())
        if low < -1 or high >= self.num_experts:
            layer, token, _ = (int(i) for i in np.argwhere((given < -1) | (given >= self.num_experts))[0])
            raise ArgumentError(
                f"layer {layer}, token {token} has expert {low if low < -1 else high}, "
                f"but experts are 0 to {self.num_experts - 1}, and -1 for none"
            )
        narrow = np.uint8 if low >= 0 and self.num_experts <= 256 else np.int16  # a million tokens are much
        topk = np.ascontiguousarray(given, dtype=narrow)
        if topk.flags.writeable and np.may_share_memory(topk, given):
            topk = topk.copy()  # a caller may go on writing to its array
        object.__setattr__(self, "topk", read_only(topk))
        object.__setattr__(self, "layers", check_layers(self.layers or None, len(given), None))
        if self.rank_of_token is not None:
            object.__setattr__(self, "rank_of_token", self._checked_ranks(self.rank_of_token))

    def _checked_ranks(self, given: Any) -> npt.NDArray[np.int64]:
        ranks = np.array(given)
        if ranks.shape != (self.num_tokens,) or ranks.dtype.kind not in "iu" or ranks.min() < 0:
            raise ArgumentError(
                f"rank_of_token must name a rank for each of {self.num_tokens} tokens, got "
                f"{ranks.dtype} {list(ranks.shape)}"
            )
        return read_only(ranks.astype(np.int64))

    @property
    def num_layers(self) -> int:
        """MoE layers ``L``."""
        return int(self.topk.shape[0])

    @property
    def num_tokens(self) -> int:
        """Tokens, padding included."""
        return int(self.topk.shape[1])

    @property
    def top_k(self) -> int:
        """Experts per token ``k``, at most."""
        return int(self.topk.shape[2])

    def __getitem__(self, tokens: slice) -> Routes:
        """The routes of a slice of tokens."""
        if not isinstance(tokens, slice):
            raise TypeError("Routes are indexed with a slice of tokens, as in routes[:1000]")
        ranks = None if self.rank_of_token is None else self.rank_of_token[tokens]
        return replace(self, topk=self.topk[:, tokens], rank_of_token=ranks)

    def rows(self, rows: Sequence[int]) -> Routes:
        """The routes of some of the layers."""
        return replace(self, topk=self.topk[list(rows)], layers=tuple(self.layers[row] for row in rows))

    def __repr__(self) -> str:
        shape = (
            f"{self.num_layers} layers, {self.num_tokens} tokens, {self.top_k} of {self.num_experts} experts"
        )
        return f"Routes({shape})"


def _pair_counts(given: Any) -> npt.NDArray[Any]:
    try:
        counts = np.array(given)
        return counts.astype(np.float64) if counts.dtype.kind == "f" else counts
    except ValueError:
        raise ArgumentError("pair counts are ragged: they must be [layers, experts, experts]") from None


@dataclass(frozen=True, eq=False)
class PairCounts:
    """How often two experts of a layer were hit by the same token. Immutable, and small whatever the traffic.

    Parameters
    ----------
    counts : ``[L, E, E]``, symmetric
        tokens that hit both experts; on the diagonal, tokens that hit the expert
    top_k : experts per token, where known
    layers : the model's own numbers of the ``L`` layers; 0, 1, ... unless given

    Raises
    ------
    ArgumentError
        if counts are not symmetric, or negative, not finite, or more than tokens that hit either expert

    Examples
    --------
    >>> PairCounts([[[2, 1], [1, 1]]], top_k=2).num_experts
    2
    """

    counts: npt.NDArray[Any]
    top_k: int | None = None
    layers: tuple[int, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        counts = _pair_counts(self.counts)
        if counts.ndim != 3 or counts.shape[1] != counts.shape[2] or 0 in counts.shape:
            raise ArgumentError(f"pair counts must be [layers, experts, experts], got {list(counts.shape)}")
        if counts.dtype.kind not in "iuf" or not (counts.min() >= 0 and counts.max() < 2.0**62):
            raise ArgumentError("pair counts must be finite numbers, not negative and below 2**62")
        if counts.dtype.kind != "f":
            counts = counts.astype(np.int64)  # sums of narrow integers would wrap
        hits = np.diagonal(counts, axis1=1, axis2=2)
        if (counts != counts.transpose(0, 2, 1)).any() or (counts > hits[:, None, :]).any():
            raise ArgumentError(
                "pair counts must be symmetric, with the tokens that hit an expert on the diagonal"
            )
        if self.top_k is not None and (not isinstance(self.top_k, int | np.integer) or self.top_k < 1):
            raise ArgumentError(f"top_k must be a positive integer, got {self.top_k!r}")
        object.__setattr__(self, "counts", read_only(counts))
        object.__setattr__(self, "layers", check_layers(self.layers or None, len(counts), None))

    @property
    def num_layers(self) -> int:
        """MoE layers ``L``."""
        return int(self.counts.shape[0])

    @property
    def num_experts(self) -> int:
        """Logical experts ``E`` per layer."""
        return int(self.counts.shape[1])

    def __add__(self, other: PairCounts) -> PairCounts:
        """The counts of both: of two ranks, or of a window and the next."""
        if not isinstance(other, PairCounts):
            return NotImplemented
        if (self.layers, self.num_experts, self.top_k) != (other.layers, other.num_experts, other.top_k):
            raise ArgumentError(
                f"pair counts of other layers, experts or top-k do not add up: {self}, {other}"
            )
        return replace(self, counts=self.counts + other.counts)

    def rows(self, rows: Sequence[int]) -> PairCounts:
        """The counts of some of the layers."""
        return replace(self, counts=self.counts[list(rows)], layers=tuple(self.layers[row] for row in rows))

    def __repr__(self) -> str:
        return f"PairCounts({self.num_layers} layers, {self.num_experts} experts)"
