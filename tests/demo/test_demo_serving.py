"""The text of the live demo, and the trained model on four ranks."""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
import pytest

from equipoise import Placement, contiguous_placement
from equipoise.demo.recorded import DATA
from equipoise.demo.texts import Stream, split, texts

LAYERS, EXPERTS = 8, 64


def test_kinds_are_far_apart_and_not_empty():
    found = texts()
    assert {"python", "help"} <= set(found)
    assert all(100_000 < len(text) <= 1_000_000 for _, text in found.values())


def test_texts_are_those_of_the_card_on_the_same_python():
    card = json.loads((DATA / "card.json").read_text())
    if card["versions"]["python"] != sys.version.split()[0]:
        pytest.skip("another Python has other text")
    found = texts()
    for kind in ("help", "tables"):  # what is built with Python differs from build to build
        assert card["texts"][kind]["sha256"] == hashlib.sha256(found[kind][1]).hexdigest()


def test_a_batch_hangs_on_pass_and_rank_alone():
    stream, again = Stream(passes=3), Stream(passes=3)
    assert [stream.kind(number) for number in range(0, 12, 3)] == list(texts())
    assert stream.kind(2) != stream.kind(3)
    for number in (7, 0, 5):
        assert np.array_equal(stream.batch(number, 1), again.batch(number, 1))
    assert not np.array_equal(stream.batch(0, 0), stream.batch(0, 1))
    assert not np.array_equal(stream.batch(0, 0), stream.batch(1, 0))


def test_batches_are_of_text_that_was_not_trained_on():
    stream = Stream(sequences=2, length=30)
    unseen = split(texts()[stream.kind(0)][1])[1]
    for row in stream.batch(0, 0):
        assert row.astype(np.uint8).tobytes() in unseen


def serve(rank, phy2log, num_ranks, number):
    from equipoise.demo.serving import Served

    return Served(Placement(phy2log, num_ranks, EXPERTS), Stream(passes=1)).serve(number, rank)


def live(rank, folder, passes):
    """Digests of all passes, commits of each layer, and whether expert tensors stayed at their addresses."""
    import torch.distributed as dist

    import equipoise as eq
    from equipoise.demo.serving import Served
    from equipoise.runtime.live import LiveBalancer, Pace
    from equipoise.runtime.transport import TorchTransport
    from equipoise.runtime.weights import ExpertWeights

    start, topology = contiguous_placement(LAYERS, EXPERTS, 4, 80), eq.Topology(4, 20)
    served = Served(start, Stream(passes=7, sequences=4, length=32))
    tensors = [tensor for layer in served.layers.tensors() for tensor in layer.values()]
    addresses = [tensor.data_ptr() for tensor in tensors]
    balancer = eq.Balancer(topology, LAYERS, EXPERTS, policy="greedy")
    transport = TorchTransport(list(range(4)), dist.FileStore(str(folder / "store"), 4))
    runtime = LiveBalancer(
        balancer,
        ExpertWeights(served.layers.tensors()),
        transport,
        start,
        pace=Pace(interval=4, layers_per_step=2),
    )
    served.layers.follow(runtime.maps, runtime.counter)
    digests = []
    for number in range(passes):
        digests.append(served.serve(number, rank))
        runtime.step()
    kept = addresses == [tensor.data_ptr() for tensor in tensors]
    return digests, runtime.executor.versions.tolist(), kept


def test_bits_stay_while_experts_move(tmp_path):
    pytest.importorskip("equipoise.runtime.live")
    from equipoise.demo.serving import Served
    from moe_ranks import Ranks

    passes = 28  # two plans, and two kinds of text after the first
    ranks = Ranks(4, tmp_path, live)
    try:
        answers = ranks.ask(tmp_path, passes)
    finally:
        ranks.close()
    alone = Served(contiguous_placement(LAYERS, EXPERTS, 1), Stream(passes=7, sequences=4, length=32))
    for rank, (digests, commits, kept) in enumerate(answers):
        assert digests == [alone.serve(number, rank) for number in range(passes)]
        assert kept
        assert min(commits) > 0


def test_four_ranks_give_the_bits_of_one(tmp_path):
    pytest.importorskip("torch")
    from moe_ranks import Ranks

    alone = contiguous_placement(LAYERS, EXPERTS, 1).phy2log
    rng = np.random.default_rng(0)
    ranks = Ranks(4, tmp_path, serve)
    try:
        for number in range(4):
            extra = rng.integers(0, EXPERTS, (LAYERS, 16))
            rows = np.concatenate([np.tile(np.arange(EXPERTS), (LAYERS, 1)), extra], axis=1)
            found = ranks.ask(rng.permuted(rows, axis=1), 4, number)
            assert found == [serve(rank, alone, 1, number) for rank in range(4)]
            assert len(set(found)) == 4
    finally:
        ranks.close()
