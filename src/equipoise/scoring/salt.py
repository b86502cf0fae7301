"""The salt of a run: what keeps the data of one run from being known before it."""

from __future__ import annotations

import hashlib
import re
import secrets

import numpy as np

from ..errors import ArgumentError


def new_salt() -> str:
    """64 bits that nobody knows yet."""
    return secrets.token_hex(8)


def checked(salt: str | None) -> str:
    """The salt as given, a new one for None.

    Raises `ArgumentError` unless it is 1 to 64 letters, digits, ``-`` and ``_``.
    """
    if salt is None:
        return new_salt()
    if not isinstance(salt, str) or not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", salt):
        raise ArgumentError(f"salt must be 1 to 64 letters, digits, - or _, got {salt!r}")
    return salt


def salted(salt: str, *purpose: object) -> int:
    """A seed of 128 bits that nobody can compute who does not know the salt."""
    text = "\0".join([salt, *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def generator(salt: str, *purpose: object) -> np.random.Generator:
    """A generator of random numbers with that seed."""
    return np.random.default_rng(salted(salt, *purpose))
