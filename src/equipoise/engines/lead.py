"""The part of the one rank that plans, whatever the engine. It raises nothing, since the other ranks wait for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import EquipoiseError
from ..placement import IntArray
from ..topology import Topology
from .agreement import Status
from .settings import Settings

if TYPE_CHECKING:
    from .planning import Planner


class Lead:
    """Makes a status and a map of whatever comes of planning.

    Parameters
    ----------
    settings : what was asked for
    log : the engine's logger
    source : the engine and its version
    """

    def __init__(self, settings: Settings, log: logging.Logger, source: str) -> None:
        self._settings, self._log, self._source = settings, log, source
        self._made: Planner | None = None

    @property
    def planner(self) -> Planner:
        """Made on this rank alone, and not before a model is loaded.

        It brings Numba, which vLLM 0.32 does not expect among the modules of a worker that starts on a CPU.
        """
        if self._made is None:
            from .planning import Planner

            self._made = Planner(self._settings, self._log, self._source)
        return self._made

    def get_ready(self, served: Callable[[], tuple[Topology, int, int]]) -> Status:
        """Prepare for what will be served: a machine, layers ``L`` and experts ``E``.

        `Status.MOVE` if a placement was planned ahead for it, `Status.FAILED` if what was asked for cannot be done.
        """
        try:
            ahead = self.planner.prepare(*served())
        except Exception as error:
            self._log.error("equipoise: %s", error, exc_info=_unless_known(error))
            return Status.FAILED
        return Status.MOVE if ahead else Status.KEEP

    def word(
        self,
        ask: Callable[[], IntArray | None],
        kept: IntArray,
        legal: bool,
        engines_own: Callable[[], IntArray],
    ) -> tuple[Status, IntArray]:
        """What this rank tells the others, and the map ``[L, R]`` that goes with it.

        Parameters
        ----------
        ask : asks the planner for a map to move to; ``None`` from it moves nothing
        kept : the map that is served
        legal : whether all ranks can serve on with it
        engines_own : the engine's own plan, for where they cannot
        """
        moved = self._asked(ask)
        if moved is not None:
            return Status.MOVE, moved
        if legal:
            return Status.KEEP, kept
        try:
            self._log.info(
                "equipoise: %s's own plan is taken, for what is held cannot be served", self._source
            )
            return Status.ENGINE, engines_own()
        except Exception:
            self._log.exception("equipoise: %s has no plan of its own either", self._source)
            return Status.FAILED, kept

    def _asked(self, ask: Callable[[], IntArray | None]) -> IntArray | None:
        try:
            return ask()
        except Exception as error:
            self._log.warning("equipoise: keep: %s", error, exc_info=_unless_known(error))
            return None


def _unless_known(error: Exception) -> bool:
    """Whether the log needs a traceback: our own errors say in one line what there is to say."""
    return not isinstance(error, EquipoiseError)
