"""Serves the tiny model once and prints the token ids: ``python serve.py MODEL '{"tp": 2, "eplb": true}'``."""

from __future__ import annotations

import json
import sys
from typing import Any


def prompts() -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": [3 + (i * 37 + j * 11) % 500 for j in range(24)]} for i in range(6)]


def options(asked: dict[str, Any]) -> dict[str, Any]:
    if not asked.get("eplb"):
        return {}
    return {
        "enable_expert_parallel": True,
        "enable_eplb": True,
        "eplb_config": {
            "step_interval": 16,
            "window_size": 16,
            "num_redundant_experts": 4,
            "use_async": bool(asked.get("async")),
            "communicator": "torch_gloo",
        },
    }


def main() -> None:
    from vllm import LLM, SamplingParams

    asked = json.loads(sys.argv[2])
    llm = LLM(
        model=sys.argv[1],
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        tensor_parallel_size=asked.get("tp", 1),
        max_model_len=256,
        max_num_seqs=8,
        max_num_batched_tokens=256,
        disable_log_stats=True,
        **options(asked),
    )
    sampling = SamplingParams(temperature=0, max_tokens=asked["tokens"], ignore_eos=True, detokenize=False)
    made = llm.generate(prompts(), sampling, use_tqdm=False)
    print("IDS", json.dumps([list(one.outputs[0].token_ids) for one in made]), flush=True)


if __name__ == "__main__":
    main()
