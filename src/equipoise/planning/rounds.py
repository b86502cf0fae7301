"""Who sends what, and when: sources of fetches, and rounds in which each rank has one peer at most each way."""

from __future__ import annotations

import numpy as np

from .kernel import kernel


def in_rounds(experts, targets, holds, node_of_rank):
    """Sources and rounds ``[F]`` of the fetches of a layer, and the number of rounds.

    ``experts [F]``, ``targets [F]``: what is fetched, and by which rank; int64. ``holds [P, E]`` bool: whether a rank
    holds an expert. ``node_of_rank [P]`` int64.
    """
    sources, rounds = np.empty_like(targets), np.empty_like(targets)
    choose_sources(experts, targets, holds, node_of_rank, sources)
    counts = [np.bincount(ranks, minlength=len(holds)).max(initial=0) for ranks in (sources, targets)]
    degree = int(max(counts))
    sends, receives = np.full((2, len(holds), degree), -1, np.int64)
    colour_fetches(sources, targets, sends, receives, np.empty_like(targets), rounds)
    return sources, rounds, degree


@kernel
def choose_sources(experts, targets, holds, node_of_rank, sources):
    """Write the source of each fetch of a layer: on the target's node where one holds the expert, of these the
    rank that sends least so far, of these the first.

    ``experts [F]``, ``targets [F]``, ``sources [F]``: what is fetched, and by and from which rank. ``holds [P, E]``:
    whether a rank holds an expert; every expert that is fetched is held by another rank. ``node_of_rank [P]``.
    """
    num_ranks = holds.shape[0]
    sent = np.zeros(num_ranks, np.int64)
    for fetch in range(experts.size):
        best, best_near = -1, False
        for rank in range(num_ranks):
            if not holds[rank, experts[fetch]]:
                continue
            near = node_of_rank[rank] == node_of_rank[targets[fetch]]
            if best < 0 or (near and not best_near) or (near == best_near and sent[rank] < sent[best]):
                best, best_near = rank, near
        sources[fetch] = best
        sent[best] += 1


@kernel
def colour_fetches(sources, targets, sends, receives, path, rounds):
    """Write the round of each fetch, so that no rank sends two, or receives two, in one round.

    As many rounds do as one rank sends or receives (König, Math. Annalen 77, 1916): where the round that is free at
    the source is taken at the target, the two rounds change places along the path of fetches that alternate between
    them, which starts at the target and cannot end at the source.

    ``sources [F]``, ``targets [F]``: ranks. ``rounds [F]``: from 0. ``sends [P, D]``, ``receives [P, D]``: room for
    the fetch of each rank and round, all -1, ``D`` the most that a rank sends or receives. ``path [F]``: room.
    """
    for fetch in range(sources.size):
        source, target = sources[fetch], targets[fetch]
        free = 0
        while sends[source, free] >= 0:
            free += 1
        other = 0
        while receives[target, other] >= 0:
            other += 1
        length = 0
        step = receives[target, free]
        while step >= 0:
            path[length] = step
            length += 1
            if length % 2:  # came over the free round: on over the other one
                step = sends[sources[step], other]
            else:
                step = receives[targets[step], free]
        for place in range(length):
            turned = path[place]
            sends[sources[turned], rounds[turned]] = -1
            receives[targets[turned], rounds[turned]] = -1
        for place in range(length):
            turned = path[place]
            rounds[turned] = free + other - rounds[turned]
            sends[sources[turned], rounds[turned]] = turned
            receives[targets[turned], rounds[turned]] = turned
        rounds[fetch] = free
        sends[source, free] = fetch
        receives[target, free] = fetch
