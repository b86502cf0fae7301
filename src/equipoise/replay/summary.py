"""From what a replay scored to one `Series` with its `Summary`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..metrics import Balance
from ..placement import read_only
from ..plans.activated import Activated, mean_activated
from ..plans.served import Splits, mean_of
from ..topology import Topology
from .result import Replan, Series, Summary

FloatArray = npt.NDArray[np.float64]


def series_of(
    *,
    role: str,
    policy: str,
    forecast: str,
    topology: Topology,
    windows: npt.NDArray[np.int64],
    imbalances: FloatArray,
    balances: Sequence[Balance],
    layer_time_s: FloatArray | None,
    floor_time_s: FloatArray | None,
    replans: tuple[Replan, ...],
    last_rank_loads: FloatArray,
    splits: Sequence[Splits] = (),
    step_s: Sequence[tuple[float, float]] = (),
    where: Mapping[str, FloatArray],
    activated: Sequence[Activated] = (),
) -> Series:
    """A series from its scores.

    Parameters
    ----------
    imbalances : ``[S, L]``, per scored window and layer
    balances : ``S`` of them, one a scored window
    layer_time_s, floor_time_s : ``[S]``, of this series and of the floor on the same windows
    last_rank_loads : ``[L, P]``
    splits, step_s : one a scored window where asked for, else none; seconds of a layer and step, even and swept
    where : where tokens go, ``[S]`` by the name in `Summary`, as far as it is known
    activated : of each scored interval, where single batches are known
    """
    num_layers = imbalances.shape[1]
    told: dict[str, Any] = {name: float(values.mean()) for name, values in where.items()}
    measures = {
        field.name: read_only(np.array([getattr(each, field.name) for each in balances]))
        for field in fields(Balance)
    }
    return Series(
        role=role,
        policy=policy,
        forecast=forecast,
        topology=topology,
        windows=windows,
        **measures,
        layer_imbalance=read_only(imbalances.mean(axis=0)),
        layer_time_s=layer_time_s,
        replans=replans,
        last_rank_loads=last_rank_loads,
        summary=replace(
            _summary(
                imbalances, measures, layer_time_s, floor_time_s, replans, num_layers * topology.num_slots
            ),
            **told,
        ),
        splits=mean_of(splits) if splits else None,
        even_step_s=float(np.mean([even for even, _ in step_s])) if step_s else None,
        swept_step_s=float(np.mean([swept for _, swept in step_s])) if step_s else None,
        activated=mean_activated(activated) if activated else None,
    )


def joined_where(parts: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    """Where tokens go in intervals that follow each other, ``[S]`` by name."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _summary(
    imbalances: FloatArray,
    measures: Mapping[str, FloatArray],
    layer_time_s: FloatArray | None,
    floor_time_s: FloatArray | None,
    replans: tuple[Replan, ...],
    all_slots: int,
) -> Summary:
    taken = [replan for replan in replans if replan.taken]
    moves = sum(replan.moves for replan in taken)
    means = {name: float(values.mean()) for name, values in measures.items()}
    total = gained = lost = net = moved_bytes = even = None
    if layer_time_s is not None and floor_time_s is not None:
        total = float(layer_time_s.sum())
        gained = float(floor_time_s.sum()) - total
        lost = float(sum(replan.move_s or 0.0 for replan in taken))
        net = gained - lost
        if lost > 0 and gained > 0:
            moved = sum(replan.moves > 0 for replan in taken)
            even = lost / moved / (gained / len(layer_time_s))
        moved_bytes = sum(replan.bytes or 0 for replan in taken)
    return Summary(
        **means,
        p95_imbalance=float(np.percentile(imbalances, 95)),
        in_sample=float(np.mean([replan.in_sample for replan in replans])) if replans else None,
        proposals=len(replans),
        replans=len(taken),
        moves=moves,
        moves_share=moves / (len(taken) * all_slots) if taken else 0.0,
        bytes=moved_bytes,
        planning_s=float(np.mean([replan.planning_s for replan in replans])) if replans else 0.0,
        layer_time_s=total,
        gained_s=gained,
        lost_s=lost,
        net_s=net,
        break_even_windows=even,
    )
