"""What is said about odd recordings, and what is mended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import samples
from equipoise import FormatError, LoadTrace
from equipoise.formats.base import Recording
from equipoise.formats.hygiene import clean, diagnose, find_seam

HERE = Path("dump.pt")


def kinds(trace: LoadTrace, top_k: int | None = None) -> set[str]:
    return {finding.kind for finding in diagnose(trace, top_k)}


def drifting(steps: int = 80, seed: int = 0) -> np.ndarray:
    """Counts ``[T, 4, 16]`` whose shares wander from one distribution to another."""
    rng = np.random.default_rng(seed)
    first, last = rng.dirichlet(np.ones(16), size=(2, 4))
    way = np.linspace(0, 1, steps)[:, None, None]
    return rng.multinomial(400, (1 - way) * first + way * last)


def test_a_sound_trace_has_nothing_odd() -> None:
    assert diagnose(samples.trace()) == []


def test_dense_layers_and_empty_steps_keep_their_numbers() -> None:
    counts = np.zeros((5, 6, 8), dtype=np.int64)
    counts[np.ix_([1, 2, 4], [1, 2, 4])] = samples.counts()[:3]
    steps = np.arange(10).reshape(5, 2)
    phases = ("a", "b", "c", "d", "e")
    recording = Recording(counts, layers=(0, 5, 6, 7, 9, 11), steps=steps, phases=phases, every_layer=True)
    trace, findings = clean(HERE, recording, layers=(5, 6, 9))
    np.testing.assert_array_equal(trace.counts, samples.counts()[:3])
    assert trace.layers == (5, 6, 9)
    assert trace.phases == ("b", "c", "e")
    assert trace.steps is not None
    assert trace.steps.tolist() == [[2, 3], [4, 5], [8, 9]]
    assert [(finding.kind, finding.applied) for finding in findings] == [("empty_steps", True)]


def test_an_expert_layer_that_is_zero_in_some_steps_stays() -> None:
    counts = samples.counts()
    counts[1, 2] = 0
    assert clean(HERE, Recording(counts))[0].num_layers == 3


def test_nothing_recorded() -> None:
    with pytest.raises(FormatError, match=r"dump\.pt: all loads are zero"):
        clean(HERE, Recording(np.zeros((2, 3, 4))))


def test_a_gap_in_the_middle_of_no_ring_is_no_rotation() -> None:
    counts = np.zeros((6, 3, 8), dtype=np.int64)
    counts[[0, 1, 4, 5]] = samples.counts()
    trace, findings = clean(HERE, Recording(counts, ring=False))
    assert trace.steps is not None
    assert trace.steps[:, 0].tolist() == [0, 1, 4, 5]
    assert [finding.kind for finding in findings] == ["empty_steps"]


@pytest.mark.parametrize("shift", [20, 37, 60])
def test_a_full_ring_that_was_rotated_is_noticed(shift: int) -> None:
    counts = drifting()
    seam = find_seam(np.roll(counts, shift, axis=0))
    assert seam is not None
    assert abs(seam - shift) <= 2
    _, findings = clean(HERE, Recording(np.roll(counts, shift, axis=0), ring=True))
    assert [(finding.kind, finding.applied) for finding in findings] == [("looks_rotated", False)]


@pytest.mark.parametrize("seed", range(5))
def test_no_seam_in_order_nor_in_steady_traffic(seed: int) -> None:
    assert find_seam(drifting(seed=seed)) is None
    steady = np.random.default_rng(seed).multinomial(400, np.full(16, 1 / 16), size=(80, 4))
    assert find_seam(steady) is None
    assert find_seam(steady[:5]) is None


def test_layers_that_disagree() -> None:
    counts = samples.counts()
    counts[2, 1, 3] += 40
    (finding,) = diagnose(LoadTrace(counts, layers=(3, 4, 5)))
    assert finding.kind == "uneven_layers"
    assert "in window 2 layer 4 has 456" in finding.message
    assert "1 of 4 windows" in finding.message


def test_repeats_and_cold_experts() -> None:
    counts = samples.counts()
    counts[2] = counts[1]
    (finding,) = diagnose(LoadTrace(counts))
    assert finding.kind == "repeated_steps"
    assert "1 windows repeat" in finding.message
    counts = samples.counts()
    counts[:, 1, 0] += counts[:, 1, 5]
    counts[:, 1, 5] = 0
    (finding,) = diagnose(LoadTrace(counts, layers=(3, 4, 5)))
    assert finding.kind == "never_hit"
    assert "4:5" in finding.message


def test_top_k() -> None:
    trace = LoadTrace(samples.counts())
    assert kinds(trace, 2) == set()
    assert kinds(trace, 3) == {"top_k"}
    assert kinds(LoadTrace(samples.counts(), top_k=2), 3) == set()
