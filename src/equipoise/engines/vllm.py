"""vLLM: the entry point of the group ``vllm.general_plugins``. Unless asked for it imports and changes nothing."""

from __future__ import annotations

import os

from ..errors import ArgumentError

SWITCH = "EQUIPOISE_VLLM"


def register() -> None:
    """Let vLLM's expert-parallel load balancer plan with Equipoise, where the environment has ``EQUIPOISE_VLLM=1``.

    vLLM calls this in each of its processes, possibly more than once. What it raises stops the server, which is
    meant: a balancer that was asked for and does not fit must not be missing silently.

    Raises
    ------
    ArgumentError
        if a setting is not valid
    EquipoiseError
        if this vLLM is not of a version whose interfaces are known
    """
    value = os.environ.get(SWITCH, "")
    if value in ("", "0"):
        return
    if value != "1":
        raise ArgumentError(f"{SWITCH} must be 1 (on) or 0 (off), got {value!r}")
    from .settings import Settings
    from .vllm_hooks import install

    install(Settings.from_environment(os.environ))
