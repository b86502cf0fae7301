"""SGLang: where its load balancer is plugged into. What it offers is checked first; what is not known is refused.

Two places of ``sglang.srt.eplb``: the function ``eplb_algorithms.rebalance_experts``, which every plan is asked of,
and around the making of `EPLBManager`, the last moment before serving, and the only one that knows the model.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ..errors import EquipoiseError
from .settings import Settings
from .sglang_engine import Engine
from .sglang_session import Call, Session

KNOWN_VERSION = "0.5.23"
FUNCTION = "rebalance_experts"
SIGNATURES = {
    f"eplb_algorithms.{FUNCTION}": (
        "tokens_per_expert",
        "num_physical_experts",
        "num_local_physical_experts",
        "num_groups",
        "num_nodes",
        "algorithm",
    ),
    "eplb_manager.EPLBManager.__init__": (
        "self",
        "model_config",
        "get_model",
        "get_expert_location_updater",
        "get_expert_backup_client",
        "get_weight_updater",
    ),
    # Where the world has grown it asks rank 0 alone, and broadcasts the answer itself.
    "eplb_manager.EPLBManager._compute_expert_location_metadata": (
        "self",
        "logical_count",
        "broadcast_over_world",
    ),
    "expert_location.get_global_expert_location_metadata": (),
    "expert_distribution.get_global_expert_distribution_recorder": (),
    "elastic_ep.ElasticEPStateManager.instance": (),
    "eplb_algorithms.compute_algorithm": ("raw_algorithm", "num_groups", "num_nodes"),
    "expert_location.ModelConfigForExpertLocation.from_model_config": ("model_config",),
    "runtime_context.get_parallel": (),
    "runtime_context.get_exec": (),
}
"""parameters of what is replaced, wrapped or called, as the known version has them"""
FIELDS = {
    "expert_location.ExpertLocationMetadata": {
        "physical_to_logical_map_cpu",
        "logical_to_all_physical_map_cpu",
        "logical_to_all_physical_map_num_valid",
        "ep_size",
    },
    "elastic_ep.ElasticEPState": {"active_ranks", "has_scaled"},
}
"""what is read of SGLang's records"""


def install(settings: Settings) -> None:
    """Plug into the SGLang that is installed; a second time it does nothing.

    Raises
    ------
    EquipoiseError
        if an interface is another than those known, or somebody else has replaced the algorithm
    """
    import sglang
    from sglang.srt import runtime_context
    from sglang.srt.elastic_ep import elastic_ep
    from sglang.srt.eplb import eplb_algorithms, eplb_manager, expert_distribution, expert_location

    modules = SimpleNamespace(
        eplb_algorithms=eplb_algorithms,
        eplb_manager=eplb_manager,
        expert_distribution=expert_distribution,
        expert_location=expert_location,
        elastic_ep=elastic_ep,
        runtime_context=runtime_context,
    )
    replace(modules, settings, sglang.__version__)


def replace(modules: Any, settings: Settings, version: str) -> None:
    """As `install`, for the given modules of SGLang."""
    own = modules.eplb_algorithms.rebalance_experts
    if getattr(own, "equipoise", False):
        return
    check(modules, version)
    log = logging.getLogger("equipoise.sglang")
    session = Session(settings, log, Engine(modules), f"SGLang {version}")
    manager = modules.eplb_manager.EPLBManager
    manager.__init__ = after_making(manager.__init__, session)
    modules.eplb_algorithms.rebalance_experts = algorithm(own, session)
    log.info("expert placements are planned by equipoise: %s", settings)


def check(modules: Any, version: str) -> None:
    """Raise `EquipoiseError` unless everything that is used has the form of the known version."""
    for name, known in SIGNATURES.items():
        found = tuple(inspect.signature(_find(modules, name, version)).parameters)
        if found != known:
            _refuse(version, f"{name} takes ({', '.join(found)}), but known is ({', '.join(known)})")
    for name, fields in FIELDS.items():
        missing = fields - set(getattr(_find(modules, name, version), "__dataclass_fields__", ()))
        if missing:
            _refuse(version, f"{name} has no field {', '.join(sorted(missing))}")
    own = _find(modules, f"eplb_algorithms.{FUNCTION}", version)
    if not own.__module__.endswith(".eplb_algorithms"):
        _refuse(version, f"eplb_algorithms.{FUNCTION} is {own.__module__}'s already")
    asks = _find(modules, "expert_location.ExpertLocationMetadata.init_by_eplb", version).__code__.co_names
    if FUNCTION not in asks or hasattr(modules.expert_location, FUNCTION):
        _refuse(version, f"init_by_eplb does not look {FUNCTION} up in its module")


def _find(modules: Any, name: str, version: str) -> Any:
    found = modules
    for part in name.split("."):
        found = getattr(found, part, None)
    return _refuse(version, f"{name} is not there") if found is None else found


def _refuse(version: str, what: str) -> None:
    raise EquipoiseError(
        f"SGLang {version}: {what}, of SGLang {KNOWN_VERSION}: install another version of SGLang or of equipoise, "
        "or unset EQUIPOISE_SGLANG"
    )


def after_making(make: Callable[..., None], session: Session) -> Callable[..., None]:
    """`EPLBManager.__init__` that goes on to prepare the session."""

    @functools.wraps(make)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        session.prepare(kwargs["model_config"], kwargs["get_model"])

    return wrapper


def algorithm(own: Callable[..., Any], session: Session) -> Callable[..., Any]:
    """The function that stands in for SGLang's; it has SGLang's for when it is needed."""

    @functools.wraps(own)
    def rebalance_experts(
        tokens_per_expert: Any,
        num_physical_experts: int,
        num_local_physical_experts: int,
        num_groups: int | None,
        num_nodes: int,
        algorithm: Any,
    ) -> Any:
        asked = (
            tokens_per_expert,
            num_physical_experts,
            num_local_physical_experts,
            num_groups,
            num_nodes,
            algorithm,
        )
        return session.answer(Call.of(*asked), lambda: own(*asked))

    rebalance_experts.equipoise = True  # type: ignore[attr-defined]
    return rebalance_experts
