"""Sweep: a grid of loads, topologies and settings whose points are replays, resumable, on one machine or many."""

from __future__ import annotations

from .driver import Progress, Sweep
from .spec import LoadFile, Point, Spec, load_spec

__all__ = ["LoadFile", "Point", "Progress", "Spec", "Sweep", "load_spec"]
