"""transformers beside us, on the same shape, type and lengths, in turns: `generate` on a batch, and what `generate_batch` is made of."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import torch

from quiesce.engine.api import AsyncEngine
from quiesce.engine.bench.decode import decode_s, random_prompts
from quiesce.engine.bench.gpu.ground import Ground, Tell
from quiesce.engine.bench.gpu.serving import GB, run_workload
from quiesce.engine.bench.peer import Peer
from quiesce.engine.bench.result import Figure
from quiesce.engine.bench.roofline import Workload
from quiesce.engine.bench.shapes import QWEN3_06B

ROW = "peers"
BATCH, PROMPT, STEPS = 32, 256, 128
ROUNDS = 3


def measure(ground: Ground, tell: Tell) -> None:
    """The block."""
    config = ground.config(
        QWEN3_06B, max_model_len=2048, max_num_seqs=64, max_num_batched_tokens=8192, kv_cache_memory_bytes=16 * GB,
        enable_prefix_caching=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(Path(folder))
        peer.adopt(_model(ground, peer, Path(config.model)))
        asyncio.run(_measure(ground, tell, ground.engine(config), peer))


def _model(ground: Ground, peer: Peer, folder: Path) -> Any:
    """A model of random weights where the engine's are."""
    shape = peer.transformers.AutoConfig.from_pretrained(folder)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(ground.dtype)
    try:
        with ground.device:
            return peer.transformers.AutoModelForCausalLM.from_config(shape)
    finally:
        torch.set_default_dtype(kept)


async def _measure(ground: Ground, tell: Tell, made: AsyncEngine, peer: Peer) -> None:
    attention = peer.model.config._attn_implementation
    batch, length, steps = ground.size(BATCH, 2), ground.size(PROMPT, 8), ground.size(STEPS, 4)
    async with made as engine:
        ratios, ours, theirs = [], [], []
        for number in range(1 + ground.size(ROUNDS, 1)):
            prompts = random_prompts(batch, length, engine.model.info.vocab_size, number)
            our_s, _ = await decode_s(engine, prompts, steps)
            their_s = peer.do_generate(prompts, steps)["seconds"]
            if number:  # the first round warms both up
                ours.append(our_s * 1e3)
                theirs.append(their_s * 1e3)
                ratios.append(their_s / our_s)
        name = f"decode step of {batch}: / transformers generate, attention {attention}"
        tell(Figure(ROW, name, "x", tuple(ratios), at_most=False))
        tell(Figure(ROW, "    our step", "ms", tuple(ours)))
        tell(Figure(ROW, "    their step", "ms", tuple(theirs)))
        if not ground.out_of_time(tell, ROW, "continuous batching", 30):
            await _mixed(ground, tell, engine, peer)


async def _mixed(ground: Ground, tell: Tell, engine: AsyncEngine, peer: Peer) -> None:
    """Requests of mixed lengths, all at once."""
    workload = Workload.nano_vllm(64, 50, 300) if not ground.dry else Workload.nano_vllm(3, 4, 10, 500)
    num_tokens = sum(workload.output_lens)
    await run_workload(engine, workload)
    ours = num_tokens / await run_workload(engine, workload)
    prompts = [list(prompt) for prompt in workload.prompts]
    found = peer.do_serve(prompts, list(workload.output_lens), [0.0] * len(prompts), engine.config.max_num_seqs)
    theirs = found["num_tokens"] / found["seconds"]
    attention = peer.model.config._attn_implementation
    name = f"{len(prompts)} requests: / transformers continuous batching, attention {attention}"
    tell(Figure(ROW, name, "x", (ours / theirs,), at_most=False))
    tell(Figure(ROW, "    ours", "tok/s", (ours,), at_most=False))
    tell(Figure(ROW, "    theirs", "tok/s", (theirs,), at_most=False))
