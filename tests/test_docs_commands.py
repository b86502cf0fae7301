"""Every command in the README and in docs/ runs as it stands.

Each page's shell blocks run in one `bash -e`, in a folder that holds recordings under the names that the pages use.
What needs a server, the network or a GPU is a stand-in that does nothing, and is listed here: `SERVERS`, `NETWORK`.
`make` is left to CI, which calls its targets itself. Python that is not a doctest runs in `test_python_blocks`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]
SHELL = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_COMMANDS = [page for page in PAGES if SHELL.search(page.read_text(encoding="utf-8"))]

SERVERS = ("vllm", "trtllm-serve", "trtllm-eval", "curl", "sleep")
NETWORK = ("pip", "make")
SERVER_MODULES = ("sglang.launch_server",)
STAND_IN = "#!/bin/sh\necho stand-in: $0 >&2\n"
PYTHON = """#!/bin/sh
case "$1 $2" in {modules}) echo stand-in: $2 >&2;; *) exec {python} "$@";; esac
"""
# The doctor says with 1 that an engine which is switched on is not installed, as here; everything else must succeed.
EQUIPOISE = """#!/bin/sh
{python} -m equipoise "$@"
code=$?
[ "$1" = doctor ] && [ $code = 1 ] && exit 0
exit $code
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def programs(folder: Path) -> Path:
    for name in (*SERVERS, *NETWORK):
        write(folder / name, STAND_IN)
    modules = "|".join(f'"-m {module}"' for module in SERVER_MODULES)
    write(folder / "python", PYTHON.format(modules=modules, python=shlex.quote(sys.executable)))
    write(folder / "equipoise", EQUIPOISE.format(python=shlex.quote(sys.executable)))
    return folder


def sglang_dumps(trace: eq.LoadTrace) -> None:
    import torch

    dump, short = (
        json.dumps({"logical_count": counts.tolist()}) for counts in (trace.counts, trace.counts[:6])
    )
    for name in ("recorded.json", "LOAD", "today.pt"):
        Path(name).write_text(dump)
    workloads = (
        "prefill_in512",
        "prefill_in1024",
        "prefill_in2048",
        "decode_in1000out1000",
        "decode_in2000out100",
    )
    for name in workloads:
        Path(f"{name}.json").write_text(short)
    recorded = {"rank": 0, "logical_count": torch.from_numpy(trace.counts.copy())}
    for name in ("1730000000.5", ""):
        torch.save(recorded, "_".join(filter(None, ["expert_distribution_recorder", name])) + ".pt")
    torch.save({"rank": 0, "logical_count": torch.ones(300, 4, 64, dtype=torch.int64)}, "dump.pt")


def placements(trace: eq.LoadTrace) -> None:
    eq.save_placement(eq.contiguous_placement(4, 64, 32, 96), "placement.json", format="sglang")
    eq.save_placement(eq.contiguous_placement(4, 64, 32, 96), "served.json", format="sglang")
    eq.save_placement(eq.plan(trace, eq.Topology(32, 3), "greedy").placement, "next.json", format="sglang")


def vllm_statistics(trace: eq.LoadTrace) -> None:
    served = eq.contiguous_placement(4, 64, 8, 64).phy2log
    line = {"record_type": "eplb_load_stats", "version": 1, "num_ranks": 8, "p2l_map": served.tolist()}
    with open("stats.jsonl", "w") as file:
        for step, counts in enumerate(trace.counts):
            slots = counts[np.arange(4)[:, None], served].tolist()
            file.write(json.dumps({**line, "step": 50 * step, "expert_load": slots}) + "\n")


