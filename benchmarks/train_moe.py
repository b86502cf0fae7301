"""Train the model that `equipoise demo` serves, and record its routing.

    python benchmarks/train_moe.py                    trains (half an hour of one core), records, writes the data
    python benchmarks/train_moe.py --record-only      records again with the weights that are there
    python benchmarks/train_moe.py --minutes 0.1 --windows 1 --into FOLDER      a short trial

A byte-level mixture-of-experts model (`equipoise.demo.model`) is trained on text of four kinds that is read at run
time from the Python installation: its library's code, the help topics of `pydoc_data`, the tables of `encodings`,
and the C headers. None of it is kept: the card names files and hashes. The last tenth of every kind is never trained
on; routing is recorded on it alone, with the runtime's `LoadCounter` and through `TraceWriter`, as a server would.
Seeds are fixed; another Python version has other text, and gives other weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import equipoise as eq
from equipoise.demo.model import WEIGHTS, ByteMoE, load_model
from equipoise.demo.texts import split, texts
from equipoise.runtime.counter import LoadCounter

BATCH = 16  # sequences of a training step
PEAK = 4e-3  # learning rate
BALANCE = 0.01  # weight of the load-balancing loss
WINDOW = 32  # sequences of a recorded window
STREAM = ("python", "headers", "help", "tables", "python", "mix", "help")


def tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def draw(data: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """``[count, length + 1]`` bytes from random places."""
    starts = torch.randint(0, len(data) - length - 1, (count,), generator=generator)
    return torch.stack([data[int(start) : int(start) + length + 1] for start in starts])


class Routers:
    """Listens to the routers of a model, for the load-balancing loss."""

    def __init__(self, model: ByteMoE) -> None:
        self.top_k = model.shape.top_k
        self.logits: dict[int, Tensor] = {}
        for layer, block in enumerate(model.blocks):
            block.mlp.gate.register_forward_hook(
                lambda gate, tokens, logits, layer=layer: self.logits.update({layer: logits})
            )

    def imbalance_loss(self) -> Tensor:
        """That of Switch Transformers (Fedus et al., 2021), summed over layers: 1 each where all is even."""
        return sum(map(self._of_layer, self.logits.values()), torch.zeros(()))

    def _of_layer(self, logits: Tensor) -> Tensor:
        experts = logits.shape[1]
        chosen = logits.topk(self.top_k, dim=-1).indices
        part = torch.bincount(chosen.reshape(-1), minlength=experts) / chosen.numel()
        return experts * (logits.softmax(dim=-1).mean(dim=0) * part).sum()


def train(data: dict[str, Tensor], minutes: float, seed: int, weights: Path) -> dict[str, Any]:
    """Train for so many CPU minutes; the schedule follows the time that was spent."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = ByteMoE()
    routers = Routers(model)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK, weight_decay=0.05)
    started, step, loss = time.process_time(), 0, torch.zeros(())
    while (done := (time.process_time() - started) / (60 * minutes)) < 1:
        rate = PEAK * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * (1 - done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        parts = [draw(text, BATCH // len(data), model.shape.context, generator) for text in data.values()]
        rows = torch.cat(parts)
        logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + BALANCE * routers.imbalance_loss()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}, {done:.0%}, {loss.item():.3f} nats a byte", flush=True)
        if step % 500 == 499:
            write_weights(model, weights)
        step += 1
    write_weights(model, weights)
    return {"steps": step, "cpu_minutes": minutes, "last_training_loss": round(loss.item(), 4)}


def write_weights(model: ByteMoE, path: Path) -> None:
    save_file({name: tensor.bfloat16().contiguous() for name, tensor in model.state_dict().items()}, path)


def counted(model: ByteMoE) -> LoadCounter:
    """Counts what all routers of the model choose from now on."""
    counter = LoadCounter(model.shape.layers, model.shape.experts)
    for layer, block in enumerate(model.blocks):
        block.mlp.experts.register_forward_pre_hook(
            lambda experts, given, layer=layer: counter.add(layer, given[1])
        )
    return counter


class Reader:
    """Has a model read text that it was not trained on, and records the routing."""

    def __init__(self, model: ByteMoE, unseen: dict[str, Tensor], seed: int) -> None:
        self.model, self.unseen, self.counter = model, unseen, counted(model)
        self.generator = torch.Generator().manual_seed(seed + 1)

    def record(self, kinds: list[str], source: str) -> eq.LoadTrace:
        """A window of each kind, in that order; the phase of a window names its kind."""
        shape = self.model.shape
        with tempfile.TemporaryDirectory() as folder:
            about: dict[str, Any] = {"top_k": shape.top_k, "source": source}
            with eq.TraceWriter(folder, shape.layers, shape.experts, **about) as writer:
                for kind in kinds:
                    self._read(kind)
                    writer.add(self.counter.take().numpy(), phase=kind)
            return eq.load_trace(folder)

    def _read(self, kind: str) -> None:
        kinds = sorted(self.unseen) if kind == "mix" else [kind]
        count, length = WINDOW // len(kinds), self.model.shape.context
        parts = [draw(self.unseen[each], count, length, self.generator)[:, :-1] for each in kinds]
        with torch.no_grad():
            self.model(torch.cat(parts))
        self.counter.end_pass()


def record(model: ByteMoE, unseen: dict[str, Tensor], seed: int, windows: int) -> dict[str, eq.LoadTrace]:
    """The routing of each kind alone, and of a stream whose kind changes every so many windows."""
    reader = Reader(model, unseen, seed)
    domains = [kind for kind in sorted(unseen) for _ in range(windows + 2)]
    stream = [kind for kind in STREAM if kind in (*unseen, "mix") for _ in range(windows)]
    return {
        "domains": reader.record(domains, "byte MoE, one kind of text after the other"),
        "stream": reader.record(stream, "byte MoE, a stream whose text changes"),
    }


def losses(model: ByteMoE, unseen: dict[str, Tensor], seed: int) -> dict[str, float]:
    """Nats a byte on text that was not trained on, each kind alone."""
    generator = torch.Generator().manual_seed(seed + 2)
    found = {}
    with torch.no_grad():
        for kind, data in unseen.items():
            rows = draw(data, 64, model.shape.context, generator)
            logits = model(rows[:, :-1])
            found[kind] = round(F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item(), 3)
    return found


def skew(trace: eq.LoadTrace) -> dict[str, dict[str, float]]:
    """Largest and smallest expert over the mean of each kind, averaged over layers; correlations between kinds."""
    assert trace.phases is not None
    kinds = sorted(set(trace.phases))
    loads = {k: trace.counts[[p == k for p in trace.phases]].sum(axis=0).astype(float) for k in kinds}
    table = {}
    for kind, load in loads.items():
        ratio = load / load.mean(axis=1, keepdims=True)
        table[kind] = {
            "largest": float(ratio.max(axis=1).mean()),
            "smallest": float(ratio.min(axis=1).mean()),
        }
        for other in kinds:
            pairs = [np.corrcoef(a, b)[0, 1] for a, b in zip(load, loads[other], strict=True)]
            table[kind][f"correlation with {other}"] = float(np.mean(pairs))
    return {kind: {name: round(value, 2) for name, value in row.items()} for kind, row in table.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=26.0, help="CPU minutes of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record-only", action="store_true")
    parser.add_argument("--windows", type=int, default=14, help="of each part of the stream")
    parser.add_argument(
        "--into", type=Path, default=WEIGHTS.parent, help="folder of weights, traces and card"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = texts()
    parts = {kind: tuple(map(tensor, split(text))) for kind, (_, text) in found.items()}
    unseen = {kind: later for kind, (_, later) in parts.items()}
    card_file, weights = options.into / "card.json", options.into / WEIGHTS.name
    if options.record_only:
        trained = json.loads(card_file.read_text())["training"]
    else:
        seen = {kind: earlier for kind, (earlier, _) in parts.items()}
        trained = train(seen, options.minutes, options.seed, weights)
    model = load_model(weights)  # as it ships: bfloat16
    traces = record(model, unseen, options.seed, options.windows)
    for name, trace in traces.items():
        eq.save_trace(trace, options.into / f"byte_moe_{name}.safetensors")
    card = {
        "made_by": "python benchmarks/train_moe.py",
        "model": {**vars(model.shape), "parameters": sum(p.numel() for p in model.parameters())},
        "training": trained,
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__.split("+")[0]},
        "texts": {
            kind: {"files": len(files), "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
            for kind, (files, text) in found.items()
        },
        "nats_a_byte_on_text_not_trained_on": losses(model, unseen, options.seed),
        "tokens_a_window": WINDOW * model.shape.context,
        "skew": skew(traces["domains"]),
    }
    card_file.write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
