"""Workers on Ray: on the cores of this machine, or of the cluster that ``RAY_ADDRESS`` names."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from ..errors import EquipoiseError, MissingDependencyError, printable
from ..trace import LoadTrace
from .point import Outcome, Task, keep_to_one_thread, run_point
from .workers import Answer

ADDRESS = "RAY_ADDRESS"
ANSWER_S = 10.0


def has_ray() -> bool:
    """Whether Ray is installed; does not import it."""
    return find_spec("ray") is not None


class Worker:
    """What runs in a process of Ray's: an actor, so that it is lost alone and can be ended."""

    def __init__(self) -> None:
        keep_to_one_thread()

    def run(self, task: Task, trace: LoadTrace) -> Outcome:
        """Replay a point on a load that lies in Ray's store, once for all workers of a machine."""
        return run_point(task, trace)


class RayWorkers:
    """An actor for each lane. Ray is imported and started here, and nowhere else.

    Parameters
    ----------
    lanes : workers; None for as many as Ray has processors
    traces : loads by name; each is put into Ray's store once
    """

    def __init__(self, lanes: int | None, traces: Mapping[str, LoadTrace]) -> None:
        self._ray = _start_ray(lanes)
        self.lanes = lanes or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._loads = {name: self._ray.put(trace) for name, trace in traces.items()}
        self._actor = self._ray.remote(num_cpus=1, max_restarts=0)(Worker)
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, int] = {}

    def give(self, lane: int, task: Task) -> None:
        """Start a task in a lane that has none."""
        if lane not in self._actors:
            self._actors[lane] = self._actor.remote()
        self._pending[self._actors[lane].run.remote(task, self._loads[task.point.load])] = lane

    def answers(self, timeout_s: float) -> list[Answer]:
        """What has come of tasks; waits for the first as long as this."""
        pending = list(self._pending)
        ready, _ = self._ray.wait(pending, num_returns=1, timeout=timeout_s)
        more, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        return [self._answer(reference) for reference in dict.fromkeys([*ready, *more])]

    def drop(self, lane: int) -> None:
        """End a lane's worker, whatever it does; there is no answer."""
        for reference in [reference for reference, other in self._pending.items() if other == lane]:
            del self._pending[reference]
        actor = self._actors.pop(lane, None)
        if actor is not None:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)

    def close(self) -> None:
        """End all workers, and Ray where it was started for them."""
        for lane in list(self._actors):
            self.drop(lane)
        self._ray.shutdown()

    def _answer(self, reference: Any) -> Answer:
        lane = self._pending.pop(reference)
        try:
            return Answer(lane, self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            self.drop(lane)
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            return Answer(
                lane, None, printable(f"its worker was lost ({type(error).__name__}: {first[:160]})")
            )


def _start_ray(lanes: int | None) -> Any:
    if not has_ray():
        raise MissingDependencyError(
            "Ray is not installed: pip install 'equipoise[ray]', or sweep with --on local"
        )
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a start prints advice about tokens
    _knock(os.environ.get(ADDRESS, ""))
    import ray

    settings: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    if not os.environ.get(ADDRESS):
        # "local", or Ray would join whatever cluster was last started on this machine.
        settings |= {"address": "local", "include_dashboard": False, "num_cpus": lanes}
    try:
        ray.init(**settings)
    except Exception as error:
        where = f"the cluster at {os.environ[ADDRESS]}" if os.environ.get(ADDRESS) else "this machine"
        first = (str(error).splitlines() or [""])[0]
        raise EquipoiseError(
            f"Ray could not be used on {where} ({type(error).__name__}: {first[:160]}); --on local sweeps without it"
        ) from error
    return ray


def _knock(address: str) -> None:
    """Raise `EquipoiseError` where nobody answers at ``host:port``: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # "auto", "local": Ray's to find
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise EquipoiseError(
            f"no Ray cluster answers at {ADDRESS}={address} ({error}): start one there, or unset it to "
            "sweep on this machine"
        ) from None