def trtllm_statistics(trace: eq.LoadTrace) -> None:
    from safetensors.numpy import save_file

    folder = Path("expert_statistic")
    folder.mkdir()
    (folder / "meta_info.json").write_text(json.dumps({"num_experts": 64, "num_experts_per_token": 8}))
    names = {f"{100 + step}_{layer}": trace.counts[step, layer] for step in range(16) for layer in range(4)}
    save_file({name: np.ascontiguousarray(row) for name, row in names.items()}, folder / "rank0.safetensors")
    Path("options.yaml").write_text(
        "moe_config: {load_balancer: moe_load_balancer.yaml}\nenable_attention_dp: true\n"
    )
    Path("DeepSeek-R1").mkdir()
    model = {"architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 4, "n_routed_experts": 64}
    Path("DeepSeek-R1/config.json").write_text(json.dumps(model | {"first_k_dense_replace": 0}))


def recording(trace: eq.LoadTrace) -> None:
    with eq.TraceWriter("recording", num_layers=4, num_experts=64, top_k=8) as writer:
        for counts in trace.counts:
            writer.add(counts)


# Plain NumPy: a program has a kernel cache of its own, and one that plans with Equipoise compiles for itself.
PROGRAM = """
import numpy as np

def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):
    layers, experts = weight.shape
    phy2log = np.tile(np.arange(num_replicas) % experts, (layers, 1))
    logcnt = np.stack([np.bincount(row, minlength=experts) for row in phy2log])
    log2phy = np.full((layers, experts, logcnt.max()), -1)
    for slot, expert in enumerate(phy2log[0]):
        log2phy[:, expert, slot // experts] = slot
    return phy2log, log2phy, logcnt
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """What the pages call their files, made once: recordings, placements and settings."""
    for needed in ("torch", "yaml", "matplotlib"):
        pytest.importorskip(needed)
    place = tmp_path_factory.mktemp("recorded")
    trace = eq.synthetic_trace(4, 64, 24, tokens_per_window=500, seed=0)
    with pytest.MonkeyPatch.context() as there:
        there.chdir(place)
        for made in (sglang_dumps, placements, vllm_statistics, trtllm_statistics, recording):
            made(trace)
    eq.save_trace(eq.synthetic_trace(4, 64, 300, tokens_per_window=100), place / "trace.safetensors")
    (place / "my_policy.py").write_text(PROGRAM)
    (place / "equipoise.toml").write_text('history = 4\nmodel = "olmoe"\n')
    return place


@pytest.fixture
def folder(recorded, tmp_path, monkeypatch):
    """A folder of one's own with them."""
    place = shutil.copytree(recorded, tmp_path / "work")
    monkeypatch.chdir(place)
    return place


def environment(tmp_path: Path) -> dict[str, str]:
    path = os.pathsep.join([str(programs(tmp_path / "bin")), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "MPLBACKEND": "Agg", "COLUMNS": "120"}


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_commands(page, folder, tmp_path):
    if page.stem == "sweep":
        pytest.importorskip("pyarrow")
    script = "\n".join(SHELL.findall(page.read_text(encoding="utf-8")))
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        env=environment(tmp_path), cwd=folder, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr


def test_a_command_that_fails_is_seen(folder, tmp_path):
    for script in ("equipoise plan nothing.pt --ranks 32\ntrue", "equipoise plot LOAD", "no_such_program"):
        done = subprocess.run(["bash", "-e", "-c", script], env=environment(tmp_path), capture_output=True)
        assert done.returncode != 0


def test_stand_ins_are_for_programs_that_the_pages_call():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in (*SERVERS, *NETWORK, *SERVER_MODULES):
        assert name in text, name


def test_no_command_hides_from_this_test():
    """Shell stands in blocks that say so; a plain or indented block does not call the command."""
    for page in PAGES:
        assert not re.search(r"^```(?:sh|shell|console)\b", page.read_text(encoding="utf-8"), re.M), page.name
        text = re.sub(
            r"^```\w*\n.*?^```", "", SHELL.sub("", page.read_text(encoding="utf-8")), flags=re.M | re.S
        )
        assert not re.findall(r"^ {4}(?:equipoise|python|make) .*", text, re.MULTILINE), page.name


PYTHON_BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    )
    if ">>>" not in block
    and "init_process_group" not in block  # tests/runtime/test_docs.py starts ranks for it
]


class Mine(eq.Greedy):
    """A policy of the reader's own, which the pages leave to them."""

    name = "mine"


@pytest.mark.parametrize("block", PYTHON_BLOCKS)
def test_python_blocks(block, folder):
    eq.save_trace(eq.synthetic_trace(4, 256, 200, tokens_per_window=100), "loads.safetensors")
    shutil.rmtree("recording")
    exec(compile(block, "<docs>", "exec"), {"MyPolicy": Mine})
