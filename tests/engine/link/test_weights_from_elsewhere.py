"""Weights for a core in another process: every source a thread takes, nothing left of one that was refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quiesce.engine import errors
from quiesce.engine.api import AsyncEngine
from quiesce.engine.tiny import checkpoint_folder
from tests.engine.link.cores import PATIENCE_S, config, kill, nothing_left

SMALL = checkpoint_folder("small")


def tensors() -> dict[str, torch.Tensor]:
    (path,) = Path(SMALL).glob("*.safetensors")
    return dict(load_file(path))


def broken(pairs: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    yield from pairs[:3]
    raise OSError("the disk is gone")


async def refused(engine: AsyncEngine, source: Any, why: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=why):
        await engine.update_weights(source)


def test_every_source_brings_the_same_weights_and_what_cannot_be_is_refused_by_name() -> None:
    async def main() -> None:
        whole = tensors()
        pairs = [(name, tensor) for name, tensor in whole.items()]
        name = next(name for name, tensor in pairs if tensor.dim() == 1)
        async with nothing_left(), asyncio.timeout(PATIENCE_S):
            async with AsyncEngine(config()) as engine:
                digest = await engine.weights_checksum()
                changed = {**whole, name: whole[name] + 1}
                await engine.update_weights(changed)
                other = await engine.weights_checksum()
                assert other != digest
                await engine.update_weights(SMALL)
                assert await engine.weights_checksum() == digest
                await engine.update_weights(iter([(name, changed[name].to(torch.bfloat16))]), version="v")
                assert engine.status().weights == ("v", "stable")
                await engine.update_weights({each: tensor.float().numpy().astype(">f4") for each, tensor in whole.items()})
                assert await engine.weights_checksum() == digest

                await refused(engine, iter([("no.such", np.zeros(2, np.float32))]), r"no\.such")
                await refused(engine, iter([*pairs[:2], None]), "pairs of")
                await refused(engine, iter([(name, np.zeros(3, np.int64))]), "shape|int64")
                await refused(engine, broken(pairs), "the disk is gone")
                await engine.update_weights(SMALL)  # heals what was half written

                await engine.begin_weight_update()
                with pytest.raises(errors.TransitionConflict):
                    await engine.sleep()
                await engine.load_weights({name: changed[name]})
                await engine.load_weights(iter([]))
                await engine.finish_weight_update()
                assert await engine.weights_checksum() == other
                with pytest.raises(errors.TransitionConflict):
                    await engine.load_weights({name: changed[name]})  # no update is open: nobody asks for the tensor
            assert engine.status().balanced

    asyncio.run(main())


def test_a_core_that_dies_while_it_is_fed_answers_the_call_and_leaves_the_source_alone() -> None:
    pulled, go_on = asyncio.Event(), threading.Event()

    def slow(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[str, Any]]:
        for place, pair in enumerate(tensors().items()):
            if place == 2:
                loop.call_soon_threadsafe(pulled.set)
                assert go_on.wait(PATIENCE_S)
            yield pair

    async def main() -> None:
        async with nothing_left(), asyncio.timeout(PATIENCE_S), AsyncEngine(config()) as engine:
            updating = asyncio.ensure_future(engine.update_weights(slow(asyncio.get_running_loop())))
            await pulled.wait()
            kill(engine)
            with pytest.raises(errors.EngineDead):
                await updating
            go_on.set()

    asyncio.run(main())
