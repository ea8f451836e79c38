"""What the lifecycle costs a live engine: an idle pause and resume, and how fast memory leaves and comes back.

The peer of a wake is the machine's own rate: the same bytes read from a file into fresh private pages by nothing but the system.
"""

from __future__ import annotations

import asyncio
import json
import math
import mmap
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from quiesce.engine.api import AsyncEngine
from quiesce.engine.bench.result import Figure
from quiesce.engine.config import EngineConfig
from quiesce.engine.outputs import Status

ROW: Final = "lifecycle"
GIVEN_BACK_FLOOR, GIVEN_BACK_AIM = 0.95, 0.99
WAKE_FLOOR, WAKE_AIM = 0.6, 0.9
PAUSES, WAKES = 200, 9
SHAPE: Final = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 16384, "hidden_size": 512, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 1536, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "max_position_embeddings": 2048, "tie_word_embeddings": True, "eos_token_id": 2, "hidden_act": "silu", "torch_dtype": "float32",
}  # fmt: skip
TOY: Final = {**SHAPE, "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}


def measure(quick: bool) -> Iterator[Figure]:
    """The figures of this row. With `quick` of a toy."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(TOY if quick else SHAPE), encoding="utf-8")
        yield from asyncio.run(_measure(name, 5 if quick else PAUSES, 2 if quick else WAKES))


async def _measure(folder: str, num_pauses: int, num_wakes: int) -> list[Figure]:
    config = EngineConfig(
        model=folder, load_format="dummy", tokenizer_required=False, num_threads=1, num_kv_blocks=256, dtype="float32"
    )
    async with AsyncEngine(config) as engine:
        pauses = [await _pause_ms(engine) for _ in range(num_pauses)]
        weights = {"weights": "offload"}
        given_back, sleeps, ratios = [], [], []
        await engine.sleep(tags=weights)  # the first one makes the file
        await engine.wake_up()
        for _ in range(num_wakes):
            slept = await engine.sleep(tags=weights)
            given_back.append(slept.freed_bytes / _num_bytes(engine))
            sleeps.append(slept.duration_s * 1e3)
            began_s = time.perf_counter()
            await engine.wake_up()
            wake_s = time.perf_counter() - began_s
            ratios.append(_plain_s(slept.freed_bytes) / wake_s)
            _check(engine.status())
    return [
        Figure(ROW, "pause and resume of an idle engine", "ms", tuple(pauses)),
        Figure(ROW, "sleep of offloaded weights", "ms", tuple(sleeps)),
        Figure(ROW, "memory given back / the weights' arena", "x", tuple(given_back), GIVEN_BACK_FLOOR, GIVEN_BACK_AIM, at_most=False),
        Figure(ROW, "wake of offloaded weights / reading a file into fresh pages", "x", tuple(ratios), WAKE_FLOOR, WAKE_AIM, at_most=False),
    ]  # fmt: skip


async def _pause_ms(engine: AsyncEngine) -> float:
    began_s = time.perf_counter()
    await engine.pause("keep")
    await engine.resume()
    return (time.perf_counter() - began_s) * 1e3


def _num_bytes(engine: AsyncEngine) -> int:
    """What the weights take, in whole pages."""
    info = engine.model.info
    from quiesce.engine.device.weights import packed_shapes  # loads torch, which the engine has loaded by now

    count = sum(4 * math.prod(shape) for shape in packed_shapes(info).values())
    return -(-count // mmap.PAGESIZE) * mmap.PAGESIZE


def _plain_s(num_bytes: int) -> float:
    """Seconds to read as many bytes from a file that the system has in its cache into private pages that nobody has touched."""
    with tempfile.TemporaryFile() as file, mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        file.write(b"\1" * num_bytes)
        file.flush()
        file.seek(0)
        began_s = time.perf_counter()
        with memoryview(pages) as view:
            file.readinto(view)
        return time.perf_counter() - began_s


def _check(status: Status) -> None:
    if status.engine != "running":
        raise RuntimeError(f"the engine is {status.engine} after a wake")
