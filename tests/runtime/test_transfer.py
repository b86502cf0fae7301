"""Transfers as data: every round a matching, as few rounds as can be, and the new map at the end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise import ArgumentError, Held, Placement, Topology
from equipoise.runtime.transfer import transfer_plan


def legal_map(rng, layers, ranks, slots, experts):
    spare = ranks * slots - experts
    return np.stack(
        [rng.permutation(np.r_[np.arange(experts), rng.integers(0, experts, spare)]) for _ in range(layers)]
    )


@st.composite
def transfers(draw):
    """Old and new map, topology, and the old rank of each rank: with twins, empty slots, ranks lost and joined."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    nodes = draw(st.integers(1, 3))
    ranks = nodes * draw(st.integers(1, 4))
    slots = draw(st.integers(1, 5))
    experts = draw(st.integers(1, ranks * slots))
    layers = draw(st.integers(1, 3))
    before = draw(st.integers(1, ranks + 2))
    old = rng.integers(0, experts, (layers, before * slots))
    if before == ranks:
        old = legal_map(rng, layers, ranks, slots, experts)
    old[rng.random(old.shape) < draw(st.sampled_from([0, 0, 0.2, 1]))] = -1
    new = legal_map(rng, layers, ranks, slots, experts)
    if draw(st.booleans()) and before == ranks:  # some layers stay, or nearly
        kept = np.where(rng.random(new.shape) < 0.8, old, new)
        for layer in range(layers):
            if set(kept[layer]) == set(range(experts)):
                new[layer] = kept[layer]
    who = None
    if before != ranks or draw(st.booleans()):
        joined = rng.permutation(np.r_[np.arange(before), np.full(ranks, -1)])
        who = joined[:ranks].tolist()
    topology = Topology(ranks, slots, nodes)
    return Held(old, before, experts), Placement(new, ranks, experts), topology, who


def held_by(old, new, who):
    """``[L, P, slots_per_rank]``, what each rank of the new map holds before."""
    slots = old.phy2log.reshape(old.num_layers, old.num_ranks, -1)
    who = range(old.num_ranks) if who is None else who
    empty = np.full((old.num_layers, slots.shape[2]), -1)
    return np.stack([slots[:, rank] if rank >= 0 else empty for rank in who], axis=1)


@settings(max_examples=1500, deadline=None)
@given(transfers())
def test_the_new_map_comes_out_and_each_round_is_a_matching(case):
    old, new, topology, who = case
    plan = transfer_plan(old, new, topology, ranks=who)
    before, wanted = held_by(old, new, who), new.phy2log.reshape(-1, new.num_ranks, topology.slots_per_rank)
    nodes = topology.nodes
    assert [t.layer for t in plan.layers] == [i for i in range(len(wanted)) if (before[i] != wanted[i]).any()]
    for transfer in plan.layers:
        start, slots = before[transfer.layer], before[transfer.layer].copy()
        written = set()

        def write(rank, slot, expert, slots=slots, written=written):
            assert (rank, slot) not in written
            written.add((rank, slot))
            slots[rank, slot] = expert

        arrived = {}
        for number in range(transfer.num_rounds):
            now = transfer.fetches[transfer.fetches[:, 0] == number]
            assert len(now) > 0
            assert len(set(now[:, 1])) == len(now) == len(set(now[:, 3]))  # one peer each way
            for rank in range(new.num_ranks):
                sent, got = transfer.sends(rank, number), transfer.receives(rank, number)
                if sent is not None:
                    slot, target, expert = sent
                    assert target != rank
                    assert start[rank, slot] == expert
                    assert transfer.receives(target, number)[1:] == (rank, expert)
                if got is not None:
                    slot, source, expert = got
                    assert transfer.sends(source, number)[1:] == (rank, expert)
                    assert expert not in start[rank]
                    assert (rank, expert) not in arrived.values()  # fetched once, twins or not
                    arrived[rank, slot] = (rank, expert)
                    near = [r for r in range(new.num_ranks) if nodes[r] == nodes[rank] and expert in start[r]]
                    assert not near or nodes[source] == nodes[rank]
                    write(rank, slot, expert)
        most = max(
            np.bincount(transfer.fetches[:, 1], minlength=1).max(),
            np.bincount(transfer.fetches[:, 3], minlength=1).max(),
        )
        assert transfer.num_rounds == most
        for rank, read, slot in transfer.copies:
            write(rank, slot, start[rank, read])
        for rank, read, slot in transfer.twins:
            assert (rank, read) in arrived
            write(rank, slot, slots[rank, read])
        for rank, slot, expert in transfer.lost:
            assert not (start == expert).any()
            write(rank, slot, expert)
        assert np.array_equal(slots, wanted[transfer.layer])
        assert written == set(zip(*np.nonzero(start != wanted[transfer.layer]), strict=True))


@settings(max_examples=300, deadline=None)
@given(transfers())
def test_bytes_of_links_add_up_and_nothing_is_sent_to_oneself(case):
    old, new, topology, who = case
    plan = transfer_plan(old, new, topology, ranks=who)
    table = plan.link_bytes(7)
    assert table.shape == (new.num_ranks, new.num_ranks)
    assert table.sum() == 7 * plan.num_fetches
    assert not np.diagonal(table).any()


def test_sends_of_a_hot_expert_are_spread_over_its_holders():
    # Expert 0 lies on ranks 0 to 3; ranks 4 to 7 fetch it.
    old = Held([[0, 1, 0, 2, 0, 3, 0, 4, 5, 1, 6, 2, 7, 3, 1, 4]], 8, 8)
    new = Placement([[0, 1, 0, 2, 0, 3, 0, 4, 5, 0, 6, 0, 7, 0, 1, 0]], 8, 8)
    transfer = transfer_plan(old, new, Topology(8, 2)).layers[0]
    assert sorted(transfer.fetches[:, 1].tolist()) == [0, 1, 2, 3]
    assert transfer.num_rounds == 1


def test_the_same_placement_moves_nothing():
    placement = Placement([[0, 1, 2, 3]], 2, 4)
    assert transfer_plan(placement, placement, Topology(2, 2)).layers == ()


@pytest.mark.parametrize(
    ("old", "topology", "ranks", "words"),
    [
        (Held([[0, 1, 2, 3]] * 2, 2, 4), Topology(2, 2), None, "layers, experts"),
        (Held([[0, 1, 2, 3]], 2, 5), Topology(2, 2), None, "layers, experts"),
        (Held([[0, 1, 2, 3]], 2, 4), Topology(4, 1), None, "topology"),
        (Held([[0, 1, 2, 3]], 1, 4), Topology(2, 2), None, "slots a rank"),
        (Held([[0, 1, 2, 3, 0, 1]], 3, 4), Topology(2, 2), None, "ranks="),
        (Held([[0, 1, 2, 3, 0, 1]], 3, 4), Topology(2, 2), [0], "different one"),
        (Held([[0, 1, 2, 3, 0, 1]], 3, 4), Topology(2, 2), [1, 1], "different one"),
        (Held([[0, 1, 2, 3, 0, 1]], 3, 4), Topology(2, 2), [0, 3], "different one"),
        (Held([[0, 1, 2, 3, 0, 1]], 3, 4), Topology(2, 2), [0, -2], "different one"),
    ],
)
def test_what_does_not_fit_is_refused(old, topology, ranks, words):
    with pytest.raises(ArgumentError, match=words):
        transfer_plan(old, Placement([[0, 1, 2, 3]], 2, 4), topology, ranks=ranks)
