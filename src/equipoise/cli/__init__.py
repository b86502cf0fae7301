"""The command ``equipoise``: thin wrappers that parse, call and print."""

from __future__ import annotations

from .app import main

__all__ = ["main"]
