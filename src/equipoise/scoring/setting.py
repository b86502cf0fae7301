"""What a program is asked for where nobody says: the published topology, fitted to the trace."""

from __future__ import annotations

from dataclasses import dataclass

from ..control.presets import LINKS, MODELS, Model, find, model_of_shape
from ..errors import ArgumentError
from ..topology import Topology
from ..trace import LoadTrace

PUBLISHED_TOPOLOGY = Topology(num_ranks=32, slots_per_rank=9, num_nodes=4, num_groups=8)
"""What the published protocols ask for: 288 slots, 8 groups, 4 nodes, 32 ranks, for 256 experts."""
PUBLISHED_EXPERTS = 256
PUBLISHED_MODEL = "deepseek-v3"
LINK = "ib-400g"


@dataclass(frozen=True)
class Setting:
    """A topology for a trace, and what a program's moves cost there."""

    topology: Topology
    model: Model
    """whose experts are moved: as named, or of the trace's shape, or the published one"""
    notes: tuple[str, ...]
    """what the user should know about it, a sentence each"""

    @property
    def full_move_seconds(self) -> float:
        """Seconds to fetch every slot of the model once, all ranks at the same time."""
        slots = self.topology.slots_per_rank * self.model.layers
        return slots * self.model.expert_bytes() / LINKS[LINK].bytes_per_s


def setting_for(
    trace: LoadTrace,
    *,
    ranks: int | None = None,
    slots: int | None = None,
    nodes: int | None = None,
    groups: int | None = None,
    model: str | None = None,
) -> Setting:
    """The setting to score a trace in.

    Parameters
    ----------
    trace : its experts and layers decide what is not given
    ranks : 32 unless given
    slots : of a layer; one for each expert and one spare slot a rank unless given, filled up to whole ranks
    nodes : as many as make 8 ranks each unless given, 1 where that does not divide
    groups : those of the model unless given; of an unknown model 8 if it has 256 experts, else 1
    model : name of a preset; the first one of the trace's layers and experts unless given

    Raises
    ------
    ArgumentError
        for an unknown model, or numbers that fit neither each other nor the trace
    """
    experts = trace.num_experts
    known = find(MODELS, model, "model") if model is not None else model_of_shape(trace.num_layers, experts)
    given = {"ranks": ranks, "slots": slots, "nodes": nodes, "groups": groups}
    for name, value in given.items():
        if value is not None and value < 1:
            raise ArgumentError(f"--{name} must be at least 1, got {value}")
    ranks = PUBLISHED_TOPOLOGY.num_ranks if ranks is None else ranks
    if slots is None:
        slots = -(-(experts + ranks) // ranks) * ranks
    if nodes is None:
        nodes = max(ranks // PUBLISHED_TOPOLOGY.ranks_per_node, 1)
        nodes = nodes if ranks % nodes == 0 else 1
    if groups is None:
        published = PUBLISHED_TOPOLOGY.num_groups if experts == PUBLISHED_EXPERTS else 1
        groups = published if known is None else known.groups
        groups = groups if experts % groups == 0 else 1
    _check(experts, ranks, slots, nodes, groups)
    topology = Topology.from_slots(slots, ranks, nodes, groups)
    notes = _notes(trace, topology, known, given, named=model is not None)
    return Setting(topology, known or MODELS[PUBLISHED_MODEL], tuple(notes))


def _check(experts: int, ranks: int, slots: int, nodes: int, groups: int) -> None:
    if slots < experts:
        raise ArgumentError(
            f"--slots {slots} are too few for {experts} experts: every expert needs a slot; "
            f"use --slots {-(-experts // ranks) * ranks} or more"
        )
    if ranks % nodes:
        raise ArgumentError(f"--ranks {ranks} are not divisible by --nodes {nodes}; use --nodes 1")
    if experts % groups:
        raise ArgumentError(f"{experts} experts are not divisible by --groups {groups}; use --groups 1")


def _notes(
    trace: LoadTrace,
    topology: Topology,
    known: Model | None,
    given: dict[str, int | None],
    named: bool,
) -> list[str]:
    """What does not fit between trace, model and the published setting."""
    shape = f"{trace.num_layers} layers x {trace.num_experts} experts"
    notes = []
    assumed = [name for name, value in given.items() if value is None]
    if assumed and topology != PUBLISHED_TOPOLOGY:
        values = {
            "ranks": topology.num_ranks,
            "slots": topology.num_slots,
            "nodes": topology.num_nodes,
            "groups": topology.num_groups,
        }
        chosen = ", ".join(f"--{name} {values[name]}" for name in assumed)
        notes.append(
            f"for a trace of {shape} took {chosen}; scores do not compare with those of the published setting "
            "(256 experts in 288 slots, 32 ranks, 4 nodes, 8 groups)"
        )
    if known is None:
        notes.append(
            f"no known model has {shape}: moves cost what {PUBLISHED_MODEL}'s would; --model says otherwise"
        )
    elif named and (known.layers, known.experts) != (trace.num_layers, trace.num_experts):
        notes.append(
            f"the trace has {shape}, {known.name} has {known.layers} layers x {known.experts} experts"
        )
    return notes
