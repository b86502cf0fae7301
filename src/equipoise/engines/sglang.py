"""SGLang: the entry point of the group ``sglang.srt.plugins``. Unless asked for it imports and changes nothing."""

from __future__ import annotations

import os

SWITCH = "EQUIPOISE_SGLANG"


def register() -> None:
    """Let SGLang's expert-parallel load balancer plan with Equipoise, where ``EQUIPOISE_SGLANG=1`` is set.

    SGLang calls this in each of its processes. It logs and forgets whatever exception comes out of it, and would then
    serve with its own algorithm; a balancer that was asked for and does not fit must not be missing silently, so
    whatever goes wrong ends the process.

    Raises
    ------
    SystemExit
        with one line, if a setting is not valid or this SGLang is none whose interfaces are known
    """
    value = os.environ.get(SWITCH, "")
    if value in ("", "0"):
        return
    try:
        if value != "1":
            raise ValueError(f"{SWITCH} must be 1 (on) or 0 (off), got {value!r}")
        from .settings import Settings
        from .sglang_hooks import install

        install(Settings.from_environment(os.environ))
    except Exception as error:
        raise SystemExit(f"equipoise: {error}") from error
