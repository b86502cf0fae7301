"""Recorded loads: a series of windows, each with what every expert of every layer was given."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ArgumentError
from .placement import check_layers, read_only

MAX_LOAD = 1e300  # sums over experts and windows stay finite
MAX_BATCHES = 1 << 40  # of a window: sums over windows do not wrap
UNITS = ("tokens", "batches")
"""what loads count: tokens that were routed to an expert, or batches in which it was hit"""


def check_loads(loads: npt.ArrayLike, name: str, dimensions: tuple[int, ...]) -> npt.NDArray[Any]:
    """A finite, non-negative array of one of the given dimensions; integers stay integers.

    Raises `ArgumentError` naming ``name`` and, for a bad value, its place.
    """
    if getattr(loads, "is_meta", False):
        raise ArgumentError(f"{name} is on the meta device: it has a shape and no numbers to plan from")
    try:
        array = np.asarray(loads)
    except ValueError:  # ragged nested lists
        raise ArgumentError(f"{name} is ragged: all layers need the same number of experts") from None
    except (
        TypeError,
        RuntimeError,
    ) as error:  # tensors of other devices or of narrow floats
        raise ArgumentError(
            f"{name} is nothing that NumPy can read: {str(error).splitlines()[0][:120]}"
        ) from None
    if array.dtype.kind not in "iufb":
        raise ArgumentError(f"{name} must be numbers, got dtype {array.dtype}")
    if array.dtype.kind == "f" and array.dtype != np.float64:
        array = array.astype(np.float64)
    elif array.dtype.kind in "bu":
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            array = array.astype(np.float64)
        else:
            array = array.astype(np.int64)
    elif array.dtype != np.int64 and array.dtype.kind == "i":
        array = array.astype(np.int64)
    if array.ndim not in dimensions:
        axes = {1: "[experts]", 2: "[layers, experts]", 3: "[windows, layers, experts]"}
        wanted = " or ".join(axes[n] for n in dimensions)
        raise ArgumentError(f"{name} must have the axes {wanted}, got shape {list(array.shape)}")
    if 0 in array.shape:
        raise ArgumentError(f"{name} is empty: shape {list(array.shape)}")
    # Both are NaN if any load is.
    if not (array.min() >= 0 and array.max() <= MAX_LOAD):
        bad = np.argwhere(~((array >= 0) & (array <= MAX_LOAD)))[0]
        raise ArgumentError(bad_load(name, bad.tolist(), array[tuple(bad)]))
    return array


def bad_load(name: str, where: list[int], value: Any) -> str:
    """The message about a load that cannot be planned with."""
    return f"{name}{where} is {value}: loads must be finite (at most {MAX_LOAD:g}) and not negative"


def _dtype_of_sums(counts: npt.NDArray[Any], windows: int) -> npt.DTypeLike:
    """The type that sums of so many windows need: float64 where integers could wrap."""
    if counts.dtype.kind == "i" and int(counts.max()) > np.iinfo(np.int64).max // windows:
        return np.float64
    return counts.dtype


def _sum_windows(counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(counts.sum(axis=0, dtype=_dtype_of_sums(counts, len(counts))))


@dataclass(frozen=True, eq=False)
class LoadTrace:
    """Counts per logical expert over consecutive windows, of tokens or of batches. Immutable.

    Parameters
    ----------
    counts : ``[T, L, E]``, or ``[L, E]`` for a single window
        tokens routed to each logical expert, or batches in which it was hit; integers stay int64, the rest becomes
        float64
    layers : the model's own numbers of the ``L`` MoE layers; 0, 1, ... unless given
    num_model_layers : layers of the whole model, dense ones included, where known
    steps : ``[T, 2]`` first step and one past the last step of each window; one step each unless given
    phases : a tag for each window ("prefill", "decode", "mixed"), where known
    top_k : experts per token, where known
    source : where the counts came from, in words
    unit : what is counted: ``"tokens"``, or ``"batches"`` in which an expert was hit by at least one token
    batches : ``[T]`` batches that each window counted, for counts of batches; one for each step unless given. Where
        every rank counts the batches of its own tokens and ranks are added up, steps times ranks

    Raises
    ------
    ArgumentError
        for negative or non-finite loads, wrong dimensions, metadata of the wrong length, or an expert that was hit
        in more batches than there were
    """

    counts: npt.NDArray[Any]
    layers: tuple[int, ...] = field(default=(), kw_only=True)
    num_model_layers: int | None = field(default=None, kw_only=True)
    steps: npt.NDArray[np.int64] | None = field(default=None, kw_only=True)
    phases: tuple[str, ...] | None = field(default=None, kw_only=True)
    top_k: int | None = field(default=None, kw_only=True)
    source: str = field(default="", kw_only=True)
    unit: str = field(default="tokens", kw_only=True)
    batches: npt.NDArray[np.int64] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        counts = check_loads(self.counts, "counts", (2, 3))
        if counts.ndim == 2:
            counts = counts[None]
        if counts.flags.writeable and np.may_share_memory(counts, np.asarray(self.counts)):
            counts = counts.copy()  # a caller may go on writing to its array
        object.__setattr__(self, "counts", read_only(counts))
        num_windows, num_layers, _ = counts.shape
        object.__setattr__(
            self, "layers", check_layers(self.layers or None, num_layers, self.num_model_layers)
        )
        if self.steps is None:
            first = np.arange(num_windows, dtype=np.int64)
            steps = np.stack([first, first + 1], axis=1)
        else:
            steps = np.array(self.steps, dtype=np.int64)
            if steps.shape != (num_windows, 2) or (steps[:, 1] <= steps[:, 0]).any():
                raise ArgumentError(
                    f"steps must be [windows, 2] = [{num_windows}, 2] with first < end, "
                    f"got shape {list(steps.shape)}"
                )
        object.__setattr__(self, "steps", read_only(steps))
        if self.phases is not None:
            phases = tuple(str(phase) for phase in self.phases)
            if len(phases) != num_windows:
                raise ArgumentError(f"phases has {len(phases)} tags for {num_windows} windows")
            object.__setattr__(self, "phases", phases)
        if self.top_k is not None and self.top_k < 1:
            raise ArgumentError(f"top_k must be positive, got {self.top_k}")
        if self.unit not in UNITS:
            raise ArgumentError(f"unit must be {' or '.join(UNITS)}, got {self.unit!r}")
        object.__setattr__(self, "batches", self._checked_batches(steps))

    def _checked_batches(self, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """Batches of each window ``[T]``, where batches are counted; no expert was hit in more of them."""
        if self.unit == "tokens":
            if self.batches is not None:
                raise ArgumentError("batches are of counts of batches (unit='batches'), not of tokens")
            return None
        batches = steps[:, 1] - steps[:, 0] if self.batches is None else np.array(self.batches)
        if (
            batches.shape != (self.num_windows,)
            or batches.dtype.kind not in "iu"
            or not (batches.min() >= 1 and batches.max() <= MAX_BATCHES)
        ):
            raise ArgumentError(
                f"batches must be [windows] = [{self.num_windows}] whole numbers from 1 to 2**40, got "
                f"{batches.dtype} {list(batches.shape)}"
            )
        beyond = self.counts.max(axis=(1, 2)) > batches
        if beyond.any():
            window = int(beyond.argmax())
            layer, expert = np.unravel_index(int(self.counts[window].argmax()), self.counts.shape[1:])
            raise ArgumentError(
                f"counts[{window}, {layer}, {expert}] is {self.counts[window, layer, expert]}, but window {window} "
                f"has {batches[window]} batches, and no expert is hit in more: are these tokens, or batches of "
                "several ranks?"
            )
        return read_only(batches.astype(np.int64))

    @property
    def num_windows(self) -> int:
        """Windows ``T``."""
        return int(self.counts.shape[0])

    @property
    def num_layers(self) -> int:
        """MoE layers ``L``."""
        return int(self.counts.shape[1])

    @property
    def num_experts(self) -> int:
        """Logical experts ``E`` per layer."""
        return int(self.counts.shape[2])

    def __len__(self) -> int:
        return self.num_windows

    def total(self) -> npt.NDArray[Any]:
        """Loads summed over the windows ``[L, E]``, in float64 where integers could wrap."""
        return _sum_windows(self.counts)

    def __getitem__(self, windows: slice) -> LoadTrace:
        """The windows of a slice, as a trace that shares the counts."""
        if not isinstance(windows, slice):
            raise TypeError("a LoadTrace is indexed with a slice of windows, as in trace[-4:]")
        assert self.steps is not None
        if not len(range(*windows.indices(self.num_windows))):
            raise ArgumentError(f"{windows} selects none of the {self.num_windows} windows")
        return replace(
            self,
            counts=self.counts[windows],
            steps=self.steps[windows],
            phases=None if self.phases is None else self.phases[windows],
            batches=None if self.batches is None else self.batches[windows],
        )

    def hits(self) -> LoadTrace:
        """In place of tokens, whether each window hit an expert: counts of batches, where every window is one batch.

        Raises `ArgumentError` if a window spans several steps: what each of them hit is not known.

        Examples
        --------
        >>> LoadTrace([[[5, 0]], [[2, 1]]]).hits().regroup(2).counts.tolist()
        [[[2, 1]]]
        """
        self.check_batches()
        return replace(self, counts=(self.counts > 0).astype(np.int64), unit="batches", batches=None)

    def check_batches(self) -> None:
        """Raise `ArgumentError` unless every window counts the tokens of one batch."""
        if self.unit != "tokens":
            raise ArgumentError("single batches are not known of loads that count batches already")
        assert self.steps is not None
        spans = self.steps[:, 1] - self.steps[:, 0]
        if (spans > 1).any():
            raise ArgumentError(
                f"window {int((spans > 1).argmax())} spans {spans.max()} steps, and what each of them hit is not "
                "known: batches need windows of one step"
            )

    def regroup(self, size: int) -> LoadTrace:
        """Sum every ``size`` consecutive windows into one; an incomplete last group is left out.

        Raises `ArgumentError` if ``size`` is not positive or larger than the trace. The phase of a group is
        that of its windows if they agree, else ``"mixed"``.
        """
        if size < 1 or size > self.num_windows:
            raise ArgumentError(
                f"cannot regroup {self.num_windows} window{'s' * (self.num_windows != 1)} by {size}: "
                f"use 1 to {self.num_windows}"
            )
        if size == 1:
            return self
        groups = self.num_windows // size
        kept = groups * size
        # One group at a time: reshaping and summing at once would hold a second copy in wider integers.
        dtype = _dtype_of_sums(self.counts, size)
        counts = np.empty((groups, *self.counts.shape[1:]), dtype=dtype)
        for group in range(groups):
            self.counts[group * size : (group + 1) * size].sum(axis=0, dtype=dtype, out=counts[group])
        assert self.steps is not None
        steps = np.stack([self.steps[:kept:size, 0], self.steps[size - 1 : kept : size, 1]], axis=1)
        phases = None
        if self.phases is not None:
            parts = [set(self.phases[g * size : (g + 1) * size]) for g in range(groups)]
            phases = tuple(part.pop() if len(part) == 1 else "mixed" for part in parts)
        batches = None if self.batches is None else self.batches[:kept].reshape(groups, size).sum(axis=1)
        return replace(self, counts=read_only(counts), steps=steps, phases=phases, batches=batches)

    def __repr__(self) -> str:
        return (
            f"LoadTrace({self.num_windows} windows, {self.num_layers} layers, {self.num_experts} experts"
            + (", hit batches" if self.unit == "batches" else "")
            + (f", {self.source!r})" if self.source else ")")
        )
