"""A decode step of the CPU device against transformers `generate`: the same weights and dtype, one thread each, in turns.

python tests/engine/device/compare_speed.py --dtype bfloat16 --rounds 5

prints CPU milliseconds a step (the best of the rounds), and the median ratio of the rounds. The shape is that of
`performance.md` section 4: 8 layers of 512, 8 and 4 heads of 64, 1,536 between, 32,000 tokens, tied: 41.5 M parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

PROMPT, NEW = 128, 32
SHAPE: dict[str, Any] = {
    "vocab_size": 32_000, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 64, "intermediate_size": 1536, "tie_word_embeddings": True, "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}  # fmt: skip
Times = tuple[float, float]
"""CPU milliseconds of a decode step, and of the prefill."""


def serve_theirs(folder: str, dtype: str) -> None:
    """Saves a random model, then answers each batch size on standard input with its times."""
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SHAPE)).to(getattr(torch, dtype))
    model.train(False)
    model.save_pretrained(folder)
    print("ready", flush=True)
    for line in sys.stdin:
        ids = torch.arange(int(line) * PROMPT).view(-1, PROMPT) * 7919 % SHAPE["vocab_size"]
        spent = []
        for new in (1, NEW + 1):
            begin = time.thread_time()
            with torch.inference_mode():
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=new,
                    min_new_tokens=new,
                    do_sample=False,
                    pad_token_id=0,
                )
            spent.append((time.thread_time() - begin) * 1e3)
        print(json.dumps([(spent[1] - spent[0]) / NEW, spent[0]]), flush=True)


class Ours:
    """One runner at one batch and block size."""

    def __init__(self, folder: str, dtype: str, batch: int, size: int) -> None:
        from quiesce.engine.checkpoint import read_model_info
        from quiesce.engine.config import EngineConfig
        from quiesce.engine.device.runner import Runner

        self.batch, blocks = batch, -(-(PROMPT + NEW + 1) // size)
        config = EngineConfig(model=folder, dtype=dtype, block_size=size)  # type: ignore[arg-type] # checked at construction
        self.runner = Runner(config, read_model_info(folder), blocks * batch, progress=False)
        self.tables = np.random.default_rng(0).permutation(blocks * batch).reshape(batch, blocks).astype(np.int32)

    def run(self, start: int, count: int, tokens: np.typing.NDArray[np.int64]) -> None:
        from quiesce.engine.messages import StepInput

        batch, none = self.batch, np.zeros(self.batch, np.float32)
        step = StepInput(
            step=0, epoch=0, version=0, rows=np.arange(batch, dtype=np.int32), starts=np.full(batch, start, np.int32),
            counts=np.full(batch, count, np.int32), token_ids=tokens, block_tables=self.tables, samples=np.ones(batch, np.bool_),
            temperature=none, top_k=np.zeros(batch, np.int32), top_p=none + 1, min_p=none, noise_keys=np.zeros(batch, np.uint64),
        )  # fmt: skip
        self.runner.run(step)

    def times(self) -> Times:
        import torch

        ids = np.arange(self.batch * PROMPT, dtype=np.int64) * 7919 % 32_000
        with torch.inference_mode():
            begin = time.thread_time()
            self.run(0, PROMPT, ids)
            middle = time.thread_time()
            for i in range(NEW):
                self.run(PROMPT + i, 1, np.full(self.batch, -1, np.int64))
            return (time.thread_time() - middle) / NEW * 1e3, (middle - begin) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", default="16,32,128")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--theirs", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.theirs:
        serve_theirs(options.theirs, options.dtype)
        return
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--theirs", folder, "--dtype", options.dtype]
        quiet = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=quiet
        ) as process:
            if process.stdin is None or process.stdout is None or process.stdout.readline() != "ready\n":
                raise SystemExit("transformers did not start")
            for batch in map(int, options.batches.split(",")):
                ours = {size: Ours(folder, options.dtype, batch, size) for size in map(int, options.sizes.split(","))}
                theirs: list[Times] = []
                found: dict[int, list[Times]] = {size: [] for size in ours}
                for _ in range(options.rounds):
                    process.stdin.write(f"{batch}\n")
                    process.stdin.flush()
                    theirs.append(json.loads(process.stdout.readline()))
                    for size, each in ours.items():
                        found[size].append(each.times())
                report(batch, theirs, found)
                for each in ours.values():
                    each.runner.close()
            process.stdin.close()


def report(batch: int, theirs: list[Times], found: dict[int, list[Times]]) -> None:
    base = np.array(theirs)  # [rounds, 2]
    for size, times in found.items():
        mine = np.array(times)
        decode, prefill = np.median(base / mine, 0)
        best, own = base.min(0), mine.min(0)
        print(
            f"batch {batch:2d} block {size:3d}: decode {best[0]:6.2f} -> {own[0]:6.2f} ms, {decode:.2f} x;"
            f" prefill {best[1]:6.0f} -> {own[1]:6.0f} ms, {prefill:.2f} x",
            flush=True,
        )


if __name__ == "__main__":
    main()
