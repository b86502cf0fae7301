"""vLLM: where its load balancer is plugged into. Signatures are checked first; what is not known is refused.

Three places of ``vllm.distributed.eplb``: the value of the policy ``default`` (the name must stay: the asynchronous
mode allows no other), and around `EplbState.add_model` and `EplbState.rearrange`, which say what no policy is told:
which models there are, whether a call is the profile run, and how many forward passes a window has.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from ..errors import EquipoiseError
from .settings import Settings
from .vllm_policy import Groups, Session, policy_class

KNOWN_VERSIONS = "0.29 to 0.33"
POLICY = "rebalance_experts"
SIGNATURES: dict[str, tuple[tuple[str, ...], ...]] = {
    POLICY: (
        ("weight", "num_replicas", "num_groups", "num_nodes", "num_ranks", "old_global_expert_indices"),
    ),
    "add_model": (
        ("self", "model", "model_config"),
        ("self", "model", "model_config", "model_name"),  # 0.32
    ),
    "rearrange": (
        ("self", "is_profile", "rank_mapping"),
        ("self", "is_profile", "rank_mapping", "use_last_expert_load"),  # 0.31
    ),
}
"""parameters of what is replaced or wrapped, as the known versions have them"""


def install(settings: Settings) -> None:
    """Plug into the vLLM that is installed; a second time it does nothing.

    Raises
    ------
    EquipoiseError
        if an interface is another than those known, or somebody else has replaced the policy
    """
    import vllm
    from vllm.distributed import parallel_state
    from vllm.distributed.eplb import eplb_state, policy

    replace(policy, eplb_state.EplbState, parallel_state, settings, vllm.__version__)


def replace(policy: Any, state: Any, parallel_state: Any, settings: Settings, version: str) -> None:
    """As `install`, for the given module of policies, class of states and module of groups."""
    default = policy.EPLB_POLICIES["default"]
    if getattr(default, "equipoise", False):
        return
    if default is not policy.DefaultEplbPolicy:
        raise EquipoiseError(
            f"vLLM's default policy is {default.__name__} already: unset EQUIPOISE_VLLM, or leave out the other "
            "plug-in with VLLM_PLUGINS"
        )
    check(policy.AbstractEplbPolicy.rebalance_experts, POLICY, version)
    check(default.rebalance_experts, POLICY, version)
    check(state.add_model, "add_model", version)
    check(state.rearrange, "rearrange", version)
    log = logging.getLogger("vllm.equipoise")  # vLLM shows what is logged under its own name
    session = Session(settings, log, Groups(parallel_state), f"vLLM {version}")
    state.add_model = after_add_model(state.add_model, session)
    state.rearrange = around_rearrange(state.rearrange, session)
    policy.EPLB_POLICIES["default"] = policy_class(default, session)
    log.info("expert placements are planned by equipoise: %s", settings)


def check(function: Callable[..., Any], name: str, version: str) -> None:
    """Raise `EquipoiseError` unless the function has the parameters of a known version."""
    found = tuple(inspect.signature(function).parameters)
    if found not in SIGNATURES[name]:
        known = " or ".join(f"({', '.join(names)})" for names in SIGNATURES[name])
        raise EquipoiseError(
            f"vLLM {version}: {name} takes ({', '.join(found)}), but known is {known}, of vLLM {KNOWN_VERSIONS}: "
            "install another version of vLLM or of equipoise, or unset EQUIPOISE_VLLM"
        )


def after_add_model(add_model: Callable[..., None], session: Session) -> Callable[..., None]:
    """`EplbState.add_model` that goes on to prepare the session."""

    @functools.wraps(add_model)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        add_model(self, *args, **kwargs)
        session.prepare(self)

    return wrapper


def around_rearrange(rearrange: Callable[..., Any], session: Session) -> Callable[..., Any]:
    """`EplbState.rearrange` that tells the session what is to come, and is synchronous where that was promised."""
    signature = inspect.signature(rearrange)

    @functools.wraps(rearrange)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        profile, repeated = bool(given.get("is_profile")), bool(given.get("use_last_expert_load"))
        session.begin(self, profile, repeated)
        if not session.at_once(profile):
            return rearrange(self, *args, **kwargs)
        mode, self.is_async = self.is_async, False
        try:
            return rearrange(self, *args, **kwargs)
        finally:
            self.is_async = mode

    return wrapper
