"""The objective of the search: what a rank load costs in a window. This file alone knows the power.

A layer costs the sum over windows and ranks of the 8th powers of its rank loads, the mean rank load of a window
being 1: smooth, convex, and close to what the busiest rank of each window costs. Lower powers trade busy ranks
for many middling ones, higher ones see nothing but the busiest (`benchmarks/bench_robust.py`, held-out).

A rank of speed ``s`` counts as ``s`` ranks that share its load: ``s * cost(load / s)``, which is least where all
ranks take the same time, loads divided by speeds (`burden`).

Another objective replaces the functions below; the search asks of it that it is
convex, rises with the load, is 0 without load, and that ``cost(load / s)`` is ``cost(load) / cost(s)``.
"""

from __future__ import annotations

from .kernel import kernel

# The search takes no step that gains less than these: a gain as such, and a share of the costs concerned, since
# powers of large loads round to more than the first.
SMALLEST_GAIN = 1e-9
SMALLEST_SHARE = 1e-11


@kernel
def cost(load):
    """What a rank costs in a window under ``load``, a multiple of the mean rank load."""
    square = load * load
    fourth = square * square
    return fourth * fourth


@kernel
def burden(speed):
    """What costs, slopes and bends of a rank are multiplied by for its ``speed``, a multiple of the mean speed."""
    return speed / cost(speed)


@kernel
def slope(load):
    """The first derivative of `cost` at ``load``, a multiple of the mean rank load."""
    cube = load * load * load
    return 8.0 * cube * cube * load


@kernel
def bend(load, other, part):
    """The second derivative of ``cost(load) + cost(other)`` as ``part`` of a rank load moves from one to the other.

    ``load``, ``other`` and ``part`` are multiples of the mean rank load.
    """
    cube, other_cube = load * load * load, other * other * other
    return 56.0 * part * part * (other_cube * other_cube + cube * cube)
